//! Arithmetic in f32 that has one result: the same bits on the GPU and on the simulator.
//!
//! [`sqrt`], [`rcp`] and [`fma`] are IEEE operations, rounded to nearest once, on both. [`rsqrt`], [`exp2`] and [`log2`] are written
//! here, once, in such operations, and both backends compile the same lines; a GPU's own approximations (`.approx`) round
//! differently from model to model, and no simulator has them. `+`, `-`, `*` and `/` are IEEE operations too: rustc neither contracts a
//! product and a sum to an `fma` nor flushes subnormal numbers, on either backend.
//!
//! Which NaN a NaN is, is not promised: a GPU makes `0x7fffffff`, and a CPU keeps what it was given.
//!
//! The errors are the largest over *all* f32 against f64, in units in the last place of the exact result:
//! `cargo test --release -p epoxide-dsl --test math -- --ignored --nocapture` prints them.
use core::f32::consts::{LN_2, LOG2_E};

use crate::arch;

/// The square root, rounded to nearest (`sqrt.rn.f32`).
#[inline(always)]
pub fn sqrt(x: f32) -> f32 {
    arch::sqrt_rn(x)
}

/// `1 / x`, rounded to nearest (`rcp.rn.f32`).
#[inline(always)]
pub fn rcp(x: f32) -> f32 {
    arch::rcp_rn(x)
}

/// `a * b + c`, rounded to nearest once (`fma.rn.f32`).
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    arch::fma_rn(a, b, c)
}

/// `1 / sqrt(x)` as those two operations, each rounded. Error: below 1.5 units in the last place. Of ±0 it is ±infinity.
#[inline(always)]
pub fn rsqrt(x: f32) -> f32 {
    rcp(sqrt(x))
}

/// 2 to the `x`. Error: below 1 unit in the last place; exact for whole `x`, subnormal results too.
///
/// The power of e is `exp2(x * LOG2_E)`; the product's rounding, relative to a large `x`, is then an error of the exponent.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    // Beyond these every result is infinity, or 0. A NaN stays.
    #[expect(clippy::manual_clamp, reason = "`clamp` asserts something, and a kernel has no panic path")]
    let x = if x > 129.0 {
        129.0
    } else if x < -151.0 {
        -151.0
    } else {
        x
    };
    // At 1.5 * 2^23 an f32 has no fraction: the sum is rounded to the whole number that its low bits hold.
    const WHOLE: f32 = 12_582_912.0;
    let shifted = x + WHOLE;
    let whole = shifted.to_bits().wrapping_sub(WHOLE.to_bits()) as i32;
    let fraction = x - (shifted - WHOLE);
    // 2^f = 1 + f * p(f) for f in [-1/2, 1/2]; p interpolates at Chebyshev's nodes, within 2^-26 of the result.
    let p = 1.545_316_3e-4;
    let p = fma(p, fraction, 1.339_086_3e-3);
    let p = fma(p, fraction, 9.618_083e-3);
    let p = fma(p, fraction, 5.550_357e-2);
    let p = fma(p, fraction, 0.240_226_5);
    let p = fma(p, fraction, LN_2);
    let p = fma(p, fraction, 1.0);
    // In two steps, of which the first is exact, so that a subnormal result is rounded once.
    let half = whole >> 1;
    p * power_of_two(half) * power_of_two(whole.wrapping_sub(half))
}

/// 2 to the `n`, from -126 to 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// The logarithm to base 2. Error: below 1.2 units in the last place; exact for powers of two. Of ±0 it is -infinity, and below 0 a
/// NaN.
///
/// The natural logarithm is `log2(x) * LN_2`.
#[inline(always)]
pub fn log2(x: f32) -> f32 {
    // A subnormal number's exponent is not in its exponent field.
    let (scaled, offset) = if x < f32::MIN_POSITIVE { (x * 8_388_608.0, -23.0) } else { (x, 0.0) };
    // x = 2^e * m with m in [2/3, 4/3), so that near 1 nothing cancels: there e is 0.
    const TWO_THIRDS: u32 = 0x3f2a_aaab;
    let bits = scaled.to_bits();
    let e = (bits.wrapping_sub(TWO_THIRDS) as i32) >> 23;
    let m = f32::from_bits(bits.wrapping_sub((e as u32) << 23));
    // Exact.
    let r = m - 1.0;
    // log2(1 + r) = r * log2(e) + r^2 * q(r) for r in [-1/3, 1/3]; q interpolates at Chebyshev's nodes, within 2^-26 of the result.
    let q = -0.179_214_48;
    let q = fma(q, r, 0.198_346_17);
    let q = fma(q, r, -0.177_288_77);
    let q = fma(q, r, 0.202_782_51);
    let q = fma(q, r, -0.240_545_11);
    let q = fma(q, r, 0.288_643_36);
    let q = fma(q, r, -0.360_672_95);
    let q = fma(q, r, 0.480_897_46);
    let q = fma(q, r, -0.721_347_5);
    // What f32 leaves out of log2(e).
    const LOG2_E_REST: f32 = 1.925_963e-8;
    let low = fma(r * r, q, r * LOG2_E_REST);
    // The large part of the sum, and what its rounding left out of it, so that only the last addition rounds what counts.
    let whole = e as f32 + offset;
    let high = fma(r, LOG2_E, whole);
    let rest = fma(r, LOG2_E, whole - high);
    let result = high + (rest + low);
    if x > 0.0 && x < f32::INFINITY {
        result
    } else if x == 0.0 {
        f32::NEG_INFINITY
    } else if x > 0.0 {
        x
    } else {
        f32::NAN
    }
}
