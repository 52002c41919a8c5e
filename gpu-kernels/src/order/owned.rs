//! What a rank knows of its own experts' rows.
use epoxide_dsl::prelude::*;

/// Where the rows of this rank's experts begin, and how many they are, in a block's shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Owned {
    /// `[experts + 1]`, then `[experts]`; where there is a bound, then `[2]`.
    pub words: Shared<u32>,
    /// This rank's experts.
    pub experts: u32,
}

impl Owned {
    /// The first row of local expert `expert`; of the number of experts, the end of all rows.
    #[inline(always)]
    pub fn first(self, expert: u32) -> u32 {
        self.words.load_weak(expert)
    }
    /// The rows of local expert `expert`, without what pads them.
    #[inline(always)]
    pub fn count(self, expert: u32) -> u32 {
        self.words.load_weak(self.experts + 1 + expert)
    }
    /// How many selections were dropped, where there is a bound: of this rank's experts, then of all.
    #[inline(always)]
    pub fn dropped(self) -> Shared<u32> {
        self.words.at(2 * self.experts + 1)
    }
}
