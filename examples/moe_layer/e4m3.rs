//! The FP8 format in plain Rust, written from its definition and not from the kernels.
//!
//! e4m3 (OCP 8-bit floating point, "E4M3"): 1 sign, 4 exponent bits with bias 7, 3 mantissa bits; no infinities; 0x7f is
//! NaN; the largest number is 448 = 0x7e. A row is quantised in groups of 128 elements with one f32 scale each: with `amax`
//! the largest magnitude of the group, at least 1e-4, `code = round(x * (448 / amax))`, ties to even, saturating, and
//! `scale = amax / 448`. Each of these operations rounds once to f32.
//!
//! Or scales are powers of two, UE8M0: 8 exponent bits with bias 127 and nothing else. `scale` is the smallest of them that is at least
//! `amax / 448`, and `code = round(x / scale)`. MXFP8 has them for groups of 32. Four are packed into a word, the first in its lowest byte.
use epoxide::bf16;

/// How rows are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scaling {
    /// f32, for 128 elements.
    F32,
    /// Powers of two, for 128 elements.
    Ue8m0,
    /// Powers of two, for 32 elements.
    Mx,
}

impl Scaling {
    /// Elements that share a scale.
    pub fn group(self) -> usize {
        if self == Self::Mx { 32 } else { 128 }
    }

    /// What a group's numbers are divided by.
    pub fn scale(self, amax: f32) -> f32 {
        let exact = amax / MAX;
        match self {
            Self::F32 => exact,
            // The exponent, and one more where there is a mantissa. (No other quotient rounds to a power of two: BF16 has 8 significant bits.)
            _ => f32::from_bits(exact.to_bits().div_ceil(1 << 23) << 23),
        }
    }

    /// The words of a row's scales, which are of so many groups.
    pub fn words(self, scales: &[f32]) -> Vec<u32> {
        match self {
            Self::F32 => scales.iter().map(|scale| scale.to_bits()).collect(),
            _ => {
                let byte = |scale: &f32| scale.to_bits() >> 23;
                let word = |four: &[f32]| four.iter().rev().fold(0, |word, scale| word << 8 | byte(scale));
                scales.chunks(4).map(word).collect()
            }
        }
    }

    /// The scale of group `number` in a row's words.
    pub fn scale_of(self, words: &[u32], number: usize) -> f32 {
        match self {
            Self::F32 => f32::from_bits(words[number]),
            _ => f32::from_bits((words[number / 4] >> (8 * (number % 4)) & 0xff) << 23),
        }
    }
}

/// The largest finite number.
pub const MAX: f32 = 448.0;
/// The smallest `amax`.
pub const AMAX_MIN: f32 = 1e-4;
/// The largest number's code.
const MAX_CODE: u32 = 0x7e;

/// The code nearest to `value`, ties to the even code, saturating at ±448.
pub fn encode(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if magnitude >= MAX {
        return sign | MAX_CODE as u8;
    }
    // Between 2^e and 2^(e+1), numbers are 2^(e-3) apart; below 2^-6 they stay 2^-9 apart. `spacing` is exact, a division by
    // it too, and the only rounding is the one that is meant.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let spacing = f32::from_bits(((exponent - 3 + 127) as u32) << 23);
    let steps = (magnitude / spacing).round_ties_even() as u32;
    // Codes count these steps: 8 a binade, 0 to 16 here where 16 is the next binade's first.
    sign | ((exponent + 6) as u32 * 8 + steps).min(MAX_CODE) as u8
}

/// The number that a code stands for.
pub fn decode(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// All codes' numbers.
pub fn table() -> [f32; 256] {
    std::array::from_fn(|code| decode(code as u8))
}

/// The largest magnitude of a group, as the format takes it.
pub fn amax(group: &[bf16]) -> f32 {
    group.iter().map(|x| x.to_f32().abs()).fold(AMAX_MIN, f32::max)
}

/// Quantises a row: `codes` has as many elements as the row, `scales` one for every group.
pub fn quantise_row(row: &[bf16], scaling: Scaling, codes: &mut [u8], scales: &mut [f32]) {
    let of = scaling.group();
    for ((group, codes), scale) in row.chunks(of).zip(codes.chunks_mut(of)).zip(scales) {
        let amax = amax(group);
        *scale = scaling.scale(amax);
        let inverse = if scaling == Scaling::F32 { MAX / amax } else { 1.0 / *scale };
        for (code, x) in codes.iter_mut().zip(group) {
            *code = encode(x.to_f32() * inverse);
        }
    }
}
