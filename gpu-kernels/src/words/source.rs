//! Whose a received row is.
use epoxide_dsl::prelude::*;

/// Whose a received row is: the word beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Who dispatched it.
    pub rank: Rank,
    /// Which of its tokens it is of.
    pub token: u32,
}

impl Source {
    /// The word of a row that pads.
    pub const NOBODY: u64 = u64::MAX;

    /// The word: the rank in the upper half, the token in the lower.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        (self.rank.0 as u64) << 32 | self.token as u64
    }
}
