//! The warps of a grid of the operations' kernels, numbered so that neighbours in number are in different blocks.
use epoxide_dsl::prelude::*;

use crate::layout::WARPS;

/// The number of this warp among all of the grid.
#[inline(always)]
pub(crate) fn index() -> u32 {
    warp::index() * thread::grid_blocks() + thread::block_index()
}

/// Warps of the grid, whose blocks have [`WARPS`] each.
#[inline(always)]
pub(crate) fn count() -> u32 {
    WARPS * thread::grid_blocks()
}
