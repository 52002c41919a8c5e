//! What device memory holds: numbers, by their bits, and how they are counted.
use crate::arch;
use crate::float::{Bf16, E4m3};

/// A value that device memory holds: it has the bits of an unsigned integer.
pub trait Scalar: Copy + 'static {
    /// The integer with the same bits.
    type Bits: arch::Bits;
    /// Reads the value from its bits.
    fn from_bits(bits: Self::Bits) -> Self;
    /// The value's bits.
    fn to_bits(self) -> Self::Bits;
}

/// A [`Scalar`] of 4 or 8 bytes: what flags, counters and counts are made of.
pub trait AtomicScalar: Scalar<Bits: arch::AtomicBits> {
    /// Whether its bits order as those of a signed integer.
    const SIGNED: bool;
}

macro_rules! scalar {
    ($($t:ty => $bits:ty: |$b:ident| $from:expr, |$v:ident| $to:expr;)*) => { $(
        impl Scalar for $t {
            type Bits = $bits;
            #[inline(always)]
            fn from_bits($b: $bits) -> Self { $from }
            #[inline(always)]
            fn to_bits(self) -> $bits { let $v = self; $to }
        }
    )* };
}
scalar! {
    u8 => u8: |b| b, |v| v;
    u16 => u16: |b| b, |v| v;
    u32 => u32: |b| b, |v| v;
    i32 => u32: |b| b as i32, |v| v as u32;
    u64 => u64: |b| b, |v| v;
    i64 => u64: |b| b as i64, |v| v as u64;
    f32 => u32: |b| f32::from_bits(b), |v| v.to_bits();
    Bf16 => u16: |b| Bf16(b), |v| v.0;
    E4m3 => u8: |b| E4m3(b), |v| v.0;
}
impl AtomicScalar for u32 {
    const SIGNED: bool = false;
}
impl AtomicScalar for i32 {
    const SIGNED: bool = true;
}
impl AtomicScalar for u64 {
    const SIGNED: bool = false;
}

/// The number of an element: `u32` or `u64`, and `i32` so that a literal can be one.
pub trait Index: Copy {
    /// The number.
    fn wide(self) -> u64;
}
impl Index for u32 {
    #[inline(always)]
    fn wide(self) -> u64 {
        self as u64
    }
}
impl Index for u64 {
    #[inline(always)]
    fn wide(self) -> u64 {
        self
    }
}
impl Index for i32 {
    #[inline(always)]
    fn wide(self) -> u64 {
        debug_assert!(self >= 0);
        self as u64
    }
}

/// Sixteen bytes that move in one instruction (`.v4.u32`); the address is a multiple of 16. Weak accesses only.
pub type U32x4 = [u32; 4];
