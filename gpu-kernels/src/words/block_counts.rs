//! What each block of a grid has counted, told to the other ones.
use epoxide_dsl::prelude::*;

use super::wide::Above;
use super::{BadSelection, CountMatrix};
use crate::shape::MAX_TOKENS;

/// Bits of the number of a dispatch in a word, below the count.
const STAMP_BITS: u32 = 40;
const _: () = assert!(MAX_TOKENS >> (64 - STAMP_BITS) == 0, "a word holds what a block counts");
type Word = Above<STAMP_BITS>;

/// Words `[blocks][counters + 1]` of a rank's own memory: the counters of the [`CountMatrix`], each above 40 bits of the number of the dispatch, and the block's first bad
/// selection. A word is all that it publishes, so who waits for those it needs waits for no barrier; where one says that there is a bad selection it is released behind that.
///
/// Not every dispatch writes all of them, so they have so much of the number that one would come again after 127 days of 100,000 operations a second.
#[derive(Clone, Copy, Debug)]
pub struct BlockCounts {
    words: Global<u64>,
    counts: CountMatrix,
    number: u64,
}

impl BlockCounts {
    /// The words at `words`, of the dispatch of this number.
    #[inline(always)]
    pub fn new(words: Global<u64>, counts: CountMatrix, number: u64) -> Self {
        Self { words, counts, number }
    }

    /// Words of a block, for so many counters.
    pub const fn of_block(counters: u64) -> Option<u64> {
        counters.checked_add(1)
    }

    #[inline(always)]
    fn index(&self, block: u32, word: u32) -> u64 {
        u64::from(block) * u64::from(self.counts.counters() + 1) + u64::from(word)
    }

    #[inline(always)]
    fn word(&self, count: u32) -> u64 {
        Word::word(self.number, count)
    }

    /// Tells what this block has counted, or the key of its first bad selection. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn tell(&self, counter: u32, count: u32) {
        let block = thread::block_index();
        let at = self.index(block, counter);
        if counter != self.counts.first_bad() {
            self.words.store_relaxed::<Gpu>(at, self.word(count));
        } else if !BadSelection::from_key(count).is_some() {
            self.words.store_relaxed::<Gpu>(at, self.word(0));
        } else {
            self.words.store_relaxed::<Gpu>(self.index(block, self.counts.counters()), count.into());
            self.words.store_release::<Gpu>(at, self.word(1));
        }
    }

    /// Looks for a block's counter; [`Self::came`] says whether it was there. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn look(&self, block: u32, counter: u32) -> wait::Poll {
        wait::Poll::relaxed::<Gpu>(self.words, self.index(block, counter), u32::MAX, self.word(0), |_| false)
    }

    /// What was seen of a block's counter, if it was there: the count, or the key of the first bad selection. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn came(&self, block: u32, counter: u32, seen: u64) -> Option<u32> {
        if !Word::is_of(seen, self.number) {
            return None;
        }
        let count = Word::bits(seen);
        if counter != self.counts.first_bad() {
            return Some(count);
        }
        if count == 0 {
            return Some(BadSelection::NONE.key());
        }
        // What it was released behind.
        let _seen = self.words.load_acquire::<Gpu>(self.index(block, counter));
        Some(self.words.load_relaxed::<Gpu>(self.index(block, self.counts.counters())) as u32)
    }
}
