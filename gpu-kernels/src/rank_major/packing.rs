//! A dispatch that packs: all of its blocks lay the rows that it brings by expert, as soon as they are there.
//!
//! # Protocol
//!
//! The words are those of [`super`], and so is what each says. When a block has sent, it receives too: it waits for the token words and the selection words, and
//! finds from them, in its own shared memory, where the rows of each expert and source rank begin; then it waits for the landings, and lays its share of the
//! rows. What the slot is said to have got (the selections and sources of rows, the counts, the index, the counts of packed rows) the receiving block writes alone.
//!
//! **Which place a row has** follows from the selection words: in its expert's part, behind the rows of earlier source ranks, and behind as many as there are
//! earlier tokens of its own rank that select the expert. That is the order of the index, which [`super::pack`] goes by. Where selections are dropped an expert
//! keeps the first `capacity_per_source` of each source rank.
//!
//! **Only the receiving block meets the entry words**, when no rank is in another operation. They say that ranks agree, and one block is enough to find that they do not:
//! all say whether they stop, and the slot has a routing if none does. That the landings which a block waits for come does not rest on the entry words: a rank whose tokens are told
//! is in this dispatch, and lands what it sends or says why not. A block that finds a rank in another operation meets them, and stops; and so does each
//! for a bad selection, behind which nobody need land anything.
//!
//! **The landings** of the next dispatch are not added before all blocks have looked: who adds them has found the slot free, so this rank's combine, or its next
//! dispatch, has begun, behind this kernel. The same holds for what the rows of it would overwrite.
//!
//! **The numbers** advance, and the slot's routing is written, when all blocks have passed, which each does when it has the landings or has stopped; nothing
//! can fail behind that. So a slot has a routing only if every block has laid its share, and otherwise all counts are 0: what the receiving block
//! wrote before it passed is seen by the last block to pass, which writes over it.
use epoxide_dsl::prelude::*;

use super::args::{DispatchRankMajorArgs, NO_ROW};
use super::pack::{self, PackArgs, Piece, Started};
use super::receive::{self, Found};
use super::{enter, send};
use crate::block_sums;
use crate::combine::Parts;
use crate::grid_warps;
use crate::layout::{THREADS, WARPS};
use crate::placement::quotient;
use crate::row::Row;
use crate::words::Source;

/// Arguments of a dispatch that packs.
///
/// Launch contract: those of both, of the same slots and the same shape; the shared memory is that of a shape that is packed.
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
    let mut sent = Ok(());
    let senders = if blocks > 1 { blocks - 1 } else { 1 };
    if block < senders {
        sent = send::send::<R>(a, &watch, number, (block, senders));
    }
    let found = Found::new(a);
    let came = match sent {
        Ok(()) => {
            receive::complete::<false, _>(a, &watch, number, found, receives, || prepare(packed, found, receives))
        }
        Err(stopped) => Err(stopped),
    };
    let started = came.as_ref().ok().map(|share| pack::start(to, share.first));
    // The block has met, so all its threads know the numbers. Its first rows are on their way meanwhile.
    let passed = (thread::index() == THREADS - 1).then(|| a.op.grid.pass(came.is_err()));
    let ended = match (came, started) {
        (Ok(share), Some(started)) => {
            lay_all(packed, found, share, started);
            Ok(())
        }
        (Ok(_), None) => Ok(()),
        (Err(stopped), _) => Err(stopped),
    };
    let mut failed = false;
    if let Some(passed) = passed
        && passed.is_last(a.op.grid)
    {
        failed = !passed.is_whole();
        receive::advance_by_thread(a, &watch, number, !failed);
    }
    if block::any(failed).get() {
        receive::write_no_counts(a);
        pack::write_no_counts(to);
    }
    if let Err(stopped) = ended {
        watch.file_of_grid(stopped, receives);
    }
}

/// What a warp packs: the parts of rows from its own number on.
#[derive(Clone, Copy)]
struct Share {
    /// How the rows of all tokens are divided among the warps.
    parts: Parts,
    /// How many tokens all ranks have.
    tokens: u32,
    /// Its first part.
    first: Piece,
}

/// Does what needs no rows: finds where they go, writes how many there will be, and what pads them. Returns this warp's share, whose first row is placed.
/// Block-collective.
#[inline(always)]
fn prepare(packed: &DispatchPackedArgs, found: Found, receives: bool) -> Share {
    let (a, to) = (&packed.dispatch, &packed.pack);
    // All ranks are in this dispatch, so all their blocks have their places on SMs, as this rank's have.
    grid::let_the_next_one_begin();
    let tokens = quotient(found.begins.load_weak(to.ranks), a.top_k);
    // As many bytes as so many elements of BF16.
    let share = Share { parts: Parts::new(to.row_bytes / 2, tokens), tokens, first: Piece::NONE };
    // On its way while the places are found.
    let (number, expert) = (grid_warps::index(), share.expert(packed, found, grid_warps::index()));
    begin_rows(packed, found);
    if receives {
        write_counts(to, found);
    }
    pad(to, found);
    Share { first: share.piece(packed, found, number, expert), ..share }
}

