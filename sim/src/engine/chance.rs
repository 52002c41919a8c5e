//! The one source of chance: numbers that a seed names.
//!
//! All that a seeded machine leaves to chance is drawn here. The schedule, the late copies and what shared memory holds at first
//! are drawn from the seed's own numbers; what the threads lose their turns by, from those that its first number names
//! ([`Chance::fork`]). Nothing else of a schedule is by chance: not the host's clock, no address, no order of a map.

/// Numbers after splitmix64: small, fast, and the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Chance {
    state: u64,
}

impl Chance {
    /// Starts the sequence that `seed` names.
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: mix(seed ^ 0x9E37_79B9_7F4A_7C15) }
    }

    /// A sequence of its own for another drawer, which this one's next number names.
    pub(crate) fn fork(&mut self) -> Self {
        Self::new(self.draw())
    }

    /// Of who never draws: a machine of the fast mode leaves its order to the host.
    pub(crate) fn none() -> Self {
        Self::new(0)
    }

    /// The next 64 random bits (splitmix64).
    pub(crate) fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.state)
    }

    /// A number below `limit`, which must not be 0.
    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        ((u64::from(self.draw() as u32) * u64::from(limit)) >> 32) as u32
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    /// A random set bit of `mask`, which must not be 0, as its index.
    pub(crate) fn bit_of(&mut self, mask: u32) -> u32 {
        let mut left = mask;
        for _ in 0..self.below(mask.count_ones()) {
            left &= left - 1;
        }
        left.trailing_zeros()
    }
}

/// The finaliser of splitmix64: every input bit reaches every output bit.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_of_reaches_every_set_bit_and_no_other() {
        let mut random = Chance::new(3);
        let mut seen = 0;
        for _ in 0..1000 {
            seen |= 1u32 << random.bit_of(0x8040_2011);
        }
        assert_eq!(seen, 0x8040_2011);
    }
}
