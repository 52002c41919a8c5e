//! Flags: one word for each peer, which says how far that peer is.
use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

use super::Phase;

/// Words `[SLOTS][peers]` in every peer's window, each the whole number of what its poster has done. Of two slots the number's parity
/// names one.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Flags<const SLOTS: u32> {
    words: Region<u64>,
}
// SAFETY: a transparent `Region`.
unsafe impl<const SLOTS: u32> KernelArg for Flags<SLOTS> {}

impl<const SLOTS: u32> Flags<SLOTS> {
    /// The flags at `words`.
    pub const fn new(words: Region<u64>) -> Self {
        Self { words }
    }

    /// Posts `number` at every peer, releasing what the grid has done. By the last block out, a thread for each peer: there are no
    /// more peers than threads.
    #[inline(always)]
    #[track_caller]
    pub fn post(&self, window: Window, number: u64, landed: &grid::GridLanded) {
        let peer = Peer(thread::index());
        if peer.0 < window.peers {
            landed.publish(window.of(peer, self.words).at(slot::<SLOTS>(window, number, window.me)), number);
        }
    }

    /// Writes here what `peer` would post. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn stand_in(&self, window: Window, peer: Peer, number: u64) {
        window.own(self.words).store_weak(slot::<SLOTS>(window, number, peer), number);
    }

    /// Waits until every peer has posted `number` here. Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    pub fn wait(&self, window: Window, watch: &wait::Watch, phase: Phase, number: u64) -> wait::Outcome {
        let own = window.own(self.words);
        watch.wait_until_each(phase as u32, window.peers, |peer| {
            let at = slot::<SLOTS>(window, number, Peer(peer));
            wait::Poll::acquire::<System>(own, at, peer, number, |seen| seen == number)
        })
    }
}

/// Index of `peer`'s word for `number`.
#[inline(always)]
pub(super) fn slot<const SLOTS: u32>(window: Window, number: u64, peer: Peer) -> u32 {
    const { assert!(SLOTS == 1 || SLOTS == 2) };
    if SLOTS == 1 { peer.0 } else { (number as u32 & 1) * window.peers + peer.0 }
}
