//! The FP8 format in plain Rust, written from its definition and not from the kernels.
//!
//! e4m3 (OCP 8-bit floating point, "E4M3"): 1 sign, 4 exponent bits with bias 7, 3 mantissa bits; no infinities; 0x7f is
//! NaN; the largest number is 448 = 0x7e. A row is quantised in groups of 128 elements with one f32 scale each: with `amax`
//! the largest magnitude of the group, at least 1e-4, `code = round(x * (448 / amax))`, ties to even, saturating, and
//! `scale = amax / 448`. Each of these operations rounds once to f32.
use epoxide::bf16;

/// Elements that share a scale.
pub const GROUP: usize = 128;
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
pub fn quantise_row(row: &[bf16], codes: &mut [u8], scales: &mut [f32]) {
    for ((group, codes), scale) in row.chunks(GROUP).zip(codes.chunks_mut(GROUP)).zip(scales) {
        let amax = amax(group);
        let inverse = MAX / amax;
        for (code, x) in codes.iter_mut().zip(group) {
            *code = encode(x.to_f32() * inverse);
        }
        *scale = amax / MAX;
    }
}
