//! Who this thread is: indices in the block and the grid (one dimension, as all our kernels are).
use crate::arch;

/// Index of this thread in its block (`%tid.x`).
#[inline(always)]
pub fn index() -> u32 {
    arch::thread_index()
}

/// Threads in a block (`%ntid.x`).
#[inline(always)]
pub fn block_threads() -> u32 {
    arch::block_threads()
}

/// Index of this block in the grid (`%ctaid.x`).
#[inline(always)]
pub fn block_index() -> u32 {
    arch::block_index()
}

/// Blocks in the grid (`%nctaid.x`).
#[inline(always)]
pub fn grid_blocks() -> u32 {
    arch::grid_blocks()
}

/// The numbers from `first` on and below `end`, `step` apart: what one of `step` threads, warps or lanes takes of `end` things. The sum
/// of `end` and `step` is below 2^32.
///
/// ```
/// # use epoxide_dsl::prelude::*;
/// assert_eq!(thread::strided(3, 20, 8).collect::<Vec<_>>(), [3, 11, 19]);
/// ```
#[inline(always)]
pub fn strided(first: u32, end: u32, step: u32) -> Strided {
    debug_assert!(end.checked_add(step).is_some(), "{end} + {step} does not fit 32 bits");
    Strided { last: first.wrapping_sub(step), end, step }
}

/// What [`strided`] returns.
#[derive(Clone, Copy, Debug)]
pub struct Strided {
    /// The number before the next: an addition at the end of a turn is what keeps a loop over this as small as one written out.
    last: u32,
    end: u32,
    step: u32,
}

impl Iterator for Strided {
    type Item = u32;

    #[inline(always)]
    fn next(&mut self) -> Option<u32> {
        self.last = self.last.wrapping_add(self.step);
        (self.last < self.end).then_some(self.last)
    }
}
