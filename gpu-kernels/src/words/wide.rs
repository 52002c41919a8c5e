//! Words that say something in the bits above a number of their operation, of so many bits that none comes again. For words that not every operation writes; where every one
//! does, half of a number is enough ([`Stamped`](super::Stamped)).

/// Words above so many bits of the number.
pub(super) struct Above<const NUMBER_BITS: u32>;

/// Words of 16 bits above 48 of the number: none comes a second time in 89 years of 100,000 operations a second.
pub(super) type Wide = Above<48>;

impl<const NUMBER_BITS: u32> Above<NUMBER_BITS> {
    /// The word in memory.
    #[inline(always)]
    pub(super) const fn word(number: u64, bits: u32) -> u64 {
        (bits as u64) << NUMBER_BITS | number << (64 - NUMBER_BITS) >> (64 - NUMBER_BITS)
    }

    /// Whether a word is of operation `number`.
    #[inline(always)]
    pub(super) const fn is_of(word: u64, number: u64) -> bool {
        word << (64 - NUMBER_BITS) == number << (64 - NUMBER_BITS)
    }

    /// What it says.
    #[inline(always)]
    pub(super) const fn bits(word: u64) -> u32 {
        (word >> NUMBER_BITS) as u32
    }
}
