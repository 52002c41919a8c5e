//! Counters that grow by a whole for each operation, of which every block adds its part.
use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

use super::Phase;
use crate::placement::quotient;

/// What all blocks of a rank add together in one operation.
pub const WHOLE: u64 = 1 << 20;
const _: () = assert!(WHOLE * (crate::shape::MAX_BLOCKS as u64 + 1) <= u32::MAX as u64);

/// The part of block `block` of `blocks`: all parts are [`WHOLE`].
#[inline(always)]
fn part((block, blocks): (u32, u32)) -> u32 {
    let up_to = |block: u32| quotient(block * WHOLE as u32, blocks);
    up_to(block + 1) - up_to(block)
}

/// Counters `[peers]` in every peer's window, each of what one rank has done for the reader: behind its operation number `n` it is `n * WHOLE`. The parts that
/// blocks add sum to [`WHOLE`], however many they are, so grids may differ.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Wholes {
    words: Region<u64>,
}
// SAFETY: a transparent `Region`.
unsafe impl KernelArg for Wholes {}

impl Wholes {
    pub(super) const fn new(words: Region<u64>) -> Self {
        Self { words }
    }

    /// This rank's counter at `peer`. None in the place of one that is gone, which is this rank's own window, that has its own part.
    #[inline(always)]
    #[track_caller]
    fn at(&self, window: Window, peer: Peer) -> Option<Symmetric<u64>> {
        window.is_there(peer).then(|| window.of(peer, self.words).at(window.me))
    }

    /// This rank's counter at `peer`, if there is one of that number, and the part of block `block` of `blocks`.
    #[inline(always)]
    #[track_caller]
    pub(super) fn of_block(&self, window: Window, peer: Peer, block_of: (u32, u32)) -> Option<(Symmetric<u64>, u32)> {
        if peer.0 >= window.peers {
            return None;
        }
        let counter = self.at(window, peer)?;
        Some((counter, part(block_of)))
    }

    /// What a counter is behind operation `number`.
    #[inline(always)]
    pub(super) const fn behind(number: u64) -> u64 {
        number.wrapping_mul(WHOLE)
    }

    /// Writes here what `peer` would add up to. Per thread.
    #[inline(always)]
    #[track_caller]
    pub(super) fn stand_in(&self, window: Window, peer: Peer, number: u64) {
        window.own(self.words).store_weak(peer, Self::behind(number));
    }

    /// Waits until every rank's operation `number` is whole here. Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    pub(super) fn wait(&self, window: Window, watch: &wait::Watch, phase: Phase, number: u64) -> wait::Outcome {
        let (own, expected) = (window.own(self.words), Self::behind(number));
        watch.wait_until_each(phase as u32, window.peers, |peer| {
            wait::Poll::acquire::<System>(own, peer, peer, expected, |seen| seen == expected)
        })
    }
}
