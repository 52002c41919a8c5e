//! Done counters: a word for each rank, to which its blocks add that they have read.
use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

use super::Phase;
use super::wholes::{Wholes, part};

/// Counters `[peers]` in every peer's window, each of what one rank has read here: behind its combine number `n` it is `n` times [`WHOLE`](super::WHOLE).
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct DoneCounters {
    counters: Wholes,
}
// SAFETY: a transparent `Wholes`.
unsafe impl KernelArg for DoneCounters {}

impl DoneCounters {
    /// The counters at `words`.
    pub const fn new(words: Region<u64>) -> Self {
        Self { counters: Wholes::new(words) }
    }

    /// Adds the part of block `block` of `blocks` at `peer`: that it has read what it wanted there. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn add(&self, window: Window, peer: Peer, block_of: (u32, u32), read: &bulk::Read) {
        if let Some(counter) = self.counters.at(window, peer) {
            read.add_of_block(counter, part(block_of));
        }
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
