//! Dispatch: every token's row goes once to each rank that owns one of its experts.
//!
//! # Protocol
//!
//! Operation `e` (its *epoch*), which is the buffer's `d`-th dispatch (both are read from device memory by every block). All words
//! below lie in the *reader's* memory and carry `e` or `d`, so nothing is ever zeroed; those marked ² alternate with the parity of
//! what they carry: a rank can be one operation ahead of a peer, never two, because every operation waits for a word from every
//! peer. Counts, which dispatches alone write, carry half of `d`: each of them is written by every dispatch of its parity, so none is ever left
//! from so long ago that its stamp comes again ([`Stamped`](crate::words::Stamped)).
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | `counts`² `[s][..]` at every rank, of `d` | the blocks of `s`, relaxed: each word proves itself | distinct tokens of `s` per rank, selections per expert, its first bad selection or that there is none | the tokens per rank and the bad selection by all blocks, with the entry words, before the first row is written; the selections of the reader's experts by its last block, while rows are awaited; all by all blocks where somebody observes them |
//! | `block_counts[b]` in the rank's own memory, of `d`, where each block counts its own tokens and rows lie by source | block `b`, relaxed: each word [proves itself](crate::words::BlockCounts) | its tokens per rank, its selections per expert, whether it has a bad one, which it is released behind | all blocks, of the counters that they tell peers; by rank, of the blocks before them |
//! | `entry`² `[s]` at every rank, of `e` | the last block of `s`, before it counts: relaxed, [behind its launch](Symmetric::store_behind_launch) | `s` is in dispatch `e`; the receive regions of `s` are **free**: its consumers of the dispatch before were stream-ordered before this launch | all blocks, acquire, before the first row is written |
//! | `landings[s]` at rank r, of `d` | every block of `s` adds its part, release, with the token of its `wait_group 0`; relaxed if it had no token | all rows of `s` for r are **there** when it is `d` times the whole | the last block of r, acquire; r's consumers are stream-ordered after |
//!
//! When a dispatch completes, a rank may also write its expert outputs again: every peer's `entry` word of `e` was posted after
//! that peer's combine before was over, reads and all. (Who wants to write them earlier asks [`crate::lend`].)
//!
//! Why a row cannot be overwritten: rank s writes into r only after `entry[r]` of `e`, which r posts after its consumers of
//! the same regions; no two sources share a row, because the count matrix gives every (source, destination) its own range; no two
//! tokens of one source share a row, because a row's place in that range is the number of the source's earlier tokens
//! for the same destination.
//!
//! Why no part of a later dispatch is added while r waits: who adds has met r's entry word of it, which r posts when it has done with the words of the one before.
//!
//! Nobody waits for the last block out: its election and then one release for all took some 1 us more than a release in each block. Each block *passes* when it
//! has told its counts; the last one to pass clears the grid's counters, and files what all ranks find by themselves: nothing is left then that peers wait
//! for. The *last block* (of the highest number) advances the numbers when all has landed, or when it has stopped. It has waited for its own rank's parts too, so all blocks have read them before; when it has stopped it waits until all have
//! passed, who have read them at their entry. (If somebody has given up it does not, and a late block may read the next ones; it finds the abort word.)
//!
//! The routing (where each row went, and what r received with the rows) lies in one of the buffer's *slots*, the same on every rank: the entry
//! word says which. The last block (where rows lie by expert, the last one to pass) writes the number `d` there, by which later operations know it, or 0 if the dispatch failed.
//!
//! Why the order does not depend on timing: a row's place is a function of the count matrix and the token's number alone.
//!
//! A fault before the copy is seen by all blocks of all ranks in the same words, so no row is written; a timeout may leave
//! rows behind, but no whole landing and zero counts. A block that finds an abort word at its entry publishes nothing, and a block that stops adds no part. All
//! blocks find one that was set before the operation, so then nobody gets past this rank's entry word; of one that comes
//! just now some blocks may know and others not: then the parts are not whole. When every peer's
//! are the operation is whole, whatever happens to others.
//!
//! The first row of each warp, its selections and weights are on their way while the ranks meet; counts are added up as they come.
//!
//! Where tokens are few every block counts all of the rank's, which takes less than to add up what each has counted; nobody sees a difference. Where they are many each counts its own and tells
//! the others, who wait for the words that they need, and for no barrier: a word of `block_counts` is written over by the next dispatch alone, which is launched when this one is over.
//! The word of a bad selection is released after what goes with it, and who finds one acquires it.
//!
//! Counts and entry words are waited for together, as one after the other takes two looks. A rank in another operation may never tell its counts: its entry word ends
//! that wait.
//!
//! Where rows lie by expert (`by_expert`), all blocks read the selections by expert before the first row is written, and the tokens by
//! rank are not told. In place of `landings` every block posts a word of its own to the blocks of its number, which acquire it: `by_expert` has that protocol.
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

use crate::layout::PASSES;
use crate::order::Order;
use crate::row::Row;
use crate::words::Phase;
use args::{Chunk, Now};

/// Moves the rows.
#[inline(always)]
pub(crate) fn run<R: Row, O: Order>(a: &DispatchArgs) {
    let now = Now::load(a);
    let watch = wait::Watch::begin(a.op.fault, now.epoch);
    let chunk = Chunk::of_block(a.tokens);
    // First what takes longest to come.
    let begun = count::Begun::new(a, chunk);
    if !O::BY_EXPERT {
        send::prefetch::<R>(a, chunk);
    }
    let told = tell::<O>(a, &watch, now, chunk, begun);
    if O::BY_EXPERT {
        run_by_expert::<R, O>(a, &watch, chunk, told);
    } else {
        run_compact::<R, O>(a, &watch, chunk, told);
    }
}

