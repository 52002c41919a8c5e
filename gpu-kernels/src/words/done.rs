//! Done counters: a word for each rank, to which its blocks add that they have read.
use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

use super::Phase;
use super::landings::{WHOLE, part};

/// Counters `[peers]` in every peer's window, each of what one rank has read here: behind its combine number `n` it is `n` times [`WHOLE`], the sum of the
/// parts that its blocks add, however many they are.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct DoneCounters {
    words: Region<u64>,
}
// SAFETY: a transparent `Region`.
unsafe impl KernelArg for DoneCounters {}

impl DoneCounters {
    /// The counters at `words`.
    pub const fn new(words: Region<u64>) -> Self {
        Self { words }
    }

    /// Adds the part of block `block` of `blocks` at `peer`: that it has read what it wanted there. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn add(&self, window: Window, peer: Peer, block_of: (u32, u32), read: &bulk::Read) {
        // In the place of one that is gone is this rank's own window, which has its own part.
        if window.is_there(peer) {
            read.add_of_block(window.of(peer, self.words).at(window.me), part(block_of));
        }
    }

    /// What a counter is behind combine number `number`.
    #[inline(always)]
    const fn behind(number: u64) -> u64 {
        number.wrapping_mul(WHOLE)
    }

    /// Writes here what `peer` would add up to. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn stand_in(&self, window: Window, peer: Peer, number: u64) {
        window.own(self.words).store_weak(peer, Self::behind(number));
    }

    /// Waits until every peer has read what it wanted here in combine `number`. Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    pub fn wait(&self, window: Window, watch: &wait::Watch, phase: Phase, number: u64) -> wait::Outcome {
        let (own, expected) = (window.own(self.words), Self::behind(number));
        watch.wait_until_each(phase as u32, window.peers, |peer| {
            wait::Poll::acquire::<System>(own, peer, peer, expected, |seen| seen == expected)
        })
    }
}
