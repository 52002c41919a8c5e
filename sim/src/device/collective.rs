//! Warp collectives and block barriers.
//!
//! Every lane that a mask names must arrive with the same operation and the same mask, and every thread that a barrier
//! counts must arrive at it; the simulator reports what a GPU would hang on.

use super::operation::{Reduce, Shuffle};
use crate::engine::block::warp::WarpOp;
use crate::engine::thread::barrier::arrive;
use crate::engine::thread::context::require;
use crate::engine::thread::warp::meet;

/// Waits for the lanes of `mask`.
///
/// # Panics
///
/// Outside a simulated thread; when `mask` does not name the caller, names a lane that returned, or another lane of it
/// is in another operation (the kernel fails).
#[inline]
#[track_caller]
pub fn warp_sync(mask: u32) {
    meet(require("warp_sync"), mask, WarpOp::Sync, 0, 0);
}

/// Returns another lane's `value` (`shfl.sync` of full width: out of range returns the own value; a lane outside `mask`
/// is undefined).
///
/// # Panics
///
/// As [`warp_sync`].
#[inline]
#[track_caller]
pub fn shuffle(mask: u32, kind: Shuffle, value: u32, operand: u32) -> u32 {
    meet(require("shuffle"), mask, WarpOp::Shuffle(kind), value, operand)
}

/// Returns the lanes of `mask` for which `p` holds.
///
/// # Panics
///
/// As [`warp_sync`].
#[inline]
#[track_caller]
pub fn ballot(mask: u32, p: bool) -> u32 {
    meet(require("ballot"), mask, WarpOp::Ballot, u32::from(p), 0)
}

/// Returns the lanes of `mask` that have the same `v`.
///
/// # Panics
///
/// As [`warp_sync`].
#[inline]
#[track_caller]
pub fn match_any(mask: u32, v: u32) -> u32 {
    meet(require("match_any"), mask, WarpOp::MatchAny, v, 0)
}

/// Returns true in the lowest lane of `mask`.
///
/// # Panics
///
/// As [`warp_sync`].
#[inline]
#[track_caller]
pub fn elect(mask: u32) -> bool {
    meet(require("elect"), mask, WarpOp::Elect, 0, 0) != 0
}

/// Combines `v` over the lanes of `mask`.
///
/// # Panics
///
/// As [`warp_sync`].
#[inline]
#[track_caller]
pub fn reduce(mask: u32, op: Reduce, v: u32) -> u32 {
    meet(require("reduce"), mask, WarpOp::Reduce(op), v, 0)
}

/// Waits at barrier `id` until `threads` threads have arrived; 0 is the whole block.
///
/// # Panics
///
/// Outside a simulated thread; when `id` is above 15, `threads` is no multiple of 32 or above the block's, differs from
/// that of the threads already there, or can never be reached (the kernel fails).
#[inline]
#[track_caller]
pub fn barrier(id: u32, threads: u32) {
    arrive(require("barrier"), id, threads, None);
}

/// Waits at barrier `id` for the whole block, and returns whether `p` held in any thread.
///
/// # Panics
///
/// As [`barrier`].
#[inline]
#[track_caller]
pub fn barrier_or(id: u32, p: bool) -> bool {
    arrive(require("barrier_or"), id, 0, Some(p))
}
