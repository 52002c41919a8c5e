//! Done counters: a word for each rank, to which its blocks add that they have read.
use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

use super::Phase;
use super::wholes::Wholes;

/// Counters `[peers]` in every peer's window, each of what one rank has read here: behind its combine number `n` it is `n` times [`WHOLE`](super::WHOLE).
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct DoneCounters {
    counters: Wholes,
}
// SAFETY: a transparent `Wholes`.
unsafe impl KernelArg for DoneCounters {}

/// What a block adds at a peer.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    counter: Symmetric<u64>,
    part: u32,
}

impl Done {
    /// Adds it: that the block has read what it wanted there. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn add(self, read: &bulk::Read) {
        read.add_of_block(self.counter, u64::from(self.part));
    }
}

impl DoneCounters {
    /// The counters at `words`.
    pub const fn new(words: Region<u64>) -> Self {
        Self { counters: Wholes::new(words) }
    }

    /// What block `block` of `blocks` adds at `peer`, if there is one of that number. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn of_block(&self, window: Window, peer: Peer, block_of: (u32, u32)) -> Option<Done> {
        let (counter, part) = self.counters.of_block(window, peer, block_of)?;
        Some(Done { counter, part })
    }

    /// Writes here what `peer` would add up to. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn stand_in(&self, window: Window, peer: Peer, number: u64) {
        self.counters.stand_in(window, peer, number);
    }

    /// Waits until every peer has read what it wanted here in combine `number`. Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    pub fn wait(&self, window: Window, watch: &wait::Watch, phase: Phase, number: u64) -> wait::Outcome {
        self.counters.wait(window, watch, phase, number)
    }
}
