//! The count matrix: how many rows each rank sends to each, and how many selections each expert gets from it.
use epoxide_dsl::KernelArg;
use epoxide_dsl::fault::Fault;
use epoxide_dsl::prelude::*;

use super::flags::slot;
use super::{BadSelection, EntryWords, Kind, Phase, Stamped};
use crate::placement::quotient;

/// Words behind the counts in a row of the count matrix: the low and high half of a bad selection's index.
const DETAIL_WORDS: u32 = 2;

/// The matrix `[2 parities][peers][words]` in every peer's window, stamped with the number of the dispatch. A row is one source's:
/// its distinct tokens for each peer, its first [`BadSelection`], its selections of each of the domain's experts, and details of the bad one.
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

    /// Counters of a row: those by peer, the bad selection, those by expert.
    pub const fn counters_for(peers: u64, experts: u64) -> u64 {
        peers + 1 + experts
    }

    /// Words of a row for so many counters.
    pub const fn row_words(counters: u64) -> Option<u64> {
        counters.checked_add(DETAIL_WORDS as u64)
    }

    /// Counters in a row: those by peer, [`Self::first_bad`], those by expert.
    #[inline(always)]
    pub fn counters(&self) -> u32 {
        self.peers + 1 + self.experts
    }

    /// Which counter is none, but the key of the first bad selection.
    #[inline(always)]
    pub fn first_bad(&self) -> u32 {
        self.peers
    }

    /// Which counter is of an expert.
    #[inline(always)]
    pub fn of_expert(&self, expert: u32) -> u32 {
        self.peers + 1 + expert
    }

    /// Gives counter `counter` of this rank to a peer. Relaxed: the word is all that it publishes. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn tell(&self, window: Window, number: u64, peer: Peer, counter: u32, count: u32) {
        let (at, word) = (self.index(window, number, window.me, counter), Stamped::new(count, number).to_word());
        window.of(peer, self.words).store_relaxed::<System>(at, word);
    }

    /// Writes here what `peer` would tell that has no token. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn stand_in(&self, window: Window, peer: Peer, number: u64, counter: u32) {
        let count = if counter == self.first_bad() { BadSelection::NONE.key() } else { 0 };
        let word = Stamped::new(count, number).to_word();
        window.own(self.words).store_weak(self.index(window, number, peer, counter), word);
    }

    /// Gives this rank's first bad selection to a peer, of which `index` tells the index. Relaxed if there is none; else released after the
    /// details, so that who acquires it finds them. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn tell_bad(&self, window: Window, number: u64, peer: Peer, bad: BadSelection, index: impl FnOnce() -> u64) {
        let (row, me) = (window.of(peer, self.words), window.me);
        let at = self.index(window, number, me, self.first_bad());
        let word = Stamped::new(bad.key(), number).to_word();
        if !bad.is_some() {
            row.store_relaxed::<System>(at, word);
            return;
        }
        let index = index();
        unroll!(I in 2 => {
            let at = self.index(window, number, me, self.counters() + I as u32);
            row.store_relaxed::<System>(at, Stamped::new((index >> (32 * I)) as u32, number).to_word());
        });
        row.store_release::<System>(at, word);
    }

    /// Meets the ranks by their `entry` words, of this [`Kind`], and waits with that for the counts by peer of every source, `and_experts`' if so, and gives source, peer and
    /// count of each of those by peer to `come`, each source that has a bad selection to `bad`, in the thread that has waited for it. `apart` is a word of the block's that is 0.
    /// Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    pub fn meet_by_peer(
        &self,
        window: Window,
        watch: &wait::Watch,
        (number, and_experts): (u64, bool),
        entry: (&EntryWords, Kind, Shared<u32>),
        bad: impl Fn(u32),
        come: impl Fn(u32, u32, u32),
    ) -> wait::Outcome {
        let flags = self.flags(window, number, (0, if and_experts { self.counters() } else { self.peers + 1 }));
        let come = |source, counter, payload| {
            if counter < self.peers {
                come(source, counter, payload);
            } else if counter == self.peers && payload != BadSelection::NONE.key() {
                bad(source);
            }
        };
        flags.meet(watch, entry, come)
    }

    /// Waits for every source's counts of so many experts, from the first on. Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    pub fn wait_of_experts(
        &self,
        window: Window,
        watch: &wait::Watch,
        number: u64,
        (first, count): (u32, u32),
    ) -> wait::Outcome {
        let flags = self.flags(window, number, (self.of_expert(first), count));
        watch.wait_until(Phase::Counts as u32, flags.all(), |flag| {
            flags.look(flag, |seen| Stamped::from_word(seen).is_of(number))
        })
    }

    /// [`Self::meet_by_peer`], but the counts by expert.
    #[inline(always)]
    #[track_caller]
    pub fn meet_by_expert(
        &self,
        window: Window,
        watch: &wait::Watch,
        number: u64,
        entry: (&EntryWords, Kind, Shared<u32>),
        bad: impl Fn(u32),
        come: impl Fn(u32, u32, u32),
    ) -> wait::Outcome {
        let flags = self.flags(window, number, (self.peers, 1 + self.experts));
        let come = |source, counter, payload| {
            if counter != 0 {
                come(source, counter - 1, payload);
            } else if payload != BadSelection::NONE.key() {
                bad(source);
            }
        };
        flags.meet(watch, entry, come)
    }

    /// Counters of every source: from the first on, so many.
    #[inline(always)]
    fn flags(&self, window: Window, number: u64, (first, count): (u32, u32)) -> Counters<'_> {
        Counters { counts: self, window, number, first, count }
    }

    /// Counter `counter` of `source`, which has come.
    #[inline(always)]
    #[track_caller]
    pub fn count(&self, window: Window, number: u64, source: Peer, counter: u32) -> u32 {
        let word = window.own(self.words).load_relaxed::<System>(self.index(window, number, source, counter));
        Stamped::from_word(word).payload
    }

    /// The first bad selection of `source`, which has come and is some, and its index. Per thread.
    #[inline(always)]
    #[track_caller]
    fn bad(&self, window: Window, number: u64, source: Peer) -> (BadSelection, u64) {
        let at = self.index(window, number, source, self.first_bad());
        let word = window.own(self.words).load_acquire::<System>(at);
        let detail = |i| u64::from(self.count(window, number, source, self.counters() + i));
        (BadSelection::from_key(Stamped::from_word(word).payload), detail(1) << 32 | detail(0))
    }

    /// Stops the block if some rank has a bad selection; `first` is the lowest such rank, or `u32::MAX`. Block-collective, uniform, when the counts
    /// have come.
    ///
    /// Every rank sees the same words, so each finds it by itself.
    ///
    /// # Errors
    ///
    /// That the block stops.
    #[inline(always)]
    #[track_caller]
    pub fn stop_if_bad(&self, window: Window, number: u64, first: u32) -> Result<(), fault::Stopped> {
        if first == u32::MAX {
            return Ok(());
        }
        let mut fault = Fault::NONE;
        if thread::index() == 0 {
            let (bad, index) = self.bad(window, number, Peer(first));
            fault = bad.fault(first, index);
        }
        fault.settle()
    }

    #[inline(always)]
    fn index(&self, window: Window, number: u64, source: Peer, word: u32) -> u64 {
        let row = slot::<2>(window, number, source);
        u64::from(row) * u64::from(self.counters() + DETAIL_WORDS) + u64::from(word)
    }
}

