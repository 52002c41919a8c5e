//! Which routing an operation is of, as its entry words say it.
use epoxide_dsl::fault::{Fault, Told};
use epoxide_dsl::prelude::*;

use super::{Code, Phase};
use crate::shape::MAX_ROUTING_SLOTS;

/// A routing: its slot, and the number of the dispatch that made it, of which the entry words have the lower 16 bits. Ranks whose slots agree
/// had the same dispatch there last, since they dispatch in the same order into the same slots; the number is for those that do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// The slot.
    pub slot: u32,
    /// Low 16 bits of the dispatch's number; 0 in a dispatch, which only makes it.
    pub dispatch: u32,
}

const _: () = assert!(MAX_ROUTING_SLOTS <= 1 << 8);

impl Routing {
    /// As 24 bits.
    #[inline(always)]
    pub const fn to_bits(self) -> u32 {
        (self.slot & 0xff) << 16 | self.dispatch & 0xffff
    }
    /// Reads [`Self::to_bits`].
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self { slot: bits >> 16 & 0xff, dispatch: bits & 0xffff }
    }
}

/// `fault`, or that the slot has no routing, if the block's first thread has found nothing else. Per thread.
#[inline(always)]
pub fn no_routing(dispatch: u64, slot: u32, window: Window, fault: Fault) -> Fault {
    if dispatch != 0 || thread::index() != 0 || fault.is_some() {
        return fault;
    }
    let (code, phase, peer) = (Code::NoRouting as u32, Phase::Entry as u32, window.me.0);
    Fault { code, phase, peer, told: Told::All, expected: u64::from(slot), seen: 0 }
}
