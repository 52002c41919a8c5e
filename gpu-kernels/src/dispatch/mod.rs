//! Dispatch: every token's row goes once to each rank that owns one of its experts.
//!
//! # Protocol
//!
//! Operation `e` (its *epoch*), which is the buffer's `d`-th dispatch (both are read from device memory by every block). All words
//! below lie in the *reader's* memory and carry `e` or `d`, so nothing is ever zeroed; those marked ² alternate with the parity of
//! what they carry: a rank can be one operation ahead of a peer, never two, because every operation waits for a word from every
//! peer. Counts, which dispatches alone write, carry half of `d`: each of them is written by every dispatch of its parity, so none is ever left
//! from so long ago that its stamp comes again ([`Stamped`](crate::words::Stamped)). Landed words are also those of a dispatch [`again`], which
//! is none by number; they carry the whole of `e`, which never comes again.
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | `counts`² `[s][..]` at every rank, of `d` | the blocks of `s`, relaxed: each word proves itself | distinct tokens of `s` per rank, selections per expert, its first bad selection or that there is none | the tokens per rank and the bad selection by all blocks, before the first row is written; the selections by the last block, after the `landed` words, which publish them too |
//! | `entry`² `[s]` at every rank, of `e` | block 0 of `s`, release, before it counts | `s` is in dispatch `e`; the receive regions of `s` are **free**: its consumers of the dispatch before were stream-ordered before this launch | all blocks, acquire, before the first row is written |
//! | `landed`² `[s]` at rank r, of `e` | the last block of `s` out, release, with the token of `wait_group 0` from every block | all rows of `s` for r are **there** | the last block of r out, acquire; r's consumers are stream-ordered after |
//!
//! When a dispatch completes, a rank may also write its expert outputs again: every peer's `entry` word of `e` was posted after
//! that peer's combine before was over, reads and all. (Who wants to write them earlier asks [`crate::lend`].)
//!
//! Why a row cannot be overwritten: rank s writes into r only after `entry[r]` of `e`, which r posts after its consumers of
//! the same regions; no two sources share a row, because the count matrix gives every (source, destination) its own range; no two
//! tokens of one source share a row, because a row's place in that range is the number of the source's earlier tokens
//! for the same destination.
//!
//! Why two landed words suffice: who posts the one of `e + 2` has completed `e + 1`, so it has seen r's entry word of `e + 1`, which r posts when
//! it has done with the words of `e`. A combine between them posts none, and is waited for all the same.
//!
//! The routing (where each row went, and what r received with the rows) lies in one of the buffer's *slots*, the same on every rank: the entry
//! word says which. The last block out writes the number `d` there, by which later operations know it, or 0 if the dispatch failed.
//!
//! Why the order does not depend on timing: a row's place is a function of the count matrix and the token's number alone.
//!
//! A fault before the copy is seen by all blocks of all ranks in the same words, so no row is written; a timeout may leave
//! rows behind, but no `landed` word and zero counts. A block that finds an abort word at its entry publishes nothing. All
//! blocks find one that was set before the operation, so then nobody gets past this rank's entry word; of one that comes
//! just now some blocks may know and others not, but the last block out does, and posts no `landed` word. When every peer's
//! have come the operation is whole, whatever happens to others.
//!
//! Where tokens are few every block counts all of the rank's, which takes less than to meet and add up what each has counted; nobody sees a difference.
//! The word of a bad selection is released after what goes with it, and who finds one acquires it.
//!
//! Where rows lie by expert (`by_expert`), all blocks read the selections by expert before the first row is written, and the tokens by
//! rank are not told. In place of `landed` every block posts a word of its own to the blocks of its number, which acquire it: `by_expert` has that protocol.
//!
//! Where counts are `observe`d the host is told them as soon as they are here, before the rows have landed, and they are added up over dispatches.
//! Where there may be too little room (`fit`), all blocks of all ranks see that in the same counts, and send nothing.
//!
//! `count` counts, tells and places; `send` moves rows; `finish` closes the operation. [`again`] is the same without the first. How a row is made is a [`Row`], and in which order
//! rows lie an [`Order`]: a kernel is an instance for one of each.
pub mod again;
pub mod again_by_expert;
mod args;
mod by_expert;
mod count;
mod finish;
mod fit;
mod observe;
mod send;

pub use args::{DispatchArgs, index};
pub(crate) use send::memory_of_warp;

use epoxide_dsl::prelude::*;

use crate::order::Order;
use crate::row::Row;
use crate::words::{Kind, Phase};
use args::{Chunk, Now};

/// Moves the rows.
#[inline(always)]
pub(crate) fn run<R: Row, O: Order>(a: &DispatchArgs) {
    let now = Now::load(a);
    let watch = wait::Watch::begin(a.op.fault, now.epoch);
    let mut ended = attempt::<R, O>(a, &watch, now);
    // Once more: the last block out advances them, and no register need hold them while rows are made.
    let now = Now::load(a);
    if O::BY_EXPERT {
        ended = by_expert::multiply::<R, O>(a, &watch, now, ended);
    }
    let landed = bulk::land();
    let last = a.op.grid.last_out(landed, ended.is_err());
    if let Some(last) = &last {
        let finished = finish::finish::<O>(a, &watch, now, last);
        ended = ended.and(finished);
    }
    if let Err(stopped) = ended {
        watch.file_of_grid(stopped, last.is_some());
    }
}

/// A block's part: counts its tokens, agrees with all ranks, and sends.
#[inline(always)]
fn attempt<R: Row, O: Order>(a: &DispatchArgs, watch: &wait::Watch, now: Now) -> Result<(), fault::Stopped> {
    let chunk = Chunk::of_block(a.tokens);
    count::enter(a, watch);
    // The answer is not needed before counts are published, and counting touches nothing that a peer sees.
    let look = watch.look();
    count::count::<O>(a, chunk);
    if !count::each_counts_all(a) {
        let _counted = a.op.grid.sync(watch, Phase::Counted as u32)?;
    }
    watch.found(look, Phase::Counted as u32).settle()?;
    count::publish::<O>(a, now);
    count::place_behind_earlier_blocks::<O>(a);
    let acquired = agree::<O>(a, watch, now)?;
    O::bases(&count::counted(a, now), &a.found());
    if O::OBSERVED {
        if fit::is_exceeded(a) {
            fit::route_nothing::<O>(a, chunk);
            return Ok(());
        }
        observe::tell::<O>(a, watch, now)?;
    }
    // The free edges order the owners' reads with this block's bulk stores.
    let free = acquired.for_bulk_copies();
    if O::BY_EXPERT {
        by_expert::send::<R, O>(a, chunk, &free);
    } else {
        send::send::<R>(a, chunk, &free);
    }
    Ok(())
}

/// Waits until every rank has entered and told its counts.
#[inline(always)]
fn agree<O: Order>(a: &DispatchArgs, watch: &wait::Watch, now: Now) -> Result<wait::Acquired, fault::Stopped> {
    let (window, counted) = (a.op.window(), count::counted(a, now));
    O::begin(&counted, &a.found());
    let acquired = a.op.entry.meet(window, watch, Kind::Dispatch)?;
    let _counts = O::wait(&counted, &a.found(), watch)?;
    a.counts.stop_if_bad(window, now.dispatch, a.found().bad.load_weak(0))?;
    Ok(acquired)
}
