//! Bad selections: how a rank finds its first, and tells every rank which it is.
use epoxide_dsl::fault::{Fault, Told};
use epoxide_dsl::prelude::*;

use super::{Code, CountMatrix, EntryWords, Phase, Status};
use crate::shape::{MAX_TOKENS, MAX_TOP_K};

/// The place of a bad selection as one number, by which the first is the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadSelection {
    key: u32,
}

impl BadSelection {
    /// No selection is bad.
    pub const NONE: Self = Self { key: u32::MAX };

    /// Selection `position` of `token`: a token's expert for the second time, or out of range.
    #[inline(always)]
    pub const fn new(token: u32, position: u32, repeated: bool) -> Self {
        const { assert!(MAX_TOKENS < 1 << 24 && MAX_TOP_K < 1 << 7, "a key has 32 bits, and all ones is no token's") };
        Self { key: token << 8 | position << 1 | repeated as u32 }
    }
    /// Reads a key.
    #[inline(always)]
    pub const fn from_key(key: u32) -> Self {
        Self { key }
    }
    /// The number by which bad selections are compared.
    #[inline(always)]
    pub const fn key(self) -> u32 {
        self.key
    }
    /// The token.
    #[inline(always)]
    pub const fn token(self) -> u32 {
        self.key >> 8
    }
    /// The position in the token.
    #[inline(always)]
    pub const fn position(self) -> u32 {
        self.key >> 1 & 0x7f
    }
    /// What the entry word says of it.
    #[inline(always)]
    pub const fn status(self) -> Status {
        if self.key == Self::NONE.key {
            Status::Ok
        } else if self.key & 1 == 1 {
            Status::Repeated
        } else {
            Status::OutOfRange
        }
    }
}

/// Stops the block if some rank has a bad selection, for the lowest such rank. `status` is that of the peer whose number is the
/// thread's. Block-collective, uniform.
///
/// Every rank sees the same words, so each finds it by itself.
///
/// # Errors
///
/// That the block stops.
#[inline(always)]
#[track_caller]
pub fn stop_if_bad(
    entry: &EntryWords,
    counts: &CountMatrix,
    window: Window,
    number: u64,
    watch: &wait::Watch,
    status: u32,
) -> Result<(), fault::Stopped> {
    if !block::any(status != Status::Ok as u32).get() {
        return Ok(());
    }
    let mut fault = Fault::NONE;
    if thread::index() == 0 {
        let mut peer = 0;
        while peer < window.peers && !fault.is_some() {
            let status = entry.of(window, Peer(peer), watch.epoch()).status;
            if status != Status::Ok as u32 {
                let code = if status == Status::Repeated as u32 { Code::IndexRepeated } else { Code::IndexOutOfRange };
                let word = |i| u64::from(counts.detail(window, number, Peer(peer), i));
                let (expected, seen) = (word(0) << 32 | word(1), word(3) << 32 | word(2));
                let (code, phase) = (code as u32, Phase::Entry as u32);
                fault = Fault { code, phase, peer, told: Told::Here, expected, seen };
            }
            peer += 1;
        }
    }
    fault.settle()
}
