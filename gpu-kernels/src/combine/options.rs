//! Combine with options: what is added behind the ranks' rows, sums in f32, gate weights, and weights that travel back.
//!
//! The words are those of [`super`] and of `by_expert`; nothing here writes or awaits another. An entry word says whether rows are
//! gate-weighted and whether weights travel back, since owners have a part in both: ranks that differ in them are out of step.
//!
//! To the sum of the ranks' rows, which is in f32, are added the first bias, the second, and what was in `y`, in this order, as far as the
//! caller asks for them; then it is rounded once to BF16, or not at all where `y` is f32. What was in `y` is read by the lane that writes
//! there, before it does.
//!
//! Gate weights are those that the dispatch brought beside the rows. A rank's rows of a token are multiplied by them, each product rounded to f32,
//! and the products summed in f32 in ascending position, rounded once to BF16. Of several rows the owner makes that sum; an only row is
//! multiplied and rounded by who pulls it, who finds its weight beside it.
//!
//! Weights that travel back lie at the owners, beside the rows that were received, and are **ready** and **read** as the expert outputs
//! are. A compact row has a word for each selection of its token, of which the owner's are those with a local expert.
use epoxide_dsl::prelude::*;

use super::args::{CombineArgs, CombineByExpertArgs, CombineByExpertWithArgs, CombineOptions, CombineWithArgs};
use super::by_expert::{self, ByExpert, Ranks, addend};
use super::parts::Part;
use super::sum::{self, round};
use super::sum_with::{self, More, Terms};
use super::{Sum, enter, source, sum_parts};
use crate::grid_warps;
use crate::placement::quotient;
use crate::quantize::widen;
use crate::words::Kind;

impl Sum for CombineWithArgs {
    const SHORT_OF_REGISTERS: bool = true;

    #[inline(always)]
    fn args(&self) -> &CombineArgs {
        &self.pull
    }

    #[inline(always)]
    fn kind(&self) -> Kind {
        self.options.kind(false)
    }

    #[inline(always)]
    fn attempt(&self, watch: &wait::Watch, aborted: bool) -> Result<(), fault::Stopped> {
        let (parts, first) = enter(self, watch, aborted)?;
        bring_weights(&self.pull, &self.options, |token, position| self.returned(token, position));
        sum_parts(self, parts, first);
        Ok(())
    }

    #[inline(always)]
    fn sum(&self, part: Part, token: u32, vectors: [u32; 2]) {
        let address = source(&self.pull, part);
        let ending = Ending::<false>::new(&self.pull, &self.options, token, 1.0);
        sum_with::sum_rows(vectors, ending, warp::ballot(warp::ALL, address != 0), address);
    }
}

impl CombineWithArgs {
    /// What was returned for a selection; 0 where it is none. Per thread.
    #[inline(always)]
    pub(super) fn returned(&self, token: u32, position: u32) -> f32 {
        let (a, window, stride) = (&self.pull, self.pull.op.window(), self.options.top_k_stride);
        let (send_rank, send_row) = (a.send_rank.rows(a.top_k).row(token), a.send_row.rows(a.top_k).row(token));
        let mut value = 0.0;
        let mut first = 0;
        // The handle does not say which of the token's ranks a selection is of, but each of these knows its own. Eight at a time, so that
        // their answers are under way together.
        while first < a.top_k {
            let (mut ranks, mut rows, mut experts) = ([-1; 8], [0; 8], [-1; 8]);
            unroll!(J in 8 if first + (J as u32) < a.top_k => {
                ranks[J] = send_rank.load_weak(first + J as u32);
                rows[J] = send_row.load_weak(first + J as u32);
            });
            unroll!(J in 8 if ranks[J] >= 0 => {
                let topk = window.of(window.peer_of(Rank(ranks[J] as u32)), self.options.topk).rows(stride);
                experts[J] = topk.row(rows[J]).load_weak(position);
            });
            unroll!(J in 8 if experts[J] >= 0 => {
                let returned = window.of(window.peer_of(Rank(ranks[J] as u32)), self.options.returned).rows(stride);
                value = returned.row(rows[J]).load_weak(position);
            });
            first += 8;
        }
        value
    }
}

