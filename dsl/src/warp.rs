//! Warp collectives: every lane that the mask names must call the same one.
//!
//! All are LLVM intrinsics on the GPU, never inline assembly, because inline assembly is not convergent.
use crate::arch;
use crate::memory::Scalar;

/// Lanes in a warp.
pub const LANES: u32 = 32;
/// The mask that names all 32 lanes.
pub const ALL: u32 = u32::MAX;

/// This thread's lane in its warp.
#[inline(always)]
pub fn lane() -> u32 {
    arch::thread_index() % LANES
}

/// This thread's warp in its block.
#[inline(always)]
pub fn index() -> u32 {
    arch::thread_index() / LANES
}

/// Warps in the block.
#[inline(always)]
pub fn count() -> u32 {
    arch::block_threads() / LANES
}

/// Waits until every lane of `mask` is here, and orders their memory accesses (`bar.warp.sync`).
#[inline(always)]
#[track_caller]
pub fn sync(mask: u32) {
    arch::warp_sync(mask);
}

/// Returns `value` of lane `source` (`shfl.sync.idx`). Shuffles move 4 bytes: a `u32`, an `i32` or an `f32`.
#[inline(always)]
#[track_caller]
pub fn shuffle<T: Scalar<Bits = u32>>(mask: u32, value: T, source: u32) -> T {
    T::from_bits(arch::shuffle_index(mask, value.to_bits(), source))
}

/// Returns `value` of the lane whose number differs by `flip` (`shfl.sync.bfly`).
#[inline(always)]
#[track_caller]
pub fn shuffle_xor<T: Scalar<Bits = u32>>(mask: u32, value: T, flip: u32) -> T {
    T::from_bits(arch::shuffle_xor(mask, value.to_bits(), flip))
}

/// Returns `value` of the lane `distance` below; lanes with none keep their own (`shfl.sync.up`).
#[inline(always)]
#[track_caller]
pub fn shuffle_up<T: Scalar<Bits = u32>>(mask: u32, value: T, distance: u32) -> T {
    T::from_bits(arch::shuffle_up(mask, value.to_bits(), distance))
}

/// Returns the sum over this lane and all lanes below it.
#[inline(always)]
#[track_caller]
pub fn prefix_sum(value: u32) -> u32 {
    let mut sum = value;
    let mut distance = 1;
    while distance < LANES {
        let below = arch::shuffle_up(ALL, sum, distance);
        if lane() >= distance {
            sum += below;
        }
        distance *= 2;
    }
    sum
}

/// Returns the lanes for which `predicate` holds (`vote.sync.ballot`).
#[inline(always)]
#[track_caller]
pub fn ballot(mask: u32, predicate: bool) -> u32 {
    arch::ballot(mask, predicate)
}

/// Returns the lanes that gave the same `value` (`match.any.sync`).
#[inline(always)]
#[track_caller]
pub fn match_any(mask: u32, value: u32) -> u32 {
    arch::match_any(mask, value)
}

/// Returns the sum over the lanes (`redux.sync.add`).
#[inline(always)]
#[track_caller]
pub fn sum(mask: u32, value: u32) -> u32 {
    arch::reduce_add(mask, value)
}

/// Returns the smallest value over the lanes (`redux.sync.min`).
#[inline(always)]
#[track_caller]
pub fn min(mask: u32, value: u32) -> u32 {
    arch::reduce_min(mask, value)
}

/// Returns the largest value over the lanes (`redux.sync.max`).
#[inline(always)]
#[track_caller]
pub fn max(mask: u32, value: u32) -> u32 {
    arch::reduce_max(mask, value)
}

/// Returns the largest of the non-negative floats of `LANES_IN_GROUP` neighbouring lanes (a power of two), to all of them.
///
/// Non-negative floats order like their bits, so no float operation is needed and no NaN rule applies: a NaN is
/// larger than every number.
#[inline(always)]
#[track_caller]
pub fn max_in_group<const LANES_IN_GROUP: u32>(value: f32) -> f32 {
    let mut bits = value.to_bits() & 0x7fff_ffff;
    let mut flip = 1;
    while flip < LANES_IN_GROUP {
        let other = arch::shuffle_xor(ALL, bits, flip);
        if other > bits {
            bits = other;
        }
        flip *= 2;
    }
    f32::from_bits(bits)
}

/// Returns the sum of the floats of `LANES_IN_GROUP` neighbouring lanes (a power of two), the same bits to all of them. All 32 lanes
/// call it.
///
/// The order is fixed: neighbours first, then pairs of them, and so on. A sum of floats depends on its order.
#[inline(always)]
#[track_caller]
pub fn sum_in_group<const LANES_IN_GROUP: u32>(value: f32) -> f32 {
    let mut sum = value;
    let mut flip = 1;
    while flip < LANES_IN_GROUP {
        // a + b is b + a: both lanes have the same.
        sum += shuffle_xor(ALL, sum, flip);
        flip *= 2;
    }
    sum
}

/// Returns the sum of the floats of all 32 lanes: [`sum_in_group`].
#[inline(always)]
#[track_caller]
pub fn sum_f32(value: f32) -> f32 {
    sum_in_group::<LANES>(value)
}

/// Returns the largest of the floats of all 32 lanes (`redux.sync.max`); a NaN, `0x7fffffff`, if there is one. 0 is larger than -0.
#[inline(always)]
#[track_caller]
pub fn max_f32(value: f32) -> f32 {
    float_of_key(arch::reduce_max(ALL, key_of_float(value)))
}

/// A number that orders as the float does; a NaN is larger than every number, and nothing is 0.
#[inline(always)]
pub(crate) fn key_of_float(x: f32) -> u32 {
    let bits = x.to_bits();
    // Floats order like sign and magnitude: negative ones are turned round, and lie below the others.
    let key = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    if x.is_nan() { u32::MAX } else { key }
}

/// The float of a key.
#[inline(always)]
pub(crate) fn float_of_key(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key ^ 1 << 31 } else { !key })
}