/// Counters that every source tells: `count` of each, from the first on.
#[derive(Clone, Copy)]
struct Counters<'a> {
    counts: &'a CountMatrix,
    window: Window,
    number: u64,
    first: u32,
    count: u32,
}

impl Counters<'_> {
    /// How many they are.
    #[inline(always)]
    fn all(self) -> u32 {
        self.window.peers * self.count
    }

    /// The source of one of all, and which of its counters it is.
    #[inline(always)]
    fn which(self, flag: u32) -> (u32, u32) {
        let source = quotient(flag, self.count);
        (source, flag - source * self.count)
    }

    /// Looks for one. Per thread.
    #[inline(always)]
    #[track_caller]
    fn look(self, flag: u32, ready: impl FnOnce(u64) -> bool) -> wait::Poll {
        let (source, counter) = self.which(flag);
        let at = self.counts.index(self.window, self.number, Peer(source), self.first + counter);
        // Relaxed: the word is all that it publishes.
        let expected = Stamped::new(0, self.number).to_word();
        wait::Poll::relaxed::<System>(self.window.own(self.counts.words), at, source, expected, ready)
    }

    /// Meets the ranks, and waits for all; `come` gets source, counter and payload of each.
    #[inline(always)]
    #[track_caller]
    fn meet(
        self,
        watch: &wait::Watch,
        (entry, kind, apart): (&EntryWords, Kind, Shared<u32>),
        come: impl Fn(u32, u32, u32),
    ) -> wait::Outcome {
        let look = |flag| self.look(flag, |_| false);
        let came = |flag, seen| {
            let word = Stamped::from_word(seen);
            let came = word.is_of(self.number);
            if came {
                let (source, counter) = self.which(flag);
                come(source, counter, word.payload);
            }
            came
        };
        entry.meet_with(self.window, watch, (kind, apart), (Phase::Counts, self.all()), look, came)
    }
}