/// A combine with options of rows that lie by expert, gate-weighted or not.
pub(crate) struct ByExpertWith<'a, const GATED: bool>(pub &'a CombineByExpertWithArgs);

impl<const GATED: bool> Sum for ByExpertWith<'_, GATED> {
    const SHORT_OF_REGISTERS: bool = true;

    #[inline(always)]
    fn args(&self) -> &CombineArgs {
        &self.0.sums.pull
    }

    #[inline(always)]
    fn kind(&self) -> Kind {
        self.0.options.kind(GATED)
    }

    #[inline(always)]
    fn attempt(&self, watch: &wait::Watch, aborted: bool) -> Result<(), fault::Stopped> {
        by_expert::attempt(self, watch, aborted)
    }

    #[inline(always)]
    fn sum(&self, part: Part, token: u32, vectors: [u32; 2]) {
        let (pull, options) = (&self.0.sums.pull, &self.0.options);
        let (ranks, own) = (Ranks::of(part), pull.op.window().own(self.0.sums.sums));
        let mut address = 0;
        if part.rank == pull.op.window().rank().0 as i32 {
            address = super::source(pull, part);
        }
        let here = warp::ballot(warp::ALL, address != 0);
        if here.count_ones() > 1 {
            // As owners do for others. Each lane reads below what it writes here.
            let to = ranks.sum(&self.0.sums, own, token, here.trailing_zeros()).as_global().cast();
            self.sum_at_owner(vectors, to, here, part.row, address);
        }
        let source = addend(&self.0.sums, part, ranks, token);
        let mut weight = 1.0;
        // A sum has been weighed; an only row has not.
        if GATED && source.address != 0 && source.of_one {
            let weights = pull.op.window().of(pull.op.window().peer_of(Rank(part.rank as u32)), options.gates);
            weight = weights.load_weak(part.row);
        }
        let ending = Ending::<GATED>::new(pull, options, token, weight);
        sum_with::sum_rows(vectors, ending, warp::ballot(warp::ALL, source.address != 0), source.address);
    }
}

impl<const GATED: bool> ByExpert for ByExpertWith<'_, GATED> {
    #[inline(always)]
    fn sums(&self) -> &CombineByExpertArgs {
        &self.0.sums
    }

    #[inline(always)]
    fn sum_at_owner(&self, vectors: [u32; 2], to: Global<U32x4>, rows: u32, row: u32, address: u64) {
        if !GATED {
            return sum::sum_some_rows(vectors, to, rows, address);
        }
        let mut weight = 0.0;
        if rows >> warp::lane() & 1 != 0 {
            weight = self.0.sums.pull.op.window().own(self.0.options.gates).load_weak(row);
        }
        sum_with::sum_some_rows(vectors, Weighed { to, weight }, rows, address);
    }

    #[inline(always)]
    fn beside(&self) {
        bring_weights_by_expert(&self.0.sums.pull, &self.0.options);
    }
}

/// Fills the caller's weights where rows lie by expert: each selection has a row.
#[inline(always)]
pub(super) fn bring_weights_by_expert(a: &CombineArgs, options: &CombineOptions) {
    bring_weights(a, options, |token, position| {
        let at = token * a.top_k + position;
        let (rank, row) = (a.send_rank.load_weak(at), a.send_row.load_weak(at));
        if rank < 0 {
            return 0.0;
        }
        a.op.window().of(a.op.window().peer_of(Rank(rank as u32)), options.returned).load_weak(row)
    });
}

impl CombineOptions {
    /// What ranks agree on.
    #[inline(always)]
    fn kind(&self, gated: bool) -> Kind {
        match (gated, self.returning != 0) {
            (false, false) => Kind::Combine,
            (true, false) => Kind::CombineGated,
            (false, true) => Kind::CombineReturning,
            (true, true) => Kind::CombineGatedReturning,
        }
    }
}

