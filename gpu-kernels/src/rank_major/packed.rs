//! Combine of packed rows: what experts made of a token's rows here is summed to its fixed place, and ranks pull that.
//!
//! # Protocol
//!
//! The words are those of a combine in [`super`], and so is what a rank pulls. What is another is what an entry word says, and who posts it.
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | `entry`² `[o]` at every rank | the last block of `o` to [come](epoxide_dsl::grid::GridCounters::is_last_to_come), release | `o` is in combine `e`; the sums of its experts' outputs for the reader are **written**, by all blocks of `o` | all blocks, acquire, before the first row is pulled |
//!
//! A warp sums its share of others' rows to their places. Then its block *comes*: its threads have met, and one adds to a counter, acquire and release at
//! the GPU's scope. So the last to come has seen the sums of all blocks, and releases them with the entry words at the system's. A block waits for
//! all blocks of its own rank by way of that rank's entry word, so all are resident together. Behind the word a rank reads of what it received its own tokens' places alone, which only its own
//! next dispatch writes: a peer that has met it may already send others.
//!
//! Outputs of own rows are summed with what is pulled, where the token is, and go through no memory. Weighed ones do, while words travel: that publishes
//! nothing, as a thread pulls of its own rank what it has written itself (both divide the tokens alike).
//!
//! **Why places may be written** before anyone was met in this combine: nobody reads what the combine before left there. This rank's operation between the
//! two, a dispatch or a dispatch again of the slot, was complete when every rank's entry word of it was here, also where its rows left without that; and a
//! rank posts that word behind its own combine before, on its stream. A combine whose rows were kept has such an operation behind it as well, and a handle
//! is combined once. A masked rank reads nothing. After a dispatch that failed the slot has no routing: nothing is summed, and no word posted.
//!
//! Each block comes, whatever it has found, and passes later: so the last to pass clears both counters when nobody adds to them any more.
use epoxide_dsl::prelude::*;

use super::args::{CombineRankMajorArgs, NO_ROW};
use super::combine::{Pulled, is_silent, pull};
use crate::combine::reduce::{self, ReduceArgs, Selection};
use crate::combine::{Part, Parts};
use crate::grid_warps;
use crate::layout::WARPS;
use crate::words::Kind;

/// Arguments of a combine of packed rows.
///
/// Launch contract: those of both, but that the kernel itself is what touches `expert_out`, the own part of `combine.pull`'s region; and all blocks are resident together.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct CombinePackedArgs {
    /// What a combine takes.
    pub combine: CombineRankMajorArgs,
    /// What is summed before.
    pub reduce: ReduceArgs,
    /// Most tokens of a rank: as many places has each.
    pub max_tokens: u32,
    /// Fills the struct to a multiple of 8 bytes.
    pub reserved: u32,
}

/// Sums the outputs of packed rows, weighed if they are `GATED`, and then the ranks' sums.
#[inline(always)]
pub(crate) fn run<const GATED: bool>(a: &CombinePackedArgs) {
    let kind = if GATED { Kind::CombineGated } else { Kind::Combine };
    let op = &a.combine.pull.op;
    let watch = wait::Watch::begin(op.fault, op.next_epoch());
    let dispatch = a.combine.pull.routing.load_weak(0);
    let mut work = Work::new::<GATED>(a, false);
    // Others' rows, and then, if outputs are weighed, which takes too many registers where rows are pulled, the own ones: in a loop, so that the code is
    // there once.
    for own in thread::strided(0, 1 + u32::from(GATED), 1) {
        if dispatch != 0 {
            work.sum::<GATED>(a);
        }
        if own == 0 {
            // The first is on its way while the block meets.
            work = Work::new::<GATED>(a, true);
            block::sync();
            if warp::index() == WARPS - 1 {
                come(a, &watch, dispatch, kind);
            }
        }
    }
    if GATED {
        pull(&a.combine, &watch, kind, |_| (), a.combine.pull);
    } else {
        pull(&a.combine, &watch, kind, |_| (), WithOwn { a, first: work.next });
    }
}

/// What other ranks made of a token is summed with its outputs here, which go through no memory.
#[derive(Clone, Copy)]
struct WithOwn<'a> {
    a: &'a CombinePackedArgs,
    /// Of the own row of this warp's first part.
    first: Selection,
}

