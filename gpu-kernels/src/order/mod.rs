//! Orders: in which order rows lie where they are received.
mod by_expert;
mod compact;
mod owned;

pub use by_expert::ByExpert;
pub use compact::Compact;
pub use owned::Owned;

use epoxide_dsl::prelude::*;

use crate::bound::Bound;
use crate::placement::Placement;
use crate::words::{CountMatrix, EntryWords};

/// Which row is a copy's, as it is found in three steps: among the rows that a warp counts, that a rank sends, that a rank receives.
///
/// No step depends on timing, and a place costs steps of its token's selections, not of the ranks.
pub trait Order {
    /// Whether a row is of one selection, so that rows are numbered for each expert; else for each rank.
    const BY_EXPERT: bool;
    /// Whether somebody looks at the counts: because there may be more rows than room, or to be told them early, or to add them up. An instance of
    /// its own, so that who does not ask pays nothing.
    const OBSERVED: bool;

    /// Clears what [`Self::meet`] fills, and before it who adds up what blocks have counted. Block-collective; the block meets before it waits.
    fn begin(placement: Placement, bound: &Bound, found: &Found);

    /// Waits until every rank is in this dispatch, by its `entry` word, and until the counts are here that rows follow from, and finds the first rank with a bad
    /// selection. Block-collective, uniform.
    ///
    /// # Errors
    ///
    /// That the block stops.
    fn meet(counted: &Counted, entry: &EntryWords, found: &Found, watch: &wait::Watch) -> wait::Outcome;

    /// Completes `found`: the first row of this rank's for each key, where it is received, and for whose rows there is no room. Block-collective; where
    /// anything is left to do the block meets at its end.
    fn bases(counted: &Counted, found: &Found);

    /// Which counters peers are told: from the first on, so many.
    #[inline(always)]
    fn told(counts: &CountMatrix) -> (u32, u32) {
        // Where rows are of one selection, nobody asks for tokens by rank.
        let first = if Self::BY_EXPERT { counts.first_bad() } else { 0 };
        (first, counts.counters() - first)
    }

    /// How many keys there are, and which counter is of the first.
    #[inline(always)]
    fn keys(counts: &CountMatrix) -> (u32, u32) {
        let first = counts.of_expert(0);
        if Self::BY_EXPERT { (counts.counters() - first, first) } else { (counts.first_bad(), 0) }
    }
}

/// What rows follow from, once [`Order::meet`] is over.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// The counts.
    pub counts: CountMatrix,
    /// Where they lie.
    pub window: Window,
    /// The number of the dispatch.
    pub number: u64,
    /// Which rank owns which expert.
    pub placement: Placement,
    /// Rows to whose multiples an expert's rows are padded.
    pub alignment: u32,
    /// What there is room for, where that may be too little.
    pub bound: Bound,
}

/// Where a block keeps what it found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// `[keys]`.
    pub bases: Shared<u32>,
    /// `[experts]`; only where rows lie by expert.
    pub totals: Shared<u32>,
    /// What is known of this rank's experts; only where rows lie by expert.
    pub owned: Owned,
    /// `[1]`: the first rank with a bad selection; `u32::MAX` where there is none, as it is before.
    pub bad: Shared<u32>,
    /// `[1]`: 0, or 1 where some rank was found in another operation.
    pub apart: Shared<u32>,
    /// `[1]`: the first rank, or where each expert has its room, expert, for whose rows there is none; `u32::MAX` where there is none
    /// such. Only where there is a bound.
    pub over: Shared<u32>,
}
