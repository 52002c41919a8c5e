//! Block flags: one word for each block of each peer, which says how far that block is.
use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

use super::Phase;
use crate::placement::quotient;

/// Words `[2][peers][blocks]` in every peer's window, each the whole number of what a block of its poster has done. Of the two halves the
/// number's parity names one. All ranks' grids have as many blocks, and block `b` works for block `b` of each.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct BlockFlags {
    words: Region<u64>,
}
// SAFETY: a transparent `Region`.
unsafe impl KernelArg for BlockFlags {}

/// A block's flag at a peer.
#[derive(Clone, Copy, Debug)]
pub struct BlockFlag {
    flag: Symmetric<u64>,
    number: u64,
}

impl BlockFlag {
    /// Posts it, releasing what the block has done. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn post(self, landed: &bulk::Landed) {
        landed.publish_of_block(self.flag, self.number);
    }
}

impl BlockFlags {
    /// The flags at `words`.
    pub const fn new(words: Region<u64>) -> Self {
        Self { words }
    }

    /// This block's flag at the peer of this thread's number, if there is one, for `number`: found while what it is to tell travels. There are no more peers
    /// than threads. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn of_block(&self, window: Window, number: u64) -> Option<BlockFlag> {
        let peer = Peer(thread::index());
        (peer.0 < window.peers)
            .then(|| BlockFlag { flag: window.of(peer, self.words).at(at(window, number, window.me)), number })
    }

    /// Writes here what `peer`'s block of this number would post. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn stand_in(&self, window: Window, peer: Peer, number: u64) {
        window.own(self.words).store_weak(at(window, number, peer), number);
    }

    /// Waits until the same block of every peer has posted `number` here. Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    pub fn wait(&self, window: Window, watch: &wait::Watch, phase: Phase, number: u64) -> wait::Outcome {
        let own = window.own(self.words);
        watch.wait_until_each(phase as u32, window.peers, |peer| {
            wait::Poll::acquire::<System>(own, at(window, number, Peer(peer)), peer, number, |seen| seen == number)
        })
    }

    /// Waits until every block of every peer has posted `number` here. Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    pub fn wait_for_all(&self, window: Window, watch: &wait::Watch, phase: Phase, number: u64) -> wait::Outcome {
        let (own, blocks) = (window.own(self.words), thread::grid_blocks());
        let words = window.peers * blocks;
        let first = (number as u32 & 1) * words;
        watch.wait_until(phase as u32, words, |word| {
            wait::Poll::acquire::<System>(own, first + word, quotient(word, blocks), number, |seen| seen == number)
        })
    }
}

/// Index of the word of `peer`'s block for `number`.
#[inline(always)]
fn at(window: Window, number: u64, peer: Peer) -> u32 {
    ((number as u32 & 1) * window.peers + peer.0) * thread::grid_blocks() + thread::block_index()
}
