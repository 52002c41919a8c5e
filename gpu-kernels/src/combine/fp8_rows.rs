//! Combine of compact rows, where what crosses between ranks crosses in FP8.
//!
//! To the words of [`super`] comes one:
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | `reduced`² `[o][b]` at every rank, of `e` | block `b` of `o`, release | its share of the rows of `o` that cross is **there**, in `crossing` of o | all blocks, acquire, before the first row is pulled |
//!
//! Behind every rank's `entry` word an owner quantises what its experts made of other ranks' rows, each to the place of its number in `crossing`: codes and
//! scales as [`super::fp8_wire`] has them. Rows are dealt out to its blocks by their numbers, and to the blocks that pull them by their tokens at the
//! ranks that these are of, which the owner need not know: so who pulls waits for every block of every rank.
//!
//! A puller adds `code * scale`, the product rounded to f32, where it would add the BF16 row. The rows of its own rank do not cross, and are added as they
//! are. An entry word says that rows cross so: ranks that differ are out of step.
//!
//! Nobody reads `crossing` of the combine before any more: every peer posted its entry word after its own last operation was over.
use epoxide_dsl::prelude::*;

use super::args::{CombineArgs, CombineFp8Args};
use super::fp8_wire::{Crossed, store_quantized};
use super::options::{Ending, bring_weights};
use super::parts::{Part, Parts};
use super::{Sum, enter, source};
use crate::grid_warps;
use crate::words::{Kind, Phase};

/// Rows that a thread loads at once: for a fourth there are no registers.
const ROWS: usize = 3;

/// Vectors of a lane that are quantised at once.
const VECTORS: usize = 4;

impl Sum for CombineFp8Args {
    #[inline(always)]
    fn args(&self) -> &CombineArgs {
        &self.with.pull
    }

    #[inline(always)]
    fn kind(&self) -> Kind {
        if self.with.options.returning != 0 { Kind::CombineFp8Returning } else { Kind::CombineFp8 }
    }

    #[inline(always)]
    fn attempt(&self, watch: &wait::Watch, aborted: bool) -> Result<(), fault::Stopped> {
        let (a, window) = (self.args(), self.args().op.window());
        let (parts, _) = enter(self, watch, aborted)?;
        self.quantize();
        let flag = self.reduced.of_block(window, watch.epoch());
        let landed = bulk::land_without_copies();
        if let Some(flag) = flag {
            flag.post(&landed);
        }
        let _there = self.reduced.wait_for_all(window, watch, Phase::Reduced, watch.epoch())?;
        bring_weights(a, &self.with.options, |token, position| self.with.returned(token, position));
        // Not the next part's handle while one is summed, as in `sum_parts`: there are no registers for it.
        let mut number = grid_warps::index();
        while parts.token(number) < a.tokens {
            self.sum(parts.load(a, number), parts.token(number), parts.vectors(number, a.hidden));
            number += grid_warps::count();
        }
        Ok(())
    }

    #[inline(always)]
    fn sum(&self, part: Part, token: u32, vectors: [u32; 2]) {
        let a = self.args();
        let window = a.op.window();
        let own = part.rank == window.rank().0 as i32;
        let mut address = source(a, part);
        if address != 0 && !own {
            let peer = window.peer_of(Rank(part.rank as u32));
            address = window.of(peer, self.crossing).rows(self.row_bytes).row(part.row).address();
        }
        let lanes = warp::ballot(warp::ALL, address != 0);
        let in_bf16 = lanes & warp::ballot(warp::ALL, own);
        let ending = Ending::<false>::new(a, &self.with.options, token, 1.0);
        Crossed::<ROWS> { lanes, in_bf16, address, hidden: a.hidden }.sum(vectors, ending);
    }
}

impl CombineFp8Args {
    /// Quantises this warp's share of the rows that other ranks pull.
    #[inline(always)]
    fn quantize(&self) {
        let a = self.args();
        let window = a.op.window();
        // Rows of the own rank lie side by side.
        let (mut first, mut source) = (0, 0);
        while source < window.me.0 {
            source += 1;
            first += a.received.load_weak(source);
        }
        let own = a.received.load_weak(1 + window.me.0);
        let rows = a.received.load_weak(0) - own;
        let parts = Parts::new(a.hidden, rows);
        let mut number = grid_warps::index();
        while parts.token(number) < rows {
            let mut row = parts.token(number);
            if row >= first {
                row += own;
            }
            let from = window.own(a.expert_out).rows(a.hidden * 2).row(row).cast::<U32x4>();
            let to = window.own(self.crossing).rows(self.row_bytes).row(row).as_global();
            let [mut at, end] = parts.vectors(number, a.hidden);
            while at < end {
                let vector = at + warp::lane();
                let mut vectors = [[0; 4]; VECTORS];
                unroll!(V in 4 if vector + V as u32 * warp::LANES < end => {
                    vectors[V] = from.load_weak_streaming(vector + V as u32 * warp::LANES);
                });
                store_quantized(to, a.hidden, [at, end], &vectors);
                at += VECTORS as u32 * warp::LANES;
            }
            number += grid_warps::count();
        }
    }
}
