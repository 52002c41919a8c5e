//! Counts for who looks at them: the host, before the rows have landed, and sums over many dispatches.
//!
//! A routing slot's words in host memory are written by one warp of the last block, when all counts are here and before it sends: first the
//! counts, relaxed, each stamped with the number of the dispatch, then the slot's first word, release, which says whose they are ([`Known`]). If the dispatch fails, before that or after, the last block out says so there, and the fault record says why.
use epoxide_dsl::prelude::*;

use super::args::{DispatchArgs, Now};
use crate::layout::{THREADS, WARPS};
use crate::order::Order;
use crate::sum::sum;
use crate::words::{Known, Stamped};

/// Tells the host what is received: all counts have come.
#[inline(always)]
pub(super) fn tell<O: Order>(a: &DispatchArgs, now: Now) {
    // The block with the fewest tokens.
    if a.mirror.address() == 0 || thread::block_index() + 1 != thread::grid_blocks() {
        return;
    }
    // The warp that copies the fewest rows, or none: where rows are long, shared memory is not enough for all warps' stages.
    if warp::index() == WARPS - 1 {
        for i in thread::strided(warp::lane(), counts::<O>(a), warp::LANES) {
            let told = Stamped::new(count::<O>(a, now, i), now.dispatch);
            a.mirror.store_relaxed::<System>(1 + i, told.to_word());
        }
        warp::sync(warp::ALL);
        if warp::lane() == 0 {
            a.mirror.store_release::<System>(0, Known { dispatch: now.dispatch, failed: false }.to_word());
        }
    }
}

/// The last block out: says that the dispatch failed, or adds up what it brought.
#[inline(always)]
pub(super) fn finish<O: Order>(a: &DispatchArgs, now: Now, complete: bool) {
    if !complete {
        if thread::index() == 0 && a.mirror.address() != 0 {
            a.mirror.store_release::<System>(0, Known { dispatch: now.dispatch, failed: true }.to_word());
        }
    } else if a.statistics.address() != 0 {
        let first = 1 + a.peers();
        for expert in thread::strided(thread::index(), a.owned().experts, THREADS) {
            let so_far = a.statistics.load_weak(expert);
            a.statistics.store_weak(expert, so_far + u64::from(count::<O>(a, now, first + expert)));
        }
    }
}

/// How many received counts there are.
#[inline(always)]
fn counts<O: Order>(a: &DispatchArgs) -> u32 {
    let experts = a.owned().experts;
    1 + a.peers() + experts + if O::BY_EXPERT { experts + 1 } else { 0 }
}

/// Received count `i`, in the order of [`DispatchArgs::recv_counts`], once all counts are here. Per thread.
#[inline(always)]
fn count<O: Order>(a: &DispatchArgs, now: Now, i: u32) -> u32 {
    let (window, me, owned) = (a.op.window(), a.op.window().me, a.owned());
    let first = a.counts.of_expert(a.placement.first(me.0));
    let word = |source, counter| a.counts.count(window, now.dispatch, Peer(source), counter);
    if i == 0 {
        if O::BY_EXPERT { owned.first(owned.experts) } else { sum(window.peers, |source| word(source, me.0)) }
    } else if i <= window.peers {
        if O::BY_EXPERT { rows_of_source(a, now, i - 1) } else { word(i - 1, me.0) }
    } else {
        let i = i - 1 - window.peers;
        if !O::BY_EXPERT {
            sum(window.peers, |source| word(source, first + i))
        } else if i < owned.experts {
            owned.count(i)
        } else {
            owned.first(i - owned.experts)
        }
    }
}

/// How many rows a source has here, where they lie by expert. Per thread.
#[inline(always)]
fn rows_of_source(a: &DispatchArgs, now: Now, source: u32) -> u32 {
    let (window, owned) = (a.op.window(), a.owned());
    let first = a.counts.of_expert(a.placement.first(window.me.0));
    let mut rows = 0;
    for counter in thread::strided(first, first + owned.experts, 1) {
        let mut of_expert = a.counts.count(window, now.dispatch, Peer(source), counter);
        if a.bound.drops != 0 {
            let mut before = 0;
            for earlier in thread::strided(0, source, 1) {
                before += a.counts.count(window, now.dispatch, Peer(earlier), counter);
            }
            of_expert = a.bound.kept(before, of_expert);
        }
        rows += of_expert;
    }
    rows
}
