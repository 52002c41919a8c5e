//! Finishing: rows are waited for, unless every block has done so, received counts written, and numbers advanced.
use epoxide_dsl::prelude::*;

use super::args::{DispatchArgs, Now};
use super::{by_expert, fit, observe};
use crate::layout::THREADS;
use crate::order::Order;
use crate::sum::sum;
use crate::words::{Flags, Phase};

/// The last block, in the compact order, which has `ended` its own part so: writes the counts while rows are on their way, waits for them, and advances the
/// numbers.
///
/// # Errors
///
/// That the block stops, or has stopped before.
#[inline(always)]
pub(super) fn receive<O: Order>(
    a: &DispatchArgs,
    watch: &wait::Watch,
    ended: Result<(), fault::Stopped>,
) -> Result<(), fault::Stopped> {
    let now = Now::load(a);
    let came = !(O::OBSERVED && fit::is_exceeded(a));
    let mut arrived = ended;
    if arrived.is_ok() {
        arrived = complete(a, watch, now, came);
    }
    let complete = arrived.is_ok();
    if !complete {
        // A late block is yet to read the numbers.
        a.op.grid.all_passed(watch);
        write_counts(a, now, false);
    }
    advance::<O>(a, now, complete, complete && came);
    arrived
}

/// Waits for the counts of this rank's experts, of which each proves itself, and writes them if rows `came`; then for the rows.
#[inline(always)]
fn complete(a: &DispatchArgs, watch: &wait::Watch, now: Now, came: bool) -> Result<(), fault::Stopped> {
    let (window, me) = (a.op.window(), a.op.window().me.0);
    let experts = (a.placement.first(me), a.placement.count(me));
    let _counts = a.counts.wait_of_experts(window, watch, now.dispatch, experts)?;
    write_counts(a, now, came);
    let _here = a.landings.wait(window, watch, now.dispatch)?;
    Ok(())
}

/// The last block to pass, where rows lie by expert: all have waited for their rows, unless one has stopped and they are not `whole`. Advances the numbers, and
/// says whether it stopped.
///
/// # Errors
///
/// That some rank has given up.
#[inline(always)]
pub(super) fn close_by_expert<O: Order>(
    a: &DispatchArgs,
    watch: &wait::Watch,
    whole: bool,
) -> Result<(), fault::Stopped> {
    let now = Now::load(a);
    // No block of this rank has stopped; a peer may have.
    let arrived = if whole { watch.unless_aborted(Phase::End as u32) } else { Ok(()) };
    let complete = whole && arrived.is_ok();
    let came = complete && !(O::OBSERVED && fit::is_exceeded(a));
    // A block has written them, unless it has stopped.
    if !complete {
        by_expert::write_no_counts(a);
    }
    advance::<O>(a, now, complete, came);
    arrived
}

/// Says what became of a dispatch that is `complete`, and whose rows `came`, and whose routing the slot has; advances the numbers.
#[inline(always)]
fn advance<O: Order>(a: &DispatchArgs, now: Now, complete: bool, came: bool) {
    if O::OBSERVED {
        fit::tell::<O>(a, now, complete, came);
        observe::finish::<O>(a, now, came);
    }
    if thread::index() == 0 {
        a.routing.store_weak(0, if complete { now.dispatch } else { 0 });
        a.dispatches.store_weak(0, now.dispatch);
        a.op.epoch.store_weak(0, now.epoch);
    }
}

/// Writes how many rows came, in all, by source, by local expert; zeros if they are not `complete`.
#[inline(always)]
fn write_counts(a: &DispatchArgs, now: Now, complete: bool) {
    let (window, me) = (a.op.window(), a.op.window().me);
    let local_experts = a.placement.count(me.0);
    let mut i = thread::index();
    while i <= window.peers + local_experts {
        // In all, by source, by local expert: each is the sum of a counter over some sources.
        let (first, sources, counter) = if i == 0 {
            (0, window.peers, me.0)
        } else if i <= window.peers {
            (i - 1, 1, me.0)
        } else {
            (0, window.peers, a.counts.of_expert(a.placement.first(me.0) + (i - 1 - window.peers)))
        };
        let count = |source| a.counts.count(window, now.dispatch, Peer(first + source), counter);
        a.recv_counts.store_weak(i, if complete { sum(sources, count) } else { 0 });
        i += THREADS;
    }
}

/// The last block out of a dispatch again tells every peer, and waits for all.
#[inline(always)]
pub(super) fn exchange(
    words: &Flags<2>,
    window: Window,
    watch: &wait::Watch,
    landed: &grid::GridLanded,
) -> Result<(), fault::Stopped> {
    watch.unless_aborted(Phase::End as u32)?;
    words.post(window, watch.epoch(), landed);
    let _here = words.wait(window, watch, Phase::Landed, watch.epoch())?;
    Ok(())
}
