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
use super::{Sum, enter, sum, sum_parts};
use crate::dispatch::link;
use crate::grid_warps;
use crate::words::Phase;

impl Sum for CombineByExpertArgs {
    #[inline(always)]
    fn args(&self) -> &CombineArgs {
        &self.pull
    }

    #[inline(always)]
    fn attempt(&self, watch: &wait::Watch) -> Result<(), fault::Stopped> {
        let entered = enter(&self.pull, watch);
        if entered.is_ok() {
            reduce(self);
        }
        // Nothing was copied in bulk.
        let last = self.half.last_out(bulk::land_without_copies(), entered.is_err());
        let (parts, first) = entered?;
        let window = self.pull.op.window();
        if let Some(landed) = last.as_ref().and_then(grid::LastOut::landed) {
            watch.unless_aborted(Phase::End as u32)?;
            self.reduced.post(window, watch.epoch(), landed);
        }
        let _there = self.reduced.wait(window, watch, Phase::Reduced, watch.epoch())?;
        sum_parts(self, parts, first);
        Ok(())
    }

    /// The sum of the rows of a rank that has several, the only one of another.
    #[inline(always)]
    fn source(&self, part: Part, token: u32) -> u64 {
        let window = self.pull.op.window();
        let row_bytes = self.pull.hidden * 2;
        let same = warp::match_any(warp::ALL, part.rank as u32);
        let mut source = 0;
        if part.rank >= 0 && same.trailing_zeros() == warp::lane() {
            let peer = Peer(part.rank as u32);
            source = if same.count_ones() > 1 {
                window.of(peer, self.sums).rows(row_bytes).row(window.me.0 * self.max_tokens + token).address()
            } else {
                window.of(peer, self.pull.expert_out).rows(row_bytes).row(part.row).address()
            };
        }
        source
    }
}

/// Sums this block's share of the tokens that have several rows here.
#[inline(always)]
fn reduce(a: &CombineByExpertArgs) {
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
            let rows = u32::MAX >> (warp::LANES - 1 - others);
            let to = sums.row(warp::shuffle(warp::ALL, slot, lane)).as_global().cast();
            sum::sum_some_rows([0, a.pull.hidden / 8], to, rows, outputs.row(row).address());
        }
    }
}
