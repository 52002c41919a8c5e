//! Landing counters: a word for each rank, to which its blocks add what they have landed.
use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

use super::Phase;
use super::wholes::{Wholes, part};

/// Counters `[peers]` in every peer's window, each of one rank's rows: behind its dispatch number `d` it is `d` times [`WHOLE`](super::WHOLE).
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Landings {
    counters: Wholes,
}
// SAFETY: a transparent `Wholes`.
unsafe impl KernelArg for Landings {}

impl Landings {
    /// The counters at `words`.
    pub const fn new(words: Region<u64>) -> Self {
        Self { counters: Wholes::new(words) }
    }

    /// Adds the part of block `block` of `blocks` at `peer`: that its rows are there, of which `landed` is the proof, or that it had none. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn add(&self, window: Window, peer: Peer, block_of: (u32, u32), landed: Option<&bulk::Landed>) {
        let Some(counter) = self.counters.at(window, peer) else { return };
        match landed {
            Some(landed) => landed.add_of_block(counter, part(block_of)),
            // The words that say so prove themselves.
            None => counter.add_relaxed::<System>(0, part(block_of)),
        }
    }

    /// What a counter is behind dispatch `number`.
    #[inline(always)]
    pub const fn behind(number: u64) -> u64 {
        Wholes::behind(number)
    }

    /// Writes here what `peer` would add up to. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn stand_in(&self, window: Window, peer: Peer, number: u64) {
        self.counters.stand_in(window, peer, number);
    }

    /// Waits until all rows of every rank's dispatch `number` are here. Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    pub fn wait(&self, window: Window, watch: &wait::Watch, number: u64) -> wait::Outcome {
        self.counters.wait(window, watch, Phase::Landed, number)
    }
}
