//! A dispatch that packs: all of its blocks lay the rows that it brings by expert, as soon as they are there.
//!
//! # Protocol
//!
//! The words that ranks exchange are those of [`super`], and so is what each says. The receiving block does what it does there; of what it knows then it finds where each
//! row goes, and *says* so to the other blocks, by a word of the grid's counters. A block that has sent waits for that, and for the landings, and then lays
//! its share of the rows. The index is made with the places; rows by source rank, totals and what pads the index are written behind the word, as no block
//! waits for them: who passes last has seen them.
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | the grid's first counter | the receiving block, release | the selections of all places, the packed row of each selection, and how many packed rows each expert has from where on are written; or that they will not be | the other blocks, acquire |
//! | `landings[s]` | as in [`super`] | all rows of `s` are there | every block, acquire |
//! | the grid's second counter | each block, which has seen all landings or has stopped | it lays its share, or not | the last block to pass |
//!
//! **Which row a selection becomes** follows from the selection words: in its expert's part, behind the rows of earlier source ranks, and behind as many as there are
//! earlier tokens of its own rank that select the expert. That is the order of the index, which [`super::pack`] goes by. Where selections are dropped an expert
//! keeps the first `capacity_per_source` of each source rank.
//!
//! **Only the receiving block waits for words of other ranks** before that, where the slot is free without a wait, and files what is amiss; whatever becomes of it, it says so, and the others wait for no longer
//! than it does. Where it begins so late that they give up before, that is an error of theirs. Behind a bad selection it says that nothing is there, as the selections of places are not whole then. Ranks out of step it may find when it has said where
//! rows go: then the others find this rank's abort word while they wait for landings.
//!
//! **The landings** of the next dispatch are not added before all blocks have looked: who adds them has found the slot free, so this rank's combine, or its next
//! dispatch, has begun, behind this kernel. The same holds for what the rows of it would overwrite.
//!
//! **The numbers** advance, and the slot's routing is written, when all blocks have passed; nothing can fail behind that. So a slot has a routing only if
//! every block lays its share, and otherwise all counts are 0: what the receiving block wrote before it passed is seen by the last block to pass, which
//! writes over it.
use epoxide_dsl::prelude::*;

use super::args::{DispatchRankMajorArgs, NO_ROW};
use super::lay::{self, PackArgs, Piece};
use super::receive::{self, Found};
use super::{enter, send};
use crate::block_sums;
use crate::combine::Parts;
use crate::grid_warps;
use crate::layout::{THREADS, WARPS};
use crate::placement::quotient;
use crate::row::Row;
use crate::words::{Phase, Source};

/// Arguments of a dispatch that packs.
///
/// Launch contract: those of both, of the same slots and the same shape, of which a dispatch packs by itself, with its shared memory.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct DispatchPackedArgs {
    /// The dispatch.
    pub dispatch: DispatchRankMajorArgs,
    /// Where its rows are packed from and to.
    pub pack: PackArgs,
}

/// Moves the rows, and lays them by expert.
#[inline(always)]
pub(crate) fn run<R: Row>(packed: &DispatchPackedArgs) {
    let (a, to) = (&packed.dispatch, &packed.pack);
    let watch = wait::Watch::begin(a.op.fault, a.op.next_epoch());
    let number = a.dispatches.load_weak(0) + 1;
    let (block, blocks) = (thread::block_index(), thread::grid_blocks());
    let receives = block + 1 == blocks;
    if receives {
        enter(a, &watch);
    }
    let mut ended = Ok(());
    let senders = if blocks > 1 { blocks - 1 } else { 1 };
    if block < senders {
        ended = send::send::<R>(a, &watch, number, (block, senders));
    }
    let parts = Parts::new(to.row_bytes / 2, to.ranks * to.max_tokens);
    let (mut first, mut padding) = (Piece::NONE, [0; 2]);
    let mut came = false;
    if receives {
        let mut said = false;
        let keep = |found: Found, at, selection| found.keep_selection(a, at, selection);
        ended = receive::receive(a, &watch, number, ended, keep, |found| {
            said = place_rows(packed, found);
            if said {
                first = lay::placed(to, parts, grid_warps::index());
                padding = lay::padding_of(to, grid_warps::index());
                close_counts(packed, found);
            }
        });
        if !said {
            a.op.grid.say(false);
        }
        came = ended.is_ok();
    } else if ended.is_ok() {
        match a.op.grid.said(&watch, Phase::Placed as u32) {
            Ok(true) => {
                // Only where the rank has its GPU alone: all its blocks have their places on SMs once all say so.
                grid::let_the_next_one_begin();
                first = lay::placed(to, parts, grid_warps::index());
                padding = lay::padding_of(to, grid_warps::index());
                ended = a.landings.wait(a.op.window(), &watch, number).map(|_here| ());
                came = ended.is_ok();
            }
            Ok(false) => {}
            Err(late) => ended = Err(late),
        }
    }
    if came && to.experts > grid_warps::count() {
        lay::pad_others(to);
        // The counts have been read before this block passes.
        block::sync();
    }
    let started = lay::start(to, if came { first } else { Piece::NONE });
    // The block has met, so all its threads know the numbers. Its first rows are on their way meanwhile.
    let passed = (thread::index() == THREADS - 1).then(|| a.op.grid.pass(!came));
    if came {
        lay::pad(to, padding[0], padding[1]);
        lay::lay_share(to, parts, started, |place| source(a, place));
    }
    let mut failed = false;
    if let Some(passed) = passed
        && passed.is_last(a.op.grid)
    {
        failed = !passed.is_whole();
        receive::advance_by_thread(a, &watch, number, !failed);
    }
    if block::any(failed).get() {
        receive::write_no_counts(a);
        lay::write_no_counts(to);
    }
    if let Err(stopped) = ended {
        watch.file_of_grid(stopped, receives);
    }
}

