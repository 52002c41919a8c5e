//! Sums over the threads of a block.
use epoxide_dsl::prelude::*;

use crate::layout::WARPS;

/// What came `before` this turn of the block and what the threads before this one have of a `value`, together; all of this turn's is added to `before`. `of_warps` is
/// `[WARPS]`, and is read until the block has met once more. Block-collective.
#[inline(always)]
pub(crate) fn before_this(of_warps: Shared<u32>, before: &mut u32, value: u32) -> u32 {
    let lane = warp::lane();
    let up_to = warp::prefix_sum(value);
    if lane == warp::LANES - 1 {
        of_warps.store_weak(warp::index(), up_to);
    }
    block::sync();
    let of_warp = if lane < WARPS { of_warps.load_weak(lane) } else { 0 };
    let earlier = warp::sum(warp::ALL, if lane < warp::index() { of_warp } else { 0 });
    let first = *before + earlier + up_to - value;
    *before += warp::sum(warp::ALL, of_warp);
    first
}
