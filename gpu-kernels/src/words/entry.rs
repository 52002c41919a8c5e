//! Entry words: who is in which operation, with which configuration.
use core::cell::Cell;

use epoxide_dsl::KernelArg;
use epoxide_dsl::fault::{Fault, Told};
use epoxide_dsl::prelude::*;

use super::flags::slot;
use super::{Code, Kind, Phase, Routing, Stamped};

/// The payload of an entry word: what the peer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// A [`Kind`].
    pub kind: u32,
    /// Low 24 bits of the configuration's hash, folded with the [`Routing`].
    pub config: u32,
}

impl Entry {
    /// Packs into a payload.
    #[inline(always)]
    pub const fn to_payload(self) -> u32 {
        (self.kind & 0xf) << 28 | self.config & 0xff_ffff
    }
    /// Reads a payload.
    #[inline(always)]
    pub const fn from_payload(p: u32) -> Self {
        Self { kind: p >> 28, config: p & 0xff_ffff }
    }
}

/// Entry words `[2 parities][peers]` in every peer's window, stamped with the epoch.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct EntryWords {
    words: Region<u64>,
    /// Low 24 bits of this rank's configuration's hash.
    hash: u32,
    /// The same, folded with the routing: what is posted.
    config: u32,
}

impl EntryWords {
    /// The words at `words`, of a rank whose configuration has this hash, in an operation in routing slot `slot`.
    pub const fn new(words: Region<u64>, hash: u32, slot: u32) -> Self {
        Self { words, hash, config: hash ^ Routing { slot, dispatch: 0 }.to_bits() }
    }

    /// Those of an operation that works by the routing of dispatch `dispatch`.
    #[inline(always)]
    pub const fn of_dispatch(self, dispatch: u64) -> Self {
        Self { config: self.config ^ Routing { slot: 0, dispatch: dispatch as u32 }.to_bits(), ..self }
    }

