//! Landing counters: a word for each rank, to which its blocks add what they have landed.
use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

use super::Phase;
use crate::placement::quotient;

/// What all blocks of a rank add together in one dispatch.
pub const WHOLE: u64 = 1 << 20;
const _: () = assert!(WHOLE * (crate::shape::MAX_BLOCKS as u64 + 1) <= u32::MAX as u64);

/// The part of block `block` of `blocks`: all parts are [`WHOLE`].
#[inline(always)]
pub(super) fn part((block, blocks): (u32, u32)) -> u64 {
    let up_to = |block: u32| quotient(block * WHOLE as u32, blocks);
    u64::from(up_to(block + 1) - up_to(block))
}

/// Counters `[peers]` in every peer's window, each of one rank's rows: behind its dispatch number `d` it is `d * WHOLE`. The parts that blocks add
/// sum to [`WHOLE`], however many they are, so grids may differ.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Landings {
    words: Region<u64>,
}
// SAFETY: a transparent `Region`.
unsafe impl KernelArg for Landings {}

impl Landings {
    /// The counters at `words`.
    pub const fn new(words: Region<u64>) -> Self {
        Self { words }
    }

    /// Adds the part of block `block` of `blocks` at `peer`: that its rows are there, of which `landed` is the proof, or that it had none. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn add(&self, window: Window, peer: Peer, (block, blocks): (u32, u32), landed: Option<&bulk::Landed>) {
        // In the place of one that is gone is this rank's own window, which has its own part.
        if !window.is_there(peer) {
            return;
        }
        let part = part((block, blocks));
        let counter = window.of(peer, self.words).at(window.me);
        match landed {
            Some(landed) => landed.add_of_block(counter, part),
            // The words that say so prove themselves.
            None => counter.add_relaxed::<System>(0, part),
        }
    }

    /// What a counter is behind dispatch `number`.
    #[inline(always)]
    pub const fn behind(number: u64) -> u64 {
        number.wrapping_mul(WHOLE)
    }

    /// Writes here what `peer` would add up to. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn stand_in(&self, window: Window, peer: Peer, number: u64) {
        window.own(self.words).store_weak(peer, Self::behind(number));
    }

    /// Waits until all rows of every rank's dispatch `number` are here. Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    pub fn wait(&self, window: Window, watch: &wait::Watch, number: u64) -> wait::Outcome {
        let (own, expected) = (window.own(self.words), Self::behind(number));
        watch.wait_until_each(Phase::Landed as u32, window.peers, |peer| {
            wait::Poll::acquire::<System>(own, peer, peer, expected, |seen| seen == expected)
        })
    }
}
