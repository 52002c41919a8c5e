//! A bound on what is received, and the words that say what became of it. [`crate::dispatch`] keeps it.
use epoxide_dsl::prelude::*;

/// What there is room for.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct Bound {
    /// No address where there is no bound; `[3]`: the first dispatch that did not fit, of those that nobody was told of: its epoch, 0 if there is none; rank and expert; wanted
    /// rows.
    pub overflow: Global<u64>,
    /// u32 `[local experts]`, where each expert has a slab: how many of its last rows are marked as padding, by the dispatches into this routing slot so far.
    pub marked: Global<u32>,
    /// Rows of a rank; of an expert where each has a slab.
    pub capacity: u32,
    /// 1 where each expert has a slab.
    pub slabs: u32,
    /// 1 where selections that do not fit are dropped.
    pub drops: u32,
    /// Fills the struct to a multiple of 8 bytes.
    pub reserved: u32,
}

/// Words behind a slot's received counts: see [`word`].
pub const WORDS: u32 = 8;

/// Which word behind a slot's received counts says what.
pub mod word {
    /// 1 if the dispatch did not fit and moved nothing; then the next ones say more.
    pub const EXCEEDED: u32 = 0;
    /// The lowest rank that has too little room.
    pub const RANK: u32 = 1;
    /// The lowest expert of it that has too little, where each has a slab, or `u32::MAX`.
    pub const EXPERT: u32 = 2;
    /// How many rows it was to get.
    pub const WANTED: u32 = 3;
    /// The low half of the dispatch's epoch.
    pub const EPOCH_LOW: u32 = 4;
    /// The high half.
    pub const EPOCH_HIGH: u32 = 5;
    /// Selections of this rank's experts that were dropped.
    pub const DROPPED: u32 = 6;
    /// Selections of all experts that were dropped.
    pub const DROPPED_IN_ALL: u32 = 7;
}

impl Bound {
    /// Whether there is a bound.
    #[inline(always)]
    pub fn is_set(&self) -> bool {
        self.overflow.address() != 0
    }

    /// How many of `count` rows behind `before` others an expert keeps.
    #[inline(always)]
    pub fn kept(&self, before: u32, count: u32) -> u32 {
        (before + count).min(self.capacity) - before.min(self.capacity)
    }
}
