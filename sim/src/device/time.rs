//! Virtual time, and giving up the turn.
//!
//! Time is what the schedule makes of it: 1 ns for every turn that got somewhere, and a jump when all that is left to
//! happen is a wake-up or a deadline. A slow host makes no false timeout.

use std::panic::Location;

use super::operation::PollWait;
use crate::engine::block::state::Waiting;
use crate::engine::thread::context::{attend, now, suspend};

/// Returns virtual time in ns (`%globaltimer`).
///
/// # Panics
///
/// Outside a simulated thread.
#[inline]
#[track_caller]
#[must_use]
pub fn clock_ns() -> u64 {
    let context = attend("clock_ns");
    // SAFETY: the context is this worker's.
    unsafe { now(context) }
}

/// Says that a poll failed: gives up the turn until something may have changed.
///
/// # Panics
///
/// Outside a simulated thread.
#[track_caller]
pub fn poll_pause(wait: PollWait) {
    let location = Location::caller();
    let context = attend("poll_pause");
    // SAFETY: the context is the running thread's; the reference to the block ends before the suspension.
    unsafe {
        let (state, thread) = (&mut *(*context).state, (*context).reins.thread());
        state.warps[(thread / 32) as usize].polling |= 1 << (thread % 32);
        state.polling_warps |= 1 << (thread / 32);
        suspend(context, Waiting::Poll { wait, location });
    }
}

/// Gives up the turn until virtual time is `ns`.
///
/// # Panics
///
/// Outside a simulated thread.
#[track_caller]
pub fn sleep_until(ns: u64) {
    let location = Location::caller();
    let context = attend("sleep_until");
    // SAFETY: the context is the running thread's; the reference to the block ends before the suspension.
    unsafe {
        if now(context) >= ns {
            return;
        }
        let (state, thread) = (&mut *(*context).state, (*context).reins.thread());
        state.warps[(thread / 32) as usize].sleeping |= 1 << (thread % 32);
        state.sleeping_warps |= 1 << (thread / 32);
        suspend(context, Waiting::Sleep { until: ns, location });
    }
}

/// Whether the machine leaves out the step that the caller's line asks for ([`Mutation`](crate::Mutation)).
///
/// # Panics
///
/// Outside a simulated thread.
#[inline]
#[track_caller]
#[must_use]
pub fn is_left_out() -> bool {
    let place = Location::caller();
    let context = attend("is_left_out");
    // SAFETY: the context is the running thread's.
    unsafe { (*context).mutation }.is_some_and(|mutation| mutation.names(place))
}