/// Fills the caller's weights, a thread for each: what `returned` finds for a token's selection.
#[inline(always)]
pub(super) fn bring_weights(a: &CombineArgs, options: &CombineOptions, returned: impl Fn(u32, u32) -> f32) {
    if options.returning != 0 {
        let thread = grid_warps::index() * warp::LANES + warp::lane();
        // At most 2^24 tokens of 32 selections.
        for at in thread::strided(thread, a.tokens * a.top_k, grid_warps::count() * warp::LANES) {
            let token = quotient(at, a.top_k);
            options.weights.store_weak(at, returned(token, at - token * a.top_k));
        }
    }
}

/// The rows of a token at their owner: weighed if they are gated, and summed to a row.
#[derive(Clone, Copy)]
pub(super) struct Weighed {
    pub to: Global<U32x4>,
    /// That of this lane's row.
    pub weight: f32,
}

impl Terms for Weighed {
    const WEIGHED: bool = true;

    #[inline(always)]
    fn more(self) -> More {
        More::NONE
    }

    #[inline(always)]
    fn weight(self) -> f32 {
        self.weight
    }

    #[inline(always)]
    fn weigh(self, x: [f32; 8], weight: f32) -> [f32; 8] {
        x.map(|x| x * weight)
    }

    #[inline(always)]
    fn last(self, _vector: u32) -> [U32x4; 2] {
        [[0; 4]; 2]
    }

    #[inline(always)]
    fn store(self, vector: u32, sum: &[f32; 8]) {
        self.to.store_weak(vector, round(sum));
    }
}

/// A token's sum, with all options.
#[derive(Clone, Copy)]
pub(super) struct Ending<const GATED: bool> {
    /// BF16 rows of the caller's.
    more: More,
    /// The row of `y`.
    y: Global<U32x4>,
    /// Whether it is f32.
    wide: bool,
    /// Whether what is in an f32 row is added; a BF16 row is one of `more`.
    accumulate: bool,
    /// The weight of this lane's row.
    weight: f32,
}

impl<const GATED: bool> Ending<GATED> {
    #[inline(always)]
    pub(super) fn new(a: &CombineArgs, options: &CombineOptions, token: u32, weight: f32) -> Self {
        let (wide, accumulate) = (options.wide != 0, options.accumulate != 0);
        let row_bytes = a.hidden * 2;
        let y = a.y.rows(if wide { row_bytes * 2 } else { row_bytes }).row(token);
        let row = |bias: Optional<u8>| bias.get().map(|bias| bias.rows(row_bytes).row(token).address());
        let more = More::NONE.then(row(options.bias)).then(row(options.second_bias));
        let more = more.then((accumulate && !wide).then_some(y.address()));
        Self { more, y: y.cast(), wide, accumulate: accumulate && wide, weight }
    }
}

impl<const GATED: bool> Terms for Ending<GATED> {
    const WEIGHED: bool = GATED;

    #[inline(always)]
    fn more(self) -> More {
        self.more
    }

    #[inline(always)]
    fn weight(self) -> f32 {
        self.weight
    }

    #[inline(always)]
    fn weigh(self, x: [f32; 8], weight: f32) -> [f32; 8] {
        widen(round(&x.map(|x| x * weight)))
    }

    #[inline(always)]
    fn last(self, vector: u32) -> [U32x4; 2] {
        let mut last = [[0; 4]; 2];
        if self.accumulate {
            let y = self.y.at(vector * 2);
            last = [y.load_weak_streaming(0u32), y.load_weak_streaming(1u32)];
        }
        last
    }

    #[inline(always)]
    fn store(self, vector: u32, sum: &[f32; 8]) {
        if self.wide {
            let y = self.y.at(vector * 2);
            let [low, high] = [[sum[0], sum[1], sum[2], sum[3]], [sum[4], sum[5], sum[6], sum[7]]];
            y.store_weak(0u32, low.map(f32::to_bits));
            y.store_weak(1u32, high.map(f32::to_bits));
        } else {
            self.y.store_weak(vector, round(sum));
        }
    }
}
