//! The count matrix: how many rows each rank sends to each, and how many selections each expert gets from it.
use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

use super::flags::slot;
use super::status::DETAIL_WORDS;
use super::{Phase, Stamped};
use crate::placement::quotient;

/// The matrix `[2 parities][peers][words]` in every peer's window, stamped with the number of the dispatch. A row is one source's:
/// its distinct tokens for each peer, its selections of each of the domain's experts, and the details of its bad selection.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct CountMatrix {
    words: Region<u64>,
    peers: u32,
    experts: u32,
}

impl CountMatrix {
    /// The matrix at `words`.
    pub const fn new(words: Region<u64>, peers: u32, experts: u32) -> Self {
        Self { words, peers, experts }
    }

    /// Words of a row for so many counters.
    pub const fn row_words(counters: u64) -> Option<u64> {
        counters.checked_add(DETAIL_WORDS as u64)
    }

    /// Counts in a row: those by peer, then those by expert.
    #[inline(always)]
    pub fn counters(&self) -> u32 {
        self.peers + self.experts
    }

    /// Which counter is of an expert.
    #[inline(always)]
    pub fn of_expert(&self, expert: u32) -> u32 {
        self.peers + expert
    }

    /// Gives counter `counter` of this rank to every peer. Relaxed: the word is all that it publishes. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn publish(&self, window: Window, number: u64, counter: u32, count: u32) {
        let (at, word) = (self.index(window, number, window.me, counter), Stamped::new(count, number).to_word());
        let mut first = 0;
        while first < window.peers {
            // Some addresses are on their way at a time: one after the other, each store would wait for the memory.
            unroll!(J in 4 if first + (J as u32) < window.peers => {
                window.of(Peer(first + J as u32), self.words).store_relaxed::<System>(at, word);
            });
            first += 4;
        }
    }

    /// Writes here what `peer` would publish that has no token. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn stand_in(&self, window: Window, peer: Peer, number: u64, counter: u32) {
        let word = Stamped::new(0, number).to_word();
        window.own(self.words).store_weak(self.index(window, number, peer, counter), word);
    }

    /// Gives the details of this rank's bad selection to a peer, before the entry word that says that there are some. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn publish_details(&self, window: Window, number: u64, peer: Peer, details: [u32; DETAIL_WORDS as usize]) {
        let row = window.of(peer, self.words);
        unroll!(I in 4 => {
            let at = self.index(window, number, window.me, self.counters() + I as u32);
            row.store_relaxed::<System>(at, Stamped::new(details[I], number).to_word());
        });
    }

    /// Waits for the counts by peer of every source. Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    pub fn wait_by_peer(&self, window: Window, watch: &wait::Watch, number: u64) -> wait::Outcome {
        self.wait(window, watch, number, 0, self.peers)
    }

    /// Waits for the counts by expert of every source. Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    pub fn wait_by_expert(&self, window: Window, watch: &wait::Watch, number: u64) -> wait::Outcome {
        self.wait(window, watch, number, self.peers, self.experts)
    }

    /// Waits for `count` counters of every source, from the one numbered `first` on.
    #[inline(always)]
    #[track_caller]
    fn wait(&self, window: Window, watch: &wait::Watch, number: u64, first: u32, count: u32) -> wait::Outcome {
        let own = window.own(self.words);
        watch.wait_until(Phase::Counts as u32, window.peers * count, |flag| {
            let source = quotient(flag, count);
            let at = self.index(window, number, Peer(source), first + (flag - source * count));
            // Relaxed: the word is all that it publishes.
            let expected = Stamped::new(0, number).to_word();
            wait::Poll::relaxed::<System>(own, at, source, expected, |seen| Stamped::from_word(seen).is_of(number))
        })
    }

    /// Counter `counter` of `source`, which has come.
    #[inline(always)]
    #[track_caller]
    pub fn count(&self, window: Window, number: u64, source: Peer, counter: u32) -> u32 {
        let word = window.own(self.words).load_relaxed::<System>(self.index(window, number, source, counter));
        Stamped::from_word(word).payload
    }

    /// Detail `i` of `source`'s bad selection, after an entry word that says that there is one.
    #[inline(always)]
    #[track_caller]
    pub fn detail(&self, window: Window, number: u64, source: Peer, i: u32) -> u32 {
        self.count(window, number, source, self.counters() + i)
    }

    #[inline(always)]
    fn index(&self, window: Window, number: u64, source: Peer, word: u32) -> u64 {
        let row = slot::<2>(window, number, source);
        u64::from(row) * u64::from(self.counters() + DETAIL_WORDS) + u64::from(word)
    }
}