impl WithOwn<'_> {
    /// A part of which each lane has a row of another rank, an output here, or none.
    #[inline(always)]
    fn part(self, part: Part, selection: Selection) -> Part {
        let own = self.a.combine.pull.op.window().rank().0 as i32;
        if selection.expert >= 0 { Part { rank: own, row: selection.place, ..part } } else { part }
    }
}

impl Pulled for WithOwn<'_> {
    #[inline(always)]
    fn sum(self, parts: Parts, first: Part) {
        let (a, pull) = (self.a, &self.a.combine.pull);
        let mut part = self.part(first, self.first);
        while part.token < pull.tokens {
            let (token, vectors) = (part.token, parts.vectors_of(part.number, part.token, pull.hidden));
            reduce::sum_with(&a.reduce, pull, part, vectors, pull.y.rows(pull.hidden * 2).row(token).cast());
            // Not before: there are no registers for that.
            let next = parts.load(pull, part.number + grid_warps::count());
            let row = next.token;
            let row = if row < pull.tokens { place(a, true, row) } else { NO_ROW };
            part = self.part(next, Selection::load::<false>(&a.reduce, row));
        }
    }
}

/// Says that this block has summed all that others pull; if it is the last one, posts the entry words. Of one warp, whose block has met. Warp-collective.
#[inline(always)]
fn come(a: &CombinePackedArgs, watch: &wait::Watch, dispatch: u64, kind: Kind) {
    let (op, mut last) = (&a.combine.pull.op, false);
    let entry = op.entry.of_dispatch(dispatch);
    if warp::lane() == 0 {
        last = op.grid.is_last_to_come();
    }
    if warp::ballot(warp::ALL, last) != 0 {
        // What the first lane has seen of other blocks.
        warp::sync(warp::ALL);
        for peer in thread::strided(warp::lane(), op.window().peers, warp::LANES) {
            let unless = || is_silent(dispatch, watch);
            entry.release_unless(op.window(), Peer(peer), watch.epoch(), kind, unless);
        }
    }
}

/// A warp's share of the rows that came from others, or from its own rank.
#[derive(Clone, Copy)]
struct Work {
    /// Whether they are the own rank's.
    own: bool,
    /// How they are divided.
    parts: Parts,
    /// The part that comes next.
    number: u32,
    /// What this lane knows of its row.
    next: Selection,
}

impl Work {
    /// From the first on, which is on its way then.
    #[inline(always)]
    fn new<const GATED: bool>(a: &CombinePackedArgs, own: bool) -> Self {
        let number = grid_warps::index();
        let parts = Parts::new(a.reduce.hidden, rows(a, own));
        let mut work = Self { own, parts, number, next: Selection::NONE };
        work.next = work.load::<GATED>(a);
        work
    }

    #[inline(always)]
    fn load<const GATED: bool>(&self, a: &CombinePackedArgs) -> Selection {
        let row = self.parts.token(self.number);
        Selection::load::<GATED>(&a.reduce, if row < rows(a, self.own) { place(a, self.own, row) } else { NO_ROW })
    }

    /// Sums all. Warp-collective.
    #[inline(always)]
    fn sum<const GATED: bool>(&mut self, a: &CombinePackedArgs) {
        while self.parts.token(self.number) < rows(a, self.own) {
            let (part, selection) = (self.number, self.next);
            self.number += grid_warps::count();
            // The next one's selections are on their way while this one is summed.
            self.next = self.load::<GATED>(a);
            let vectors = self.parts.vectors(part, a.reduce.hidden);
            selection.sum::<GATED>(&a.reduce, place(a, self.own, self.parts.token(part)), vectors);
        }
    }
}

/// How many rows there may be of others, or are of its own tokens.
#[inline(always)]
fn rows(a: &CombinePackedArgs, own: bool) -> u32 {
    if own { a.combine.pull.tokens } else { a.reduce.rows - a.max_tokens }
}

/// The place of one of these rows.
#[inline(always)]
fn place(a: &CombinePackedArgs, own: bool, row: u32) -> u32 {
    let first = a.combine.pull.op.window().me.0 * a.max_tokens;
    if own {
        first + row
    } else if row < first {
        row
    } else {
        row + a.max_tokens
    }
}