/// Finds where rows go, and says so unless a selection is bad; the index is of the same order, and made with it, but for what pads it. Returns whether it has said so.
/// Block-collective, uniform.
#[inline(always)]
fn place_rows(packed: &DispatchPackedArgs, found: Found) -> bool {
    let (a, to) = (&packed.dispatch, &packed.pack);
    begin_rows(packed, found);
    for i in thread::strided(thread::index(), found.selections(), THREADS) {
        let ((source, token, position), selection) = found.kept_selection(a, i);
        if !selection.is_bad() && selection.local() >= 0 {
            let (row, expert) = (a.row(source, token), selection.local() as u32);
            let earlier = found.ones_before(expert, source, token);
            let entry = found.firsts.load_weak(expert) + found.starts_of(expert).load_weak(source) + earlier;
            a.index.store_weak(entry, row);
            let place = if to.slab_rows == 0 { entry } else { place_in_slab(to, found, expert, source, earlier) };
            to.to.places.rows(a.top_k_stride).row(row).store_weak(position, place);
        }
    }
    // Of a place with a bad selection the local expert is none.
    let whole = found.bad.load_weak(0) == u32::MAX;
    if whole {
        a.op.grid.say(true);
    }
    whole
}

/// Finds where each expert's part of the index begins, and in it the selections of each source rank; writes how many they are, and how many rows are packed of them from where
/// on. The block meets behind it, but for
/// the ends.
#[inline(always)]
fn begin_rows(packed: &DispatchPackedArgs, found: Found) {
    let (a, to) = (&packed.dispatch, &packed.pack);
    let [indexed, kept] = [a.recv_counts, to.to.counts].map(|counts| counts.at(1 + to.ranks));
    let mut before = 0;
    // All threads take part in each turn: they meet. A rank that has no expert has a turn too, in which the end is written.
    for turn in thread::strided(0, if found.experts == 0 { 1 } else { found.experts }, THREADS) {
        let expert = turn + thread::index();
        let is_one = expert < found.experts;
        let (mut selections, mut rows, mut entries) = (0, 0, 0);
        if is_one {
            for source in thread::strided(0, to.ranks, 1) {
                found.starts_of(expert).store_weak(source, selections);
                let of_source = receive::ones(found, expert, source);
                selections += of_source;
                rows += to.kept(of_source);
            }
            found.starts_of(expert).store_weak(to.ranks, selections);
            entries = a.aligned(selections);
        }
        let first = block_sums::before_this(found.of_warps, &mut before, entries);
        if is_one {
            found.firsts.store_weak(expert, first);
            indexed.store_weak(expert, selections);
            indexed.store_weak(found.experts + expert, first);
            kept.store_weak(expert, rows);
            kept.store_weak(found.experts + expert, if to.slab_rows != 0 { expert * to.slab_rows } else { first });
        }
        if thread::index() == 0 {
            found.firsts.store_weak(found.experts, before);
        }
        // Before the next turn's, and before who reads this.
        block::sync();
    }
    if thread::index() == 0 {
        let end = found.firsts.load_weak(found.experts);
        indexed.store_weak(2 * found.experts, end);
        kept.store_weak(2 * found.experts, if to.slab_rows != 0 { found.experts * to.slab_rows } else { end });
    }
}

/// Writes what nobody waits for: how many rows came, of each source rank and in all, and how many are packed of them, with what pads them; and what pads the index.
#[inline(always)]
fn close_counts(packed: &DispatchPackedArgs, found: Found) {
    let (a, to) = (&packed.dispatch, &packed.pack);
    receive::count_rows(a, found);
    for source in thread::strided(warp::index(), to.ranks, WARPS) {
        let mut rows = 0;
        for expert in thread::strided(warp::lane(), found.experts, warp::LANES) {
            let starts = found.starts_of(expert);
            rows += to.kept(starts.load_weak(source + 1) - starts.load_weak(source));
        }
        rows = warp::sum(warp::ALL, rows);
        if warp::lane() == 0 {
            to.to.counts.store_weak(1 + source, rows);
        }
    }
    for expert in thread::strided(thread::index(), found.experts, THREADS) {
        let end = found.firsts.load_weak(expert) + found.starts_of(expert).load_weak(to.ranks);
        for pad in thread::strided(end, found.firsts.load_weak(expert + 1), 1) {
            a.index.store_weak(pad, NO_ROW);
        }
    }
    if thread::index() == 0 {
        let end = found.firsts.load_weak(found.experts);
        to.to.counts.store_weak(0, if to.slab_rows != 0 { found.experts * to.slab_rows } else { end });
    }
}

/// Which row of its slab a source rank's selection of an expert becomes, of which so many are `earlier`, or [`NO_ROW`] if it is dropped. Per thread.
#[inline(always)]
fn place_in_slab(to: &PackArgs, found: Found, expert: u32, source: u32, earlier: u32) -> u32 {
    if earlier >= to.capacity_per_source {
        return NO_ROW;
    }
    let (mut row, starts) = (expert * to.slab_rows + earlier, found.starts_of(expert));
    for before in thread::strided(0, source, 1) {
        row += to.kept(starts.load_weak(before + 1) - starts.load_weak(before));
    }
    row
}

/// Whose the row in a place is.
#[inline(always)]
fn source(a: &DispatchRankMajorArgs, place: u32) -> u64 {
    let peer = quotient(place, a.max_tokens);
    Source { rank: a.op.window().rank_of(Peer(peer)), token: place - peer * a.max_tokens }.to_word()
}
