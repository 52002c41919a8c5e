//! Finishing: peers are told, theirs are waited for, and the received counts written.
use epoxide_dsl::prelude::*;

use super::{DispatchArgs, Now, THREADS, counts};
use crate::protocol::phase;

/// The last block out: tells every peer that its rows are there, waits for theirs, writes the counts, advances the epoch.
#[inline(always)]
#[track_caller]
pub(super) fn finish(a: &DispatchArgs, watch: &wait::Watch, now: Now, ready: bool, grid: &grid::GridLanded) {
    let (ranks, me) = (a.ranks(), a.me());
    let local_experts = a.placement.count(me);
    // Another block of this rank may have faulted where this one did not, or a peer.
    let whole = ready && !watch.aborted(phase::END);
    let mut complete = false;
    if whole {
        let peer = thread::index();
        if peer < ranks {
            let flag = a.op.window().of_rank(peer, a.landed).at(a.op.alternating(now.dispatch, me));
            grid.publish(flag, now.dispatch);
        }
        complete = arrivals(a, watch, now);
    }
    let mut i = thread::index();
    while i <= ranks + local_experts {
        let mut rows = 0;
        if complete {
            rows = if i == 0 {
                counts::sum(ranks, |source| a.own_count(now, source, me))
            } else if i <= ranks {
                a.own_count(now, i - 1, me)
            } else {
                let word = ranks + a.placement.first(me) + (i - 1 - ranks);
                counts::sum(ranks, |source| a.own_count(now, source, word))
            };
        }
        a.recv_counts.store_weak(u64::from(i), rows);
        i += THREADS;
    }
    if thread::index() == 0 {
        a.dispatches.store_weak(0, now.dispatch);
        a.op.epoch.store_weak(0, now.epoch);
    }
}

/// Waits for every peer's rows. Their counts were stored before, so these are there too.
#[inline(always)]
#[track_caller]
fn arrivals(a: &DispatchArgs, watch: &wait::Watch, now: Now) -> bool {
    let landed = a.op.window().own(a.landed);
    let outcome = watch.wait_until(phase::LANDED, a.ranks(), |peer| {
        let seen = landed.load_acquire::<System>(a.op.alternating(now.dispatch, peer));
        wait::Poll { peer, expected: now.dispatch, seen, ready: seen == now.dispatch }
    });
    matches!(outcome, wait::Outcome::Ready(_))
}
