//! Block collectives: every thread of the block must call the same one.
use crate::arch;

/// Waits for the whole block and orders its memory accesses (`bar.sync`). The warps may come split.
#[inline(always)]
#[track_caller]
pub fn sync() {
    arch::block_barrier();
}

/// [`sync`], and returns whether `predicate` held in any thread (`bar.red.or`). The answer is uniform.
#[inline(always)]
#[track_caller]
pub fn any(predicate: bool) -> bool {
    arch::block_barrier_or(predicate)
}
