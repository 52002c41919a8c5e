//! What the host is told of a routing slot's counts, in memory that it can read while a kernel runs.

/// The first word of a slot: whose counts lie behind it, once they all do, or that its dispatch has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The number of the dispatch.
    pub dispatch: u64,
    /// Whether it has failed: the counts, if they came, are of no use.
    pub failed: bool,
}

impl Known {
    /// The word in memory.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.dispatch << 1 | self.failed as u64
    }
    /// Reads a word from memory; 0, before the first, is of no dispatch.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { dispatch: word >> 1, failed: word & 1 == 1 }
    }
}

/// Words of a slot with so many received counts, each [`Stamped`](super::Stamped) with the number of the dispatch: whole sectors of 32 bytes, so that
/// slots share none.
pub const fn known_words(counts: u32) -> u32 {
    (1 + counts).next_multiple_of(4)
}
