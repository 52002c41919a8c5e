//! Block collectives: every thread of the block must call the same one.
use crate::arch;

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
