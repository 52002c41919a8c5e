//! Block collectives: every thread of the block must call the same one.
use crate::arch;

/// Waits for the whole block and orders its memory accesses (`barrier.sync`, the unaligned form: Rust cannot promise
/// that a warp is converged).
#[inline(always)]
#[track_caller]
pub fn sync() {
    arch::block_barrier();
}

/// [`sync`], and returns whether `predicate` held in any thread (`barrier.red.or`). The answer is uniform.
#[inline(always)]
#[track_caller]
pub fn any(predicate: bool) -> bool {
    arch::block_barrier_or(predicate)
}
