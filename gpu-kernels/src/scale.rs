//! Scales: what the numbers of a group are divided by before they become codes, as f32 or as powers of two.
//!
//! A scale follows from the group's largest magnitude `amax`. In f32 it is `amax / 448`, so that the largest becomes the largest code. In UE8M0, eight
//! bits of exponent and nothing else, it is the next power of two from there, `2^ceil(log2(amax / 448))`, so that no number is beyond the largest code,
//! and dividing by it is exact. Byte `b` is `2^(b - 127)`; 255 is NaN, the scale of a group that has an infinity or a NaN, whose codes are NaN too.
//! UE8M0 scales are packed by four into words of 32 bits, the first in the lowest byte; bytes behind a row's last scale are 0.
use epoxide_dsl::prelude::*;

/// Elements that share a scale in FP8.
pub const GROUP: u32 = 128;
/// Elements that share a scale in MXFP8.
pub const MX_GROUP: u32 = 32;

/// A scale of a group.
pub trait Scale: Copy {
    /// Elements of a group: [`GROUP`] or [`MX_GROUP`].
    const GROUP: u32;
    /// How many are in a word.
    const IN_WORD: u32;

    /// What numbers are multiplied by, and the scale, of a group with this largest magnitude, which is positive or NaN.
    fn new(amax: f32) -> (f32, Self);

    /// As a number.
    fn to_f32(self) -> f32;

    /// Zero bits, which are no scale: what fills the last word of a row.
    fn nothing() -> Self;

    /// Writes it as number `index` of those that lie from `to` on.
    fn put(self, to: Shared<u32>, index: u32);

    /// The same in device memory.
    fn store(self, to: Global<u32>, index: u64);

    /// Number `index` of those that lie from `from` on in device memory.
    fn load(from: Global<u32>, index: u64) -> Self;

    /// Scales of so many elements, in whole words.
    #[inline(always)]
    fn of_row(hidden: u32) -> u32 {
        hidden.div_ceil(Self::GROUP).div_ceil(Self::IN_WORD) * Self::IN_WORD
    }
}

impl Scale for f32 {
    const GROUP: u32 = GROUP;
    const IN_WORD: u32 = 1;

    #[inline(always)]
    fn new(amax: f32) -> (f32, Self) {
        (E4m3::MAX / amax, amax / E4m3::MAX)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn nothing() -> Self {
        0.0
    }
    #[inline(always)]
    fn put(self, to: Shared<u32>, index: u32) {
        to.cast::<f32>().store_weak(index, self);
    }
    #[inline(always)]
    fn store(self, to: Global<u32>, index: u64) {
        to.cast::<f32>().store_weak(index, self);
    }
    #[inline(always)]
    fn load(from: Global<u32>, index: u64) -> Self {
        from.cast::<f32>().load_weak(index)
    }
}

/// A power of two, of `GROUP` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ue8m0<const GROUP: u32>(pub u8);

impl<const GROUP: u32> Ue8m0<GROUP> {
    /// Not a number.
    pub const NAN: Self = Self(255);
}

impl<const OF: u32> Scale for Ue8m0<OF> {
    const GROUP: u32 = OF;
    const IN_WORD: u32 = 4;

    #[inline(always)]
    fn new(amax: f32) -> (f32, Self) {
        if amax.to_bits() >= f32::INFINITY.to_bits() {
            return (f32::NAN, Self::NAN);
        }
        // 448 is 1.75 times 2^8. So the exponent is that of `amax` less 8, and one more where its mantissa is beyond .75, which a carry from there makes.
        let exponent = ((amax.to_bits() + (1 << 21) - 1) >> 23) - 8;
        // The inverse is 2^(127 - exponent). An `amax` of at least 1e-4 has an exponent of 105 to 247, and so neither is subnormal.
        (f32::from_bits((254 - exponent) << 23), Self(exponent as u8))
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        match self.0 {
            // A subnormal number: half of the smallest that has an exponent.
            0 => f32::from_bits(1 << 22),
            255 => f32::NAN,
            exponent => f32::from_bits(u32::from(exponent) << 23),
        }
    }
    #[inline(always)]
    fn nothing() -> Self {
        Self(0)
    }
    #[inline(always)]
    fn put(self, to: Shared<u32>, index: u32) {
        to.cast::<u8>().store_weak(index, self.0);
    }
    #[inline(always)]
    fn store(self, to: Global<u32>, index: u64) {
        to.cast::<u8>().store_weak(index, self.0);
    }
    #[inline(always)]
    fn load(from: Global<u32>, index: u64) -> Self {
        Self(from.cast::<u8>().load_weak(index))
    }
}
