//! Reducing: what experts made of packed rows is summed to a row for each received one, in its fixed place, from where a combine takes it.
//!
//! There is no protocol: a rank works on its own rows, which [`pack`](crate::rank_major::pack) has laid, behind its experts on the stream and before its
//! combine, whose entry word says that they are ready. (A combine that sums them itself has one: [`packed`](crate::rank_major::packed).) Peers have read what
//! the combine before left there: this rank's dispatch since then was behind a word of each of them that said so.
//!
//! The sum is that of a rank where rows lie by expert: in f32, from +0, in ascending position of the selections, each output multiplied by its gate
//! weight and the product rounded to f32 if they are gated, rounded once to BF16. A selection that was dropped adds nothing; of a token
//! of which all were, the row is +0.
use epoxide_dsl::prelude::*;

use super::args::CombineArgs;
use super::options::Weighed;
use super::parts::{Part, Parts};
use super::sum_own::{self, Rows};
use super::{source, sum, sum_with};
use crate::grid_warps;
use crate::rank_major::NO_ROW;

/// Arguments of [`reduce_rows`](crate::entries_packed::reduce_rows).
///
/// Launch contract: `topk`, `places` and `weights` are those of the dispatch in this slot and of its packing, behind both on the stream; nobody writes `outputs`
/// meanwhile, and nothing else touches `expert_out`.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct ReduceArgs {
    /// `[1]`: the number of the dispatch; 0 if it failed.
    pub routing: Global<u64>,
    /// i32 `[rows][top_k_stride]`: local experts, or -1.
    pub topk: Global<i32>,
    /// f32 `[rows][top_k_stride]`: gate weights.
    pub weights: Global<f32>,
    /// u32 `[rows][top_k_stride]`: which packed row each selection has become.
    pub places: Global<u32>,
    /// BF16 `[packed rows][hidden]`: what the experts made of them.
    pub outputs: Global<u8>,
    /// BF16 `[rows][hidden]`: written, for rows that were received.
    pub expert_out: Global<u8>,
    /// Fixed places.
    pub rows: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// Words from one row's selections to the next's.
    pub top_k_stride: u32,
    /// Elements of a row, a multiple of 8.
    pub hidden: u32,
}

/// Sums all rows, a warp for each or for a part of one.
#[inline(always)]
pub(crate) fn run(a: &ReduceArgs) {
    // It waits for nobody, so its blocks are all there soon.
    grid::let_the_next_one_begin();
    let parts = Parts::new(a.hidden, a.rows);
    let mut number = grid_warps::index();
    let routing = a.routing.load_weak(0);
    let mut next = Selection::load::<false>(a, parts.token(number));
    if routing == 0 {
        return;
    }
    while parts.token(number) < a.rows {
        let (of_part, row, selection) = (number, parts.token(number), next);
        number += grid_warps::count();
        // The next one's selections are on their way while this one is summed.
        next = Selection::load::<false>(a, parts.token(number));
        selection.sum::<false>(a, row, parts.vectors(of_part, a.hidden));
    }
}

/// What a lane knows of one selection of a row.
#[derive(Clone, Copy)]
pub(crate) struct Selection {
    /// The expert of this rank, or -1.
    pub expert: i32,
    /// The packed row, or [`NO_ROW`].
    pub place: u32,
    /// Its gate weight, where that was asked for.
    pub weight: f32,
}

impl Selection {
    /// Of no row.
    pub(crate) const NONE: Self = Self { expert: -1, place: NO_ROW, weight: 0.0 };

    /// This lane's selection of the row in a place; none of a place beyond all.
    #[inline(always)]
    pub(crate) fn load<const GATED: bool>(a: &ReduceArgs, row: u32) -> Self {
        let lane = warp::lane();
        let mut selection = Self::NONE;
        if row < a.rows && lane < a.top_k {
            selection.expert = a.topk.rows(a.top_k_stride).row(row).load_weak(lane);
            // Of another's it is whatever was there, as its weight is.
            let place = a.places.rows(a.top_k_stride).row(row).load_weak(lane);
            if selection.expert >= 0 {
                selection.place = place;
            }
            if GATED {
                selection.weight = a.weights.rows(a.top_k_stride).row(row).load_weak(lane);
            }
        }
        selection
    }

    /// Sums these vectors of the outputs of the row in a place, if it came, to there. Warp-collective.
    #[inline(always)]
    pub(crate) fn sum<const GATED: bool>(self, a: &ReduceArgs, row: u32, vectors: [u32; 2]) {
        if warp::ballot(warp::ALL, self.expert >= 0) == 0 {
            return;
        }
        let (bytes, is_one) = (a.hidden * 2, self.place != NO_ROW);
        let mut address = 0;
        if is_one {
            address = a.outputs.rows(bytes).row(self.place).address();
        }
        let (lanes, to) = (warp::ballot(warp::ALL, is_one), a.expert_out.rows(bytes).row(row).cast());
        if GATED {
            sum_with::sum_some_rows(vectors, Weighed { to, weight: self.weight }, lanes, address);
        } else {
            sum::sum_rows(vectors, to, lanes, address);
        }
    }
}

/// Sums these vectors of a token, of which each lane has a row of another rank, or of this one an output or one that was dropped. The outputs here are
/// summed and rounded first, and are added where the first of them has its turn, dropped or not. Warp-collective.
#[inline(always)]
pub(crate) fn sum_with(a: &ReduceArgs, pull: &CombineArgs, part: Part, vectors: [u32; 2], y: Global<U32x4>) {
    let is_own = part.rank == pull.op.window().rank().0 as i32;
    let mut address = 0;
    if is_own && part.row != NO_ROW {
        address = a.outputs.rows(a.hidden * 2).row(part.row).address();
    } else if !is_own {
        address = source(pull, part);
    }
    let others = warp::ballot(warp::ALL, address != 0 && !is_own);
    let (selected, mut own) = (warp::ballot(warp::ALL, is_own), warp::ballot(warp::ALL, address != 0 && is_own));
    // The first that was kept stands where the first selection does.
    let from = own.trailing_zeros() & (warp::LANES - 1);
    let moved = [address as u32, (address >> 32) as u32].map(|half| warp::shuffle(warp::ALL, half, from));
    if own != 0 {
        own = own & (own - 1) | selected & selected.wrapping_neg();
        if warp::lane() == selected.trailing_zeros() {
            address = u64::from(moved[1]) << 32 | u64::from(moved[0]);
        }
    }
    sum_own::sum_rows(vectors, y, Rows { own, others }, address);
}
