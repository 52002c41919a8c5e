//! Bad selections: how a rank finds its first, and tells every rank which it is.
use epoxide_dsl::fault::{Fault, Told};

use super::{Code, Phase};
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
    /// Whether it is the token's expert for the second time, and not out of range.
    #[inline(always)]
    pub const fn is_repeated(self) -> bool {
        self.key & 1 == 1
    }
    /// Whether there is one.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.key != Self::NONE.key
    }
    /// The fault that it is, of rank `source`, where the selection is `index`. Every rank finds it by itself.
    #[inline(always)]
    pub const fn fault(self, source: u32, index: u64) -> Fault {
        let code = if self.is_repeated() { Code::IndexRepeated } else { Code::IndexOutOfRange };
        let expected = (self.token() as u64) << 32 | self.position() as u64;
        let (code, phase) = (code as u32, Phase::Counts as u32);
        Fault { code, phase, peer: source, told: Told::Here, expected, seen: index }
    }
}