/// Finds where the rows of each expert begin, and among them those of each source rank. The block meets behind it.
#[inline(always)]
fn begin_rows(packed: &DispatchPackedArgs, found: Found) {
    let (a, to) = (&packed.dispatch, &packed.pack);
    let mut before = 0;
    // All threads take part in each turn: they meet.
    for turn in thread::strided(0, found.experts, THREADS) {
        let expert = turn + thread::index();
        let is_one = expert < found.experts;
        let mut rows = 0;
        if is_one {
            let mut kept = 0;
            for source in thread::strided(0, to.ranks, 1) {
                found.starts_of(expert).store_weak(source, kept);
                kept += to.kept(receive::ones(found, expert, source));
            }
            found.starts_of(expert).store_weak(to.ranks, kept);
            rows = if to.slab_rows != 0 { to.slab_rows } else { a.aligned(kept) };
        }
        let first = block_sums::before_this(found.of_warps, &mut before, rows);
        if is_one {
            found.firsts.store_weak(expert, first);
        }
        if thread::index() == 0 {
            found.firsts.store_weak(found.experts, before);
        }
        // Before the next turn's, and before warps read what threads have found.
        block::sync();
    }
}

/// Writes how many rows are packed: in all with what pads them, of each source rank, of each expert, and where those begin.
#[inline(always)]
fn write_counts(to: &PackArgs, found: Found) {
    let of_sources = to.to.counts.at(1);
    let of_experts = of_sources.at(to.ranks);
    for expert in thread::strided(thread::index(), found.experts, THREADS) {
        of_experts.store_weak(expert, found.starts_of(expert).load_weak(to.ranks));
    }
    for expert in thread::strided(thread::index(), found.experts + 1, THREADS) {
        of_experts.store_weak(found.experts + expert, found.firsts.load_weak(expert));
    }
    for source in thread::strided(warp::index(), to.ranks, WARPS) {
        let mut rows = 0;
        for expert in thread::strided(warp::lane(), found.experts, warp::LANES) {
            let starts = found.starts_of(expert);
            rows += starts.load_weak(source + 1) - starts.load_weak(source);
        }
        rows = warp::sum(warp::ALL, rows);
        if warp::lane() == 0 {
            of_sources.store_weak(source, rows);
        }
    }
    if thread::index() == 0 {
        to.to.counts.store_weak(0, found.firsts.load_weak(found.experts));
    }
}

/// Writes what pads the experts' rows: this warp's share.
#[inline(always)]
fn pad(to: &PackArgs, found: Found) {
    for expert in thread::strided(grid_warps::index(), found.experts, grid_warps::count()) {
        let first = found.firsts.load_weak(expert) + found.starts_of(expert).load_weak(to.ranks);
        pack::pad(to, first, found.firsts.load_weak(expert + 1));
    }
}

impl Share {
    /// Whose token a part's row is of; none if there is no such part.
    #[inline(always)]
    fn token(self, packed: &DispatchPackedArgs, found: Found, number: u32) -> Option<(u32, u32)> {
        let (token, top_k) = (self.parts.token(number), packed.dispatch.top_k);
        (token < self.tokens).then(|| {
            let source = receive::source_of(packed.pack.ranks, found, token * top_k);
            (source, token - quotient(found.begins.load_weak(source), top_k))
        })
    }

    /// This lane's expert of a part's row; -1 where it has none.
    #[inline(always)]
    fn expert(self, packed: &DispatchPackedArgs, found: Found, number: u32) -> i32 {
        let (a, lane) = (&packed.dispatch, warp::lane());
        match self.token(packed, found, number) {
            // It has come: the block has waited for it.
            Some((source, token)) if lane < a.top_k => a.selections.told(a.op.window(), source, token, lane).local(),
            _ => -1,
        }
    }

    /// Part number `number`, of whose row this lane's `expert` is, with the places of the row.
    #[inline(always)]
    fn piece(self, packed: &DispatchPackedArgs, found: Found, number: u32, expert: i32) -> Piece {
        let Some((source, token)) = self.token(packed, found, number) else { return Piece::NONE };
        let mut to = NO_ROW;
        if expert >= 0 {
            to = place(&packed.pack, found, expert as u32, (source, token));
        }
        let vectors = self.parts.vectors(number, packed.pack.row_bytes / 2);
        Piece { place: packed.dispatch.row(source, token), expert, to, vectors }
    }
}

/// Whose the row in a place is.
#[inline(always)]
fn source(a: &DispatchRankMajorArgs, place: u32) -> u64 {
    let peer = quotient(place, a.max_tokens);
    Source { rank: a.op.window().rank_of(Peer(peer)), token: place - peer * a.max_tokens }.to_word()
}

/// Which row a token's selection of an expert becomes, or [`NO_ROW`] if it is dropped. Per thread.
#[inline(always)]
fn place(to: &PackArgs, found: Found, expert: u32, (source, token): (u32, u32)) -> u32 {
    let earlier = found.ones_before(expert, source, token);
    if earlier >= to.capacity_per_source {
        return NO_ROW;
    }
    found.firsts.load_weak(expert) + found.starts_of(expert).load_weak(source) + earlier
}

/// Lays this warp's share, whose first part was started. Warp-collective.
#[inline(always)]
fn lay_all(packed: &DispatchPackedArgs, found: Found, share: Share, started: Started) {
    let (mut number, mut started) = (grid_warps::index(), started);
    loop {
        number += grid_warps::count();
        // The next one's selections are on their way while this one is laid.
        let expert = share.expert(packed, found, number);
        let place = started.piece.place;
        pack::lay(&packed.pack, started, || source(&packed.dispatch, place));
        if share.parts.token(number) >= share.tokens {
            return;
        }
        started = pack::start(&packed.pack, share.piece(packed, found, number, expert));
    }
}
