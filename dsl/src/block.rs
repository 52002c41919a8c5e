//! Block collectives: every thread of the block must call the same one.
use crate::memory::{Scalar, Shared};
use crate::{arch, warp};

/// Waits for the whole block and orders its memory accesses (`bar.sync`).
#[inline(always)]
#[track_caller]
pub fn sync() {
    arch::block_barrier();
}

/// [`sync`], and returns whether `predicate` held in any thread (`bar.red.or`).
#[inline(always)]
#[track_caller]
pub fn any(predicate: bool) -> Uniform<bool> {
    Uniform(arch::block_barrier_or(predicate))
}

/// The 4-byte words of shared memory that a reduction over a block of any size needs (128 bytes): one for each warp.
pub const REDUCTION_WORDS: u32 = 32;

/// Returns the sum of the floats of all threads, the same bits to all of them, for every schedule and on both backends.
///
/// `scratch` is [`REDUCTION_WORDS`] of shared memory that nobody accesses meanwhile; the block may use it again at once. The order is
/// fixed: each warp's as in [`warp::sum_f32`], then the warps' sums in the same way. Two block barriers.
#[inline(always)]
#[track_caller]
pub fn sum_f32(value: f32, scratch: Shared<f32>) -> Uniform<f32> {
    // Adding -0 changes nothing, not even a -0.
    Uniform(warp::sum_f32(spread(warp::sum_f32(value), scratch, -0.0)))
}

/// Returns the largest of the floats of all threads, to all of them; a NaN, `0x7fffffff`, if there is one. 0 is larger than -0.
///
/// `scratch` is as in [`sum_f32`]. Two block barriers.
#[inline(always)]
#[track_caller]
pub fn max_f32(value: f32, scratch: Shared<f32>) -> Uniform<f32> {
    let of_warp = arch::reduce_max(warp::ALL, warp::key_of_float(value));
    // No float's key is 0.
    let of_lane = spread(of_warp, scratch.cast::<u32>(), 0);
    Uniform(warp::float_of_key(arch::reduce_max(warp::ALL, of_lane)))
}

/// Gives each warp all warps' values, warp `i`'s to lane `i`, and `none` to the lanes beyond the last warp's.
#[inline(always)]
#[track_caller]
fn spread<T: Scalar>(of_warp: T, scratch: Shared<T>, none: T) -> T {
    if warp::lane() == 0 {
        scratch.store_weak(warp::index(), of_warp);
    }
    sync();
    let of_lane = if warp::lane() < warp::count() { scratch.load_weak(warp::lane()) } else { none };
    // Nobody writes the scratch again before all have read it.
    sync();
    of_lane
}

/// A value that is the same in all threads of the block, because a collective made it: who branches on it may call another
/// collective in the branch.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Uniform<T>(T);

impl<T> Uniform<T> {
    /// The value.
    #[inline(always)]
    pub fn get(self) -> T {
        self.0
    }
}
