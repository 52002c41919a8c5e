//! Combine where rows lie by expert: a token's several rows on one rank are summed there first, so that one crosses.
//!
//! # Protocol
//!
//! To the words of [`super`] comes one:
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | `reduced`² `[o]` at every rank, of `e` | the last block of `o` through the first half, release | the sums of `o`'s experts' rows are **there**, in `sums` of o | all blocks, acquire, before the first row is pulled |
//!
//! In the first half, behind every rank's `entry` word, an owner sums the rows of each token that has several here, and writes the sum
//! to `sums[source][token]`. Nobody reads those of the combine before any more: every peer posted its entry word after its own
//! last operation was over. In the second half every rank pulls one row of each rank that has some of a token: the sum, or the only one.
//! All blocks are resident together, and none waits for a `reduced` word before it has summed its share.
//!
//! The sum of a token on a rank is in f32, from +0, in ascending position of the selections, rounded once to BF16; on its own rank too.
//! The sum of those is as in [`super`].
use epoxide_dsl::prelude::*;

use super::args::{CombineArgs, CombineByExpertArgs};
use super::parts::Part;
use super::{Source, Sum, enter, sum, sum_parts};
use crate::dispatch::link;
use crate::grid_warps;
use crate::words::Phase;

/// A combine of rows that lie by expert.
pub(crate) trait ByExpert: Sum {
    /// What every such combine takes.
    fn sums(&self) -> &CombineByExpertArgs;

    /// Sums the rows of a token here to `to`: those at the addresses that the lanes of `sources` have, each with its row's number.
    /// Warp-collective.
    fn sum_at_owner(&self, to: Global<U32x4>, sources: u32, row: u32, address: u64);

    /// What is pulled beside the rows.
    #[inline(always)]
    fn beside(&self) {}
}

impl Sum for CombineByExpertArgs {
    #[inline(always)]
    fn args(&self) -> &CombineArgs {
        &self.pull
    }

    #[inline(always)]
    fn attempt(&self, watch: &wait::Watch) -> Result<(), fault::Stopped> {
        attempt(self, watch)
    }

    /// The sum of the rows of a rank that has several, the only one of another.
    #[inline(always)]
    fn source(&self, part: Part, token: u32) -> Source {
        let window = self.pull.op.window();
        let row_bytes = self.pull.hidden * 2;
        let same = warp::match_any(warp::ALL, part.rank as u32);
        let of_one = same.count_ones() == 1;
        let mut address = 0;
        if part.rank >= 0 && same.trailing_zeros() == warp::lane() {
            let peer = Peer(part.rank as u32);
            address = if of_one {
                window.of(peer, self.pull.expert_out).rows(row_bytes).row(part.row).address()
            } else {
                window.of(peer, self.sums).rows(row_bytes).row(window.me.0 * self.max_tokens + token).address()
            };
        }
        Source { address, of_one }
    }

    #[inline(always)]
    fn sum(&self, part: Part, token: u32, vectors: [u32; 2], sources: u32, source: Source) {
        self.pull.sum(part, token, vectors, sources, source);
    }
}

impl ByExpert for CombineByExpertArgs {
    #[inline(always)]
    fn sums(&self) -> &CombineByExpertArgs {
        self
    }

    #[inline(always)]
    fn sum_at_owner(&self, to: Global<U32x4>, sources: u32, _row: u32, address: u64) {
        sum::sum_some_rows([0, self.pull.hidden / 8], to, sources, address);
    }
}

/// A block's part: meets all ranks, sums what its experts made, and then what all did.
#[inline(always)]
pub(super) fn attempt<S: ByExpert>(rows: &S, watch: &wait::Watch) -> Result<(), fault::Stopped> {
    let a = rows.sums();
    let entered = enter(rows, watch);
    if entered.is_ok() {
        reduce(rows);
    }
    // Nothing was copied in bulk.
    let last = a.half.last_out(bulk::land_without_copies(), entered.is_err());
    let (parts, first) = entered?;
    let window = a.pull.op.window();
    if let Some(landed) = last.as_ref().and_then(grid::LastOut::landed) {
        watch.unless_aborted(Phase::End as u32)?;
        a.reduced.post(window, watch.epoch(), landed);
    }
    let _there = a.reduced.wait(window, watch, Phase::Reduced, watch.epoch())?;
    rows.beside();
    sum_parts(rows, parts, first);
    Ok(())
}

/// Sums this block's share of the tokens that have several rows here.
#[inline(always)]
fn reduce<S: ByExpert>(rows: &S) {
    let a = rows.sums();
    let window = a.pull.op.window();
    let (links, sources) = (window.own(a.link), window.own(a.source));
    let row_bytes = a.pull.hidden * 2;
    let (outputs, sums) = (window.own(a.pull.expert_out).rows(row_bytes), window.own(a.sums).rows(row_bytes));
    let mut turns = link::Turns::new(links, a.pull.received.load_weak(0), grid_warps::index(), grid_warps::count());
    while let Some((first, word)) = turns.next() {
        let mut source = 0;
        if link::is_first(word) {
            source = sources.load_weak(first + warp::lane());
        }
        // Where this lane's sum goes: a slot for every token of every rank.
        let slot = (source >> 32) as u32 * a.max_tokens + source as u32;
        let mut lanes = warp::ballot(warp::ALL, link::is_first(word));
        while lanes != 0 {
            let lane = lanes.trailing_zeros();
            lanes &= lanes - 1;
            let (others, other) = link::others(links, warp::shuffle(warp::ALL, word, lane));
            // The first row has the lane behind the others, and is summed first.
            let row = other.unwrap_or(first + lane);
            let row = warp::shuffle(warp::ALL, row, if warp::lane() == 0 { others } else { warp::lane() - 1 });
            let all = u32::MAX >> (warp::LANES - 1 - others);
            let to = sums.row(warp::shuffle(warp::ALL, slot, lane)).as_global().cast();
            rows.sum_at_owner(to, all, row, outputs.row(row).address());
        }
    }
}
