//! The small floats of the field, with the hardware's rounding on both backends.
#[cfg(not(target_arch = "nvptx64"))]
pub(crate) mod software;
pub(crate) mod widen;

/// A brain float: the upper half of an `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Bf16 {
    /// Widens; exact.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    /// Rounds to nearest, ties to even; any NaN becomes `0x7fff` (`cvt.rn.bf16.f32`).
    #[inline(always)]
    pub fn from_f32(x: f32) -> Self {
        Self(crate::arch::bf16_from_f32(x))
    }

    /// [`Self::from_f32`] of two numbers, `low` in the low half of the word (`cvt.rn.bf16x2.f32`).
    #[inline(always)]
    pub fn pair_from_f32(low: f32, high: f32) -> u32 {
        crate::arch::bf16x2_from_f32(low, high)
    }

    /// Widens the two numbers of a word, the low half first; exact.
    #[inline(always)]
    pub fn unpack(pair: u32) -> [f32; 2] {
        [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
    }

    /// The number with the larger magnitude of each two, with any sign: of the lower halves of the words, and of the upper ones
    /// (`max.NaN.xorsign.abs.bf16x2`). A NaN is larger than every number.
    #[inline(always)]
    pub fn larger_magnitudes(a: u32, b: u32) -> u32 {
        crate::arch::larger_magnitudes_bf16x2(a, b)
    }
}

/// An 8-bit float with 4 exponent and 3 mantissa bits, no infinities, largest value 448 (OCP FP8 E4M3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct E4m3(pub u8);

impl E4m3 {
    /// The largest finite value.
    pub const MAX: f32 = 448.0;

    /// Rounds two numbers to nearest, ties to even, saturating at ±448; `low` is in the low byte
    /// (`cvt.rn.satfinite.e4m3x2.f32`). A NaN becomes `0x7f`.
    #[inline(always)]
    pub fn pair_from_f32(low: f32, high: f32) -> u16 {
        crate::arch::e4m3x2_from_f32(low, high)
    }

    /// [`Self::pair_from_f32`] of four numbers, the first in the lowest byte.
    #[inline(always)]
    pub fn four_from_f32(x: [f32; 4]) -> u32 {
        crate::arch::e4m3x4_from_f32(x)
    }

    /// Widens the four numbers of a word, the lowest byte first; exact (`cvt.rn.f16x2.e4m3x2`). Fewer instructions than four times [`Self::to_f32`].
    #[inline(always)]
    pub fn unpack(four: u32) -> [f32; 4] {
        crate::arch::e4m3x4_to_f32(four)
    }

    /// Widens; exact. `0x7f` and `0xff` are NaN.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        widen::e4m3(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magnitudes_are_compared_in_each_half() {
        let (small, large, nan) = (0xbf80_u32, 0xc000_u32, 0xffc0_u32);
        let pair = |low: u32, high: u32| high << 16 | low;
        let of_either_sign = |a, b| Bf16::larger_magnitudes(a, b) & 0x7fff_7fff;
        assert_eq!(of_either_sign(pair(small, large), pair(large, small)), 0x4000_4000);
        assert_eq!(of_either_sign(pair(nan, 0), pair(large, large)), 0x4000_7fc0);
    }
}
