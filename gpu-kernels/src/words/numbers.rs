//! The numbers of operations and dispatches, which no two row slots share.

/// An operation's or a dispatch's number: they are counted in each row slot from 1, and the slot is in the upper 16 bits.
///
/// Kernels add 1 and know nothing of slots. A fault record, a routing, or what the host is told of counts so says by its number alone which slot
/// it is of; words, which lie in their slot, carry less of it or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// The row slot.
    pub row_slot: u32,
    /// Which one of it.
    pub count: u64,
}

/// Bits of the count: it takes 89 years to use them up, at 100,000 operations a second.
const COUNT_BITS: u32 = 48;

const _: () = assert!(crate::shape::MAX_ROW_SLOTS <= 1 << 15);

impl Number {
    /// As words and counters have it, and what a counter of the slot begins with, for a count of 0.
    pub const fn to_word(self) -> u64 {
        (self.row_slot as u64) << COUNT_BITS | self.count
    }

    /// Reads [`Self::to_word`].
    pub const fn from_word(word: u64) -> Self {
        Self { row_slot: (word >> COUNT_BITS) as u32, count: word & ((1 << COUNT_BITS) - 1) }
    }
}
