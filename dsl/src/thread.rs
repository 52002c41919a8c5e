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
