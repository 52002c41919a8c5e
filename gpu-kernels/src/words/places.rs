//! Place words: how many tokens there are, and where the rows of a block's first ones lie at the reader, told while the rows are on their way.
use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

use super::wide::Wide;
use crate::layout::WARPS;

/// Words `[peers][blocks][of a block]` in every peer's window: how many tokens the source dispatches, and of the block's first ones the row here of each
/// selection, or [`NOWHERE`](Self::NOWHERE). Each is told in halves, above 48 bits of the operation's number. A word is all that it publishes, so it is stored relaxed, and who looks
/// needs no flag. Of the rows not all are written, where a block has fewer tokens, so they have so much of the number that none comes again: not in 89 years of 100,000 operations a second.
///
/// They come before the block's landed word, which publishes the same elsewhere: who does not find them early reads that.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct PlaceWords {
    words: Region<u64>,
    top_k: u32,
    /// Numbers that a block tells a peer.
    of_block: u32,
    /// Numbers that all of a source's blocks tell.
    of_source: u32,
    /// Fills the struct to a multiple of 8 bytes.
    reserved: u32,
}

/// What was seen of a number that is told in two words.
#[derive(Clone, Copy, Debug)]
struct Seen([u64; 2]);

impl PlaceWords {
    /// No row here.
    pub const NOWHERE: u32 = u32::MAX;

    /// The words at `words`, of so many `ranks`, and grids of at most so many blocks.
    pub const fn new(words: Region<u64>, ranks: u32, blocks: u32, top_k: u32) -> Self {
        let of_block = 1 + Self::first(ranks) * top_k;
        Self { words, top_k, of_block, of_source: blocks * of_block, reserved: 0 }
    }

    /// Words of a window.
    pub fn count(ranks: u32, blocks: u32, top_k: u32) -> Option<u64> {
        (u64::from(ranks) * u64::from(blocks)).checked_mul(2 * (1 + u64::from(Self::first(ranks)) * u64::from(top_k)))
    }

    /// Of how many of a block's tokens rows are told: the warps that copy on have one each, of other ranks in turn.
    const fn first(ranks: u32) -> u32 {
        if ranks < 2 { 0 } else { WARPS.div_ceil(ranks - 1) }
    }

    /// Whether a block's token `nth` is one whose rows are told.
    #[inline(always)]
    pub fn is_first(&self, nth: u32) -> bool {
        1 + nth * self.top_k < self.of_block
    }

    /// Tells a peer which of its rows selection `position` of this block's token `nth` has, which is one of the first. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn tell(&self, window: Window, number: u64, peer: Peer, (nth, position): (u32, u32), row: u32) {
        self.store(window, number, peer, 1 + nth * self.top_k + position, row);
    }

    /// Tells a peer how many tokens this rank dispatches. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn tell_tokens(&self, window: Window, number: u64, peer: Peer, tokens: u32) {
        self.store(window, number, peer, 0, tokens);
    }

    /// What a peer's block of this number has told of where selection `position` of its token `nth` has its row here, if it has. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn row(&self, window: Window, number: u64, peer: Peer, (nth, position): (u32, u32)) -> Option<u32> {
        self.load(window, peer, 1 + nth * self.top_k + position).number(number)
    }

    /// How many tokens a peer dispatches, if its block of this number has told. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn tokens(&self, window: Window, number: u64, peer: Peer) -> Option<u32> {
        self.load(window, peer, 0).number(number)
    }

    #[inline(always)]
    #[track_caller]
    fn store(&self, window: Window, number: u64, peer: Peer, of_block: u32, told: u32) {
        let (to, at) = (window.of(peer, self.words), self.index(window.me, of_block));
        unroll!(I in 2 => {
            to.store_relaxed::<System>(at + I as u64, Wide::word(number, told >> (16 * I) & 0xffff));
        });
    }

    #[inline(always)]
    #[track_caller]
    fn load(&self, window: Window, peer: Peer, of_block: u32) -> Seen {
        let (own, at) = (window.own(self.words), self.index(peer, of_block));
        Seen([own.load_relaxed::<System>(at), own.load_relaxed::<System>(at + 1)])
    }

    /// The first word of number `of_block` of those that this block of a source tells.
    #[inline(always)]
    fn index(&self, source: Peer, of_block: u32) -> u64 {
        2 * u64::from(source.0 * self.of_source + thread::block_index() * self.of_block + of_block)
    }
}

impl Seen {
    /// The number that is told, if both words are of operation `operation`.
    #[inline(always)]
    fn number(self, operation: u64) -> Option<u32> {
        let Seen([low, high]) = self;
        (Wide::is_of(low, operation) && Wide::is_of(high, operation)).then(|| Wide::bits(high) << 16 | Wide::bits(low))
    }
}

#[cfg(test)]
mod tests {
    use super::{PlaceWords, Seen, Wide};

    /// Half a number, and a number of another operation, are none.
    #[test]
    fn a_number_is_told_by_two_words_of_the_same_operation() {
        let number = (1 << 48) + 7;
        for told in [0, 1, 0xffff, 0x1_0000, 0x1234_5678, PlaceWords::NOWHERE] {
            let halves = |low: u64, high: u64| Seen([Wide::word(low, told & 0xffff), Wide::word(high, told >> 16)]);
            assert_eq!(halves(number, number).number(number), Some(told));
            assert_eq!(halves(number, number - 1).number(number), None);
            assert_eq!(halves(number - 1, number).number(number), None);
            assert_eq!(halves(number - 1, number - 1).number(number), None);
        }
        assert_eq!(Seen([0; 2]).number(number), None, "words are zero before their first use");
    }

    /// Rows are told of as many tokens as warps look for: each copies on one of another rank, in turn.
    #[test]
    fn a_warp_has_its_first_token_told() {
        for ranks in 2..=64 {
            let last = super::WARPS - 1;
            assert_eq!(PlaceWords::first(ranks), last / (ranks - 1) + 1, "{ranks} ranks");
        }
        assert_eq!(PlaceWords::count(2, 8, 4), Some(2 * 8 * 2 * (1 + 16 * 4)));
        assert_eq!(PlaceWords::count(5, 8, 4), Some(5 * 8 * 2 * (1 + 4 * 4)));
    }
}
