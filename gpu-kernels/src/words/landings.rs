//! Landing counters: a word for each rank, to which its blocks add what they have landed.
use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

use super::Phase;
use super::wholes::Wholes;

/// Counters `[peers]` in every peer's window, each of one rank's rows: behind its dispatch number `d` it is `d` times [`WHOLE`](super::WHOLE).
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Landings {
    counters: Wholes,
}
// SAFETY: a transparent `Wholes`.
unsafe impl KernelArg for Landings {}

/// What a block adds at a peer.
#[derive(Clone, Copy, Debug)]
pub struct Landing {
    counter: Symmetric<u64>,
    part: u32,
}

impl Landing {
    /// Adds it: that the block's rows are there, of which `landed` is the proof, or that it had none. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn add(self, landed: Option<&bulk::Landed>) {
        let Self { counter, part } = self;
        match landed {
            Some(landed) => landed.add_of_block(counter, u64::from(part)),
            // The words that say so prove themselves.
            None => counter.add_relaxed::<System>(0, u64::from(part)),
        }
    }
}

impl Landings {
    /// The counters at `words`.
    pub const fn new(words: Region<u64>) -> Self {
        Self { counters: Wholes::new(words) }
    }

    /// What block `block` of `blocks` adds at the peer of this thread's number, if there is one: found while its rows travel, so that nothing is left to
    /// find when they are there. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn of_block(&self, window: Window, block_of: (u32, u32)) -> Option<Landing> {
        let (counter, part) = self.counters.of_block(window, Peer(thread::index()), block_of)?;
        Some(Landing { counter, part })
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
