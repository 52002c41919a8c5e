//! Finishing: peers are told and theirs waited for, unless every block has done so, and the received counts written.
use epoxide_dsl::prelude::*;

use super::args::{DispatchArgs, Now};
use super::{by_expert, fit, observe};
use crate::layout::THREADS;
use crate::order::Order;
use crate::sum::sum;
use crate::words::{Flags, Phase};

/// The last block out: in the compact order tells every peer that its rows are there and waits for theirs; writes the counts, advances the numbers. It says
/// whether it stopped at that.
#[inline(always)]
pub(super) fn finish<O: Order>(
    a: &DispatchArgs,
    watch: &wait::Watch,
    now: Now,
    last: &grid::LastOut,
) -> Result<(), fault::Stopped> {
    let mut arrived = Ok(());
    let mut complete = false;
    // No block of this rank has stopped; a peer may have.
    if let Some(landed) = last.landed() {
        // Where rows are copied on here, every block has waited for them.
        arrived = if O::BY_EXPERT {
            watch.unless_aborted(Phase::End as u32)
        } else {
            exchange(&a.landed, a.op.window(), watch, landed)
        };
        complete = arrived.is_ok();
    }
    let came = complete && !(O::OBSERVED && fit::is_exceeded(a));
    if O::BY_EXPERT {
        // A block has written them, unless it has stopped.
        if !complete {
            by_expert::write_no_counts(a);
        }
    } else {
        write_counts(a, now, came);
    }
    if O::OBSERVED {
        fit::tell::<O>(a, now, complete, came);
        observe::finish::<O>(a, now, came);
    }
    if thread::index() == 0 {
        a.routing.store_weak(0, if complete { now.dispatch } else { 0 });
        a.dispatches.store_weak(0, now.dispatch);
        a.op.epoch.store_weak(0, now.epoch);
    }
    arrived
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

/// Tells every peer, and waits for all. What else they stored before is there too: in a dispatch their counts.
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
