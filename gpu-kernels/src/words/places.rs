//! Place words: where the rows of a block's first tokens lie at the reader, told while the rows are on their way.
use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

use super::wide;
use crate::layout::WARPS;

/// Words `[peers][blocks][FIRST][top_k][2]` in every peer's window: of a block's first tokens, the row here of each selection, or [`NOWHERE`](Self::NOWHERE), in
/// halves, each above 48 bits of the operation's number. A word is all that it publishes, so it is stored relaxed, and who looks needs no flag. Words are not
/// written by a block that has fewer tokens, so they have so much of the number that none comes again: not in
/// 89 years of 100,000 operations a second.
///
/// They come before the block's landed word, which publishes the same in the handle: who does not find them early reads that.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct PlaceWords {
    words: Region<u64>,
    blocks: u32,
    top_k: u32,
}

/// What was seen of a selection's two words.
#[derive(Clone, Copy, Debug)]
pub struct SeenPlace([u64; 2]);

impl PlaceWords {
    /// How many of a block's tokens are told: between two ranks one for each warp that copies on; of more ranks a warp looks for its share.
    pub const FIRST: u32 = WARPS;
    /// No row here.
    pub const NOWHERE: u32 = u32::MAX;

    /// The words at `words`, of grids of at most so many blocks.
    pub const fn new(words: Region<u64>, blocks: u32, top_k: u32) -> Self {
        Self { words, blocks, top_k }
    }

    /// Words of a window.
    pub fn count(ranks: u64, blocks: u64, top_k: u64) -> Option<u64> {
        ranks.checked_mul(blocks)?.checked_mul(u64::from(Self::FIRST) * 2 * top_k)
    }

    /// Tells a peer which of its rows selection `position` of this block's token `nth` has. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn tell(&self, window: Window, number: u64, peer: Peer, (nth, position): (u32, u32), row: u32) {
        let (to, at) = (window.of(peer, self.words), self.index(window.me, nth, position));
        unroll!(I in 2 => {
            to.store_relaxed::<System>(at + I as u64, wide::word(number, row >> (16 * I) & 0xffff));
        });
    }

    /// Looks for what a peer's block of this number tells. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn look(&self, window: Window, peer: Peer, (nth, position): (u32, u32)) -> SeenPlace {
        let (own, at) = (window.own(self.words), self.index(peer, nth, position));
        SeenPlace([own.load_relaxed::<System>(at), own.load_relaxed::<System>(at + 1)])
    }

    #[inline(always)]
    fn index(&self, source: Peer, nth: u32, position: u32) -> u64 {
        let block = u64::from(source.0) * u64::from(self.blocks) + u64::from(thread::block_index());
        ((block * u64::from(Self::FIRST) + u64::from(nth)) * u64::from(self.top_k) + u64::from(position)) * 2
    }
}

impl SeenPlace {
    /// Not looked for.
    pub const NONE: Self = Self([0; 2]);

    /// The row, if both words are of this operation.
    #[inline(always)]
    pub fn row(self, number: u64) -> Option<u32> {
        let SeenPlace([low, high]) = self;
        (wide::is_of(low, number) && wide::is_of(high, number)).then(|| wide::bits(high) << 16 | wide::bits(low))
    }
}

#[cfg(test)]
mod tests {
    use super::{PlaceWords, SeenPlace, wide};

    /// Half a row, and a row of another operation, are none.
    #[test]
    fn a_row_is_told_by_two_words_of_the_same_operation() {
        let number = (1 << 48) + 7;
        for row in [0, 1, 0xffff, 0x1_0000, 0x1234_5678, PlaceWords::NOWHERE] {
            let halves = |low: u64, high: u64| SeenPlace([wide::word(low, row & 0xffff), wide::word(high, row >> 16)]);
            assert_eq!(halves(number, number).row(number), Some(row));
            assert_eq!(halves(number, number - 1).row(number), None);
            assert_eq!(halves(number - 1, number).row(number), None);
            assert_eq!(halves(number - 1, number - 1).row(number), None);
        }
        assert_eq!(SeenPlace::NONE.row(number), None, "words are zero before their first use");
    }
}
