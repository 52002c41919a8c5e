//! Dispatch where rows lie by expert: every selection has a row.
//!
//! A row crosses to a rank once, to the place of the token's first selection there, and its receiver copies it on to the others. A
//! sender's own rows go to all their places at once.
//!
//! The kernel has two halves. In the first every block sends its tokens, and posts a landed word of its own to the blocks of its number on
//! every rank. In the second it waits for theirs, and copies on what they sent: where to it reads from the sender's handle, which lies in the
//! sender's window, and whose part for a block's tokens that block's word publishes; the sender writes there again only when all ranks are in a
//! later dispatch, so what it counts before lies elsewhere. All blocks are resident together and none waits for a landed word before it has
//! sent, so none waits for ever.
//!
//! How many tokens a rank has, and where a block's first ones lie, is told by words that prove themselves ([`PlaceWords`](crate::words::PlaceWords)), before the rows
//! are there: who sees them knows what is his to copy on when they come, and asks nobody over the link before he copies on the first. Who does not reads the handle.
//!
//! At the end nobody waits for what is copied on to be complete, only for it to have left shared memory: whoever reads it comes behind the kernel.
//!
//! A block passes when it has the words of its number's blocks, before it copies on; the last one to pass advances the numbers at its end, when others may still copy: all that the operation
//! waits for of peers has come then, and who reads rows comes behind the kernel.
mod crossed;
mod multiply;
mod send;

pub(super) use crossed::Crossed;
pub(super) use multiply::exchange;
pub(super) use send::{send, tell_tokens};

use epoxide_dsl::prelude::*;

use super::args::{DispatchArgs, Now};
use crate::layout::{THREADS, WARPS};
use crate::order::Order;
use crate::sum::sum;

/// How many words [`write_counts`] writes.
#[inline(always)]
fn count_words(a: &DispatchArgs) -> u32 {
    1 + a.peers() + a.owned().experts + (a.owned().experts + 1)
}

/// Writes zeros for how many rows came.
#[inline(always)]
pub(super) fn write_no_counts(a: &DispatchArgs) {
    for i in thread::strided(thread::index(), count_words(a), THREADS) {
        a.recv_counts.store_weak(i, 0);
    }
}

/// Writes how many rows came, in all with what pads them, by source, by local expert, and where each expert's begin; zeros if they did not come.
#[inline(always)]
fn write_counts<O: Order>(a: &DispatchArgs, now: Now, came: bool) {
    let (window, owned) = (a.op.window(), a.owned());
    let first = a.placement.first(window.me.0);
    let (sources, experts) = (window.peers, owned.experts);
    for i in thread::strided(thread::index(), count_words(a), THREADS) {
        let of_source = i >= 1 && i <= sources;
        let mut count = 0;
        if came && !of_source {
            count = if i == 0 {
                owned.first(experts)
            } else if i <= sources + experts {
                owned.count(i - 1 - sources)
            } else {
                owned.first(i - 1 - sources - experts)
            };
        }
        if !of_source {
            a.recv_counts.store_weak(i, count);
        }
    }
    for source in thread::strided(warp::index(), sources, WARPS) {
        let mut count = 0;
        if came {
            for expert in thread::strided(warp::lane(), experts, warp::LANES) {
                let of_expert = a.counts.of_expert(first + expert);
                let selections = |source| a.counts.count(window, now.dispatch, Peer(source), of_expert);
                let mut rows = selections(source);
                if O::OBSERVED && a.bound.drops != 0 {
                    rows = a.bound.kept(sum(source, selections), rows);
                }
                count += rows;
            }
        }
        count = warp::sum(warp::ALL, count);
        if warp::lane() == 0 {
            a.recv_counts.store_weak(1 + source, count);
        }
    }
}
