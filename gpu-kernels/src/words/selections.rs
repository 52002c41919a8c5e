//! Selection words: which of a rank's experts each token of each rank selects, told where rows have fixed places.
use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

use super::wide::Wide;
use super::{Phase, Stamped};
use crate::shape::MAX_EXPERTS;

/// What a token's selection is to one rank, in 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    bits: u32,
}

const _: () = assert!(MAX_EXPERTS < Selection::OUT_OF_RANGE.bits);

impl Selection {
    /// None of this rank's experts.
    pub const NONE: Self = Self { bits: 0 };
    /// Neither -1 nor an expert.
    pub const OUT_OF_RANGE: Self = Self { bits: 0xfffe };
    /// The token's expert for the second time.
    pub const REPEATED: Self = Self { bits: 0xffff };

    /// This rank's expert number `local`.
    #[inline(always)]
    pub const fn of_expert(local: u32) -> Self {
        Self { bits: local + 1 }
    }
    /// From its bits.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self { bits }
    }
    /// As 16 bits.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.bits
    }
    /// Whether no token may have it.
    #[inline(always)]
    pub const fn is_bad(self) -> bool {
        self.bits >= Self::OUT_OF_RANGE.bits
    }
    /// The local expert, or -1; of one that is not bad.
    #[inline(always)]
    pub const fn local(self) -> i32 {
        self.bits as i32 - 1
    }
}

/// Words `[peers][max_tokens][top_k]` in every peer's window, each with a [`Selection`] above 48 bits of the dispatch's number, and `[peers]` with
/// how many tokens a rank dispatches, stamped with it. A word is all that it publishes, so it is stored relaxed and needs no flag; that of a bad selection is
/// released behind its index. A token's words are not written where a rank has fewer tokens, so they have so much of the number that none comes
/// again: not in 89 years of 100,000 dispatches a second.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct SelectionWords {
    words: Region<u64>,
    tokens: Region<u64>,
    max_tokens: u32,
    top_k: u32,
}

impl SelectionWords {
    /// The words at `words`, and those of tokens at `tokens`.
    pub const fn new(words: Region<u64>, tokens: Region<u64>, max_tokens: u32, top_k: u32) -> Self {
        Self { words, tokens, max_tokens, top_k }
    }

    /// Tells a peer how many tokens this rank dispatches. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn tell_tokens(&self, window: Window, number: u64, peer: Peer, tokens: u32) {
        let word = Stamped::new(tokens, number).to_word();
        window.of(peer, self.tokens).store_relaxed::<System>(window.me, word);
    }

    /// Tells a peer what selection `position` of `token` is to it; of a bad one releases what this thread did before. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn tell(&self, window: Window, number: u64, peer: Peer, (token, position): (u32, u32), selection: Selection) {
        // In the place of one that is gone is this rank's own window, which has what is told to itself.
        if !window.is_there(peer) {
            return;
        }
        let (to, at) = (window.of(peer, self.words), self.index(window.me, token, position));
        let word = Wide::word(number, selection.bits());
        if selection.is_bad() {
            to.store_release::<System>(at, word);
        } else {
            to.store_relaxed::<System>(at, word);
        }
    }

    /// Writes here that `peer` dispatches no token. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn stand_in(&self, window: Window, peer: Peer, number: u64) {
        window.own(self.tokens).store_weak(peer, Stamped::new(0, number).to_word());
    }

    /// Waits until every rank has told how many tokens it dispatches, and gives each to `come`; but for a rank of which `never` says that it will not,
    /// which has none. Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    pub fn wait_tokens(
        &self,
        window: Window,
        watch: &wait::Watch,
        number: u64,
        come: impl Fn(u32, u32),
        never: impl Fn(u32) -> bool,
    ) -> wait::Outcome {
        let (own, expected) = (window.own(self.tokens), Stamped::new(0, number).to_word());
        watch.wait_until_each(Phase::Counts as u32, window.peers, |peer| {
            wait::Poll::relaxed::<System>(own, peer, peer, expected, |seen| {
                let word = Stamped::from_word(seen);
                let came = word.is_of(number);
                if came {
                    come(peer, word.payload);
                    return true;
                }
                let never = never(peer);
                if never {
                    come(peer, 0);
                }
                never
            })
        })
    }

    /// Waits for `count` words: number `i` is of the source, token and position that `which` says, and goes to `come` with them. Block-collective,
    /// uniform.
    #[inline(always)]
    #[track_caller]
    pub fn wait(
        &self,
        window: Window,
        watch: &wait::Watch,
        number: u64,
        count: u32,
        which: impl Fn(u32) -> (u32, u32, u32),
        come: impl Fn((u32, u32, u32), Selection),
    ) -> wait::Outcome {
        let (own, expected) = (window.own(self.words), Wide::word(number, Selection::NONE.bits()));
        watch.wait_until(Phase::Counts as u32, count, |i| {
            let (source, token, position) = which(i);
            let at = self.index(Peer(source), token, position);
            wait::Poll::relaxed::<System>(own, at, source, expected, |seen| {
                let came = Wide::is_of(seen, number);
                if came {
                    come((source, token, position), Selection::from_bits(Wide::bits(seen)));
                }
                came
            })
        })
    }

    /// A selection that has come, and is bad: what was released before its word is visible to this thread. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn acquire(&self, window: Window, source: u32, token: u32, position: u32) -> Selection {
        let at = self.index(Peer(source), token, position);
        Selection::from_bits(Wide::bits(window.own(self.words).load_acquire::<System>(at)))
    }

    #[inline(always)]
    fn index(&self, source: Peer, token: u32, position: u32) -> u64 {
        (u64::from(source.0) * u64::from(self.max_tokens) + u64::from(token)) * u64::from(self.top_k)
            + u64::from(position)
    }
}