    /// Posts this rank's entry word at `peer`: what this rank did before this launch is over, reads and writes. It publishes nothing that the launch did before
    /// ([`Self::release_unless`] does). Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn post(&self, window: Window, peer: Peer, epoch: u64, kind: Kind) {
        self.post_unless(window, peer, epoch, kind, || false);
    }

    /// [`Self::post`], but nothing if `unless` says so. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn post_unless(&self, window: Window, peer: Peer, epoch: u64, kind: Kind, unless: impl FnOnce() -> bool) {
        // The word's address is on its way with the answer.
        let to = window.of(peer, self.words).at(slot::<2>(window, epoch, window.me));
        if !unless() {
            to.store_behind_launch(self.expected(epoch, kind as u32));
        }
    }

    /// Posts this rank's entry word at `peer`, releasing what this thread did or observed in this launch; nothing if `unless` says so. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn release_unless(&self, window: Window, peer: Peer, epoch: u64, kind: Kind, unless: impl FnOnce() -> bool) {
        // The fence and the answer take their time together.
        let (to, stays) = (window.of(peer, self.words).at(slot::<2>(window, epoch, window.me)), unless());
        fence::release::<System>();
        if !stays {
            to.store_relaxed::<System>(0, self.expected(epoch, kind as u32));
        }
    }

    /// Whether `peer` is in an operation of this epoch that is another one. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn disagrees(&self, window: Window, peer: Peer, epoch: u64, kind: Kind) -> bool {
        let word = Stamped::from_word(window.own(self.words).load_relaxed::<System>(slot::<2>(window, epoch, peer)));
        let its = Entry::from_payload(word.payload);
        word.is_of(epoch) && (its.kind != kind as u32 || its.config != self.config)
    }

    /// Writes here what `peer` would post in an operation of this [`Kind`]. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn stand_in(&self, window: Window, peer: Peer, epoch: u64, kind: u32) {
        window.own(self.words).store_weak(slot::<2>(window, epoch, peer), self.expected(epoch, kind));
    }

    /// Waits until every rank is in an operation of this epoch, and checks that all do the same with the same configuration and routing.
    /// Block-collective, uniform.
    ///
    /// Every rank sees the same words, so each finds a disagreement by itself, and no peer is told.
    ///
    /// # Errors
    ///
    /// That the block stops: a wait failed, or ranks disagree.
    #[inline(always)]
    #[track_caller]
    pub fn meet(&self, window: Window, watch: &wait::Watch, kind: Kind) -> wait::Outcome {
        let kind = kind as u32;
        let expected = self.expected(watch.epoch(), kind);
        // Thread p waits for peer p, and keeps what it saw: there are no more peers than threads.
        let mine = Cell::new(expected);
        let look = |peer| self.look(window, watch.epoch(), peer, expected, &mine);
        let acquired = watch.wait_until_each(Phase::Entry as u32, window.peers, look)?;
        // Every rank has come, and this rank's blocks have their places on SMs once all say this.
        grid::let_the_next_one_begin();
        self.wrong(thread::index(), Stamped::from_word(mine.get()), kind).settle()?;
        Ok(acquired)
    }

    /// [`Self::meet`], and with it waits for other flags: `many`, the phase and how many, which `look` looks for, until `came` says of each that it is there, as in
    /// [`Watch::wait_until_both`](wait::Watch::wait_until_both). A rank that is in another operation may never post them, so its entry word ends
    /// that wait: `apart` is a word that is 0, and behind it is not.
    ///
    /// # Errors
    ///
    /// As [`Self::meet`].
    #[inline(always)]
    #[track_caller]
    pub fn meet_with(
        &self,
        window: Window,
        watch: &wait::Watch,
        (kind, apart): (Kind, Shared<u32>),
        many: (Phase, u32),
        look: impl Fn(u32) -> wait::Poll,
        came: impl Fn(u32, u64) -> bool,
    ) -> wait::Outcome {
        let kind = kind as u32;
        let expected = self.expected(watch.epoch(), kind);
        let mine = Cell::new(expected);
        let acquired = watch.wait_until_both(
            (Phase::Entry as u32, window.peers),
            |peer| self.look(window, watch.epoch(), peer, expected, &mine),
            |peer| {
                let wrong = self.wrong(peer, Stamped::from_word(mine.get()), kind);
                if wrong.is_some() {
                    apart.fetch_or_relaxed(0, 1);
                }
                wrong
            },
            (many.0 as u32, many.1),
            look,
            |flag, seen| came(flag, seen) || apart.fetch_or_relaxed(0, 0) != 0,
        )?;
        grid::let_the_next_one_begin();
        Ok(acquired)
    }

    /// The word of this epoch of a rank that is in the same operation, of this [`Kind`].
    #[inline(always)]
    fn expected(&self, epoch: u64, kind: u32) -> u64 {
        Stamped::new(Entry { kind, config: self.config }.to_payload(), epoch).to_word()
    }

    /// Looks whether `peer` is in an operation of this epoch, and keeps what it saw. Per thread.
    #[inline(always)]
    #[track_caller]
    fn look(&self, window: Window, epoch: u64, peer: u32, expected: u64, mine: &Cell<u64>) -> wait::Poll {
        let (own, at) = (window.own(self.words), slot::<2>(window, epoch, Peer(peer)));
        wait::Poll::acquire::<System>(own, at, peer, expected, |seen| {
            mine.set(seen);
            Stamped::from_word(seen).is_of(epoch)
        })
    }

    /// What is wrong with a peer's word of this epoch, for a rank that is in an operation of this [`Kind`].
    #[inline(always)]
    fn wrong(&self, peer: u32, word: Stamped, kind: u32) -> Fault {
        let its = Entry::from_payload(word.payload);
        let (code, here, there) = if its.kind != kind {
            (Code::OutOfStep as u32, kind, its.kind)
        } else if its.config != self.config {
            let (here, there) = (self.config ^ self.hash, its.config ^ self.hash);
            // Before a routing is worked by, there was a dispatch; and in one, which has no number there yet, another slot is all
            // that ranks of one configuration can differ in.
            if kind == Kind::Dispatch as u32 && Routing::from_bits(there).dispatch != 0 {
                (Code::Configuration as u32, self.hash, its.config ^ here)
            } else {
                (Code::OtherHandle as u32, here, there)
            }
        } else {
            (0, 0, 0)
        };
        let (phase, expected, seen) = (Phase::Entry as u32, u64::from(here), u64::from(there));
        Fault { code, phase, peer, told: Told::Here, expected, seen }
    }
}