/// A block's part where rows lie by source, which has `told` its counts or stopped.
#[inline(always)]
fn run_compact<R: Row, O: Order>(
    a: &DispatchArgs,
    watch: &wait::Watch,
    chunk: Chunk,
    told: Result<(), fault::Stopped>,
) {
    // Before this block passes, behind which they may be advanced; and not kept while it counts, for want of registers.
    let now = Now::load(a);
    // In all its threads.
    block::sync();
    let mut last = false;
    if thread::index() == PASSES {
        last = a.op.grid.pass(told.is_err()).is_last_and_says_so(a.op.grid);
    }
    let mut ended = told;
    if ended.is_ok() {
        ended = agree_and_send::<R, O>(a, watch, now, chunk);
    }
    let landing = a.landings.of_block(a.op.window(), (thread::block_index(), thread::grid_blocks()));
    // Of a block without tokens there is nothing to wait for.
    let waits = Chunk::of_block(a.tokens).is_some();
    // On its way while the copies are.
    let look = watch.look();
    let landed = bulk::land();
    if ended.is_ok() {
        ended = watch.found(look, Phase::End as u32).settle();
    }
    if ended.is_ok()
        && let Some(landing) = landing
    {
        landing.add(waits.then_some(&landed));
    }
    if thread::block_index() + 1 == thread::grid_blocks() {
        ended = finish::receive::<O>(a, watch, ended);
    }
    if let Err(stopped) = ended {
        watch.file_of_grid(stopped, block::any(last).get());
    }
}

/// A block's part where rows lie by expert, which has `told` its counts or stopped: both halves.
#[inline(always)]
fn run_by_expert<R: Row, O: Order>(
    a: &DispatchArgs,
    watch: &wait::Watch,
    chunk: Chunk,
    told: Result<(), fault::Stopped>,
) {
    let now = Now::load(a);
    let mut sent = told;
    if sent.is_ok() {
        sent = agree_and_send::<R, O>(a, watch, now, chunk);
    }
    let here = by_expert::exchange::<R, O>(a, watch, sent);
    // Nothing that comes reads the numbers, and what comes need not wait for the answer.
    let passed = (thread::index() == PASSES).then(|| a.op.grid.pass(here.is_err()));
    let mut ended = Ok(());
    match here {
        Ok((ahead, free)) => ahead.copy_on(by_expert::Crossed::of(a), &free),
        Err(stopped) => ended = Err(stopped),
    }
    bulk::leave();
    let (mut last, mut whole) = (false, false);
    if let Some(passed) = passed {
        (last, whole) = (passed.is_last(a.op.grid), passed.is_whole());
    }
    let last = block::any(last).get();
    if last {
        let closed = finish::close_by_expert::<O>(a, watch, block::any(whole).get());
        ended = ended.and(closed);
    }
    if let Err(stopped) = ended {
        watch.file_of_grid(stopped, last);
    }
}

/// Counts this block's tokens, and tells.
#[inline(always)]
fn tell<O: Order>(
    a: &DispatchArgs,
    watch: &wait::Watch,
    now: Now,
    chunk: Chunk,
    begun: count::Begun,
) -> Result<(), fault::Stopped> {
    count::enter(a, watch);
    // The answer is not needed before counts are published, and counting touches nothing that a peer sees.
    let look = watch.look();
    count::count::<O>(a, now, chunk, begun);
    if !count::each_counts_all(a) {
        if O::BY_EXPERT {
            let _counted = a.op.grid.sync(watch, Phase::Counted as u32)?;
        } else {
            // What it told is read before others' is added.
            block::sync();
            let _counted = count::add_up::<O>(a, watch, now)?;
        }
    }
    watch.found(look, Phase::Counted as u32).settle()?;
    count::publish::<O>(a, now);
    count::place_behind_earlier_blocks::<O>(a);
    Ok(())
}

/// Agrees with all ranks, and sends. The first rows are on their way meanwhile.
#[inline(always)]
fn agree_and_send<R: Row, O: Order>(
    a: &DispatchArgs,
    watch: &wait::Watch,
    now: Now,
    chunk: Chunk,
) -> Result<(), fault::Stopped> {
    // Counters lay where rows come to. Where rows lie by source the block has met since.
    if O::BY_EXPERT {
        block::sync();
    }
    let begun = send::Begun::<R>::new(a, chunk);
    match agree::<O>(a, watch, now, chunk) {
        Ok(Some(free)) => {
            if O::BY_EXPERT {
                by_expert::send::<R, O>(a, watch, chunk, begun, &free);
            } else {
                send::send::<R>(a, chunk, begun, &free);
            }
            Ok(())
        }
        Ok(None) => {
            begun.give_up();
            Ok(())
        }
        Err(stopped) => {
            begun.give_up();
            Err(stopped)
        }
    }
}

/// Waits until every rank has entered and told its counts, and finds all places. None if not all fit: then nothing is sent.
#[inline(always)]
fn agree<O: Order>(
    a: &DispatchArgs,
    watch: &wait::Watch,
    now: Now,
    chunk: Chunk,
) -> Result<Option<wait::BulkAccess>, fault::Stopped> {
    let (window, counted) = (a.op.window(), count::counted(a, now));
    let acquired = O::meet(&counted, &a.op.entry, &a.found(), watch)?;
    a.counts.stop_if_bad(window, now.dispatch, a.found().bad.load_weak(0))?;
    O::bases(&counted, &a.found());
    if O::OBSERVED {
        if fit::is_exceeded(a) {
            fit::route_nothing::<O>(a, now, chunk);
            return Ok(None);
        }
        observe::tell::<O>(a, now);
    }
    // The free edges order the owners' reads with this block's bulk stores.
    Ok(Some(acquired.for_bulk_copies()))
}
