//! Words that carry the number of their operation.

/// A word that carries the number of the operation it belongs to, so that it needs no second flag and no reset.
///
/// It has half of the number, and so would be taken for one from 2^32 operations before. It is not, because whoever stamps words
/// with a number writes all of them each time that it counts (but for the details of a bad selection, whose stamp nobody looks at): of two words that alternate with the number, one is always of the
/// number two before. Entry words are of every operation and carry its epoch; counts are of dispatches alone, so they carry the
/// number of the dispatch. Before its first use a word has a stamp of the other parity ([`UNUSED_EVEN`]). Words with nothing to
/// say but their number are the whole number ([`Flags`](super::Flags)). Who skips a number skips two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// What it says.
    pub payload: u32,
    /// Low half of the number.
    pub number: u32,
}

/// What every byte of the words of even numbers holds before their first use: the stamp is odd. In those of odd numbers it is 0.
pub const UNUSED_EVEN: u8 = 1;

impl Stamped {
    /// Stamps `payload` with `number`.
    #[inline(always)]
    pub const fn new(payload: u32, number: u64) -> Self {
        Self { payload, number: number as u32 }
    }
    /// The word in memory.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        (self.payload as u64) << 32 | self.number as u64
    }
    /// Reads a word from memory.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { payload: (word >> 32) as u32, number: word as u32 }
    }
    /// Whether the word belongs to operation `number`.
    #[inline(always)]
    pub const fn is_of(self, number: u64) -> bool {
        self.number == number as u32
    }
}
