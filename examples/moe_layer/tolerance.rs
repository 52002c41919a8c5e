//! How far a row of the layer may be from the dense reference, and why.
//!
//! For one token with row `x`, gates `g_j` and experts `o_j = D_j · h_j`, `h_j = silu(U_j · x)`, the reference is
//! `y = Σ g_j o_j`. Norms are 2-norms of rows; `H` is hidden, `W` the expert width, `k` the number of selections. The layer
//! differs from the reference by these roundings, in order:
//!
//! 1. **FP8 on the wire** (with another `--format` than `bf16`). e4m3 has 4 significant bits, so rounding to nearest moves an element by
//!    at most 2^-4 of itself, or by half of the smallest step 2^-9 where that is more; in units of `x`, times the scale s, which is
//!    amax/448 or the power of two from there. It moves none by more than itself, because 0 is a number of the format. So an element x is off by
//!    `e = min(|x|, max(2^-4 |x|, 2^-10 s))`. The experts round the dequantised number to BF16, 2^-8 of itself or η, see below:
//!    `δx = (1 + 2^-8) e + 2^-8 |x| + η`. (A row far below amax's lower limit of 1e-4 is quantised to zeros; then `δx` is as large
//!    as the row, and no larger.)
//! 2. **f32 sums over H** in the first product: each addition rounds a partial sum by at most 2^-24 of it. Over the H terms
//!    that is like moving the input by `2H 2^-24 ‖x‖` (a factor 2 for the products' side and for the order of summation).
//! 3. These two pass through U: an element of `U_j δx` is a sum of independent weights times fixed numbers, because the
//!    weights know nothing of `x`. The weights are uniform, hence sub-Gaussian with their own variance σ_u², so all experts'
//!    elements together, weighted by the gates, have norm at most `σ_u ‖δx‖ N` with
//!    `N² = W Σg² + 2 √(W Σg⁴ s) + 2 max(g²) s`, but for a probability of e^-s (Hsu, Kakade, Zhang 2012, theorem 2.1). silu
//!    is steeper by at most L = 1.0999.
//! 4. **BF16 activations**: BF16 has 8 significant bits, unit roundoff u = 2^-8; `h_j` moves by at most `u ‖h_j‖`
//!    (and 2^-20 for the f32 exponential).
//! 5. 3 and 4 pass through D, whose weights know nothing of them: a factor of at most `σ_d (√H + τ)`, by the same theorem
//!    with τ² = 2s.
//! 6. **f32 sums over W and over the selections**: at most `2(W + k) 2^-24 σ_d (√H + τ) Σ g_j ‖h_j‖`.
//! 7. **BF16 rows for combine**: each rank rounds its part of `Σ g_j o_j`: together at most `u Σ g_j ‖o_j‖`. Where rows lie by expert
//!    (`--layout expand`) each `g_j o_j` is a row and rounded, and so is the sum of those on a rank: twice as much.
//! 8. **BF16 result**: `u ‖y‖`; combine's own f32 sum is within item 6.
//!
//! A relative bound holds while numbers are normal. Those below 2^-126 have a fixed step, 2^-133 in BF16 and 2^-149 in f32, so that
//! rounding moves them by half of it, whatever their size: η = 2^-134 and ζ = 2^-150. That is the larger part of the tolerance of a row
//! of subnormal numbers, and nothing beside the rest elsewhere. Sums of such numbers are exact (a sum that is subnormal is a multiple of
//! the step); products, quotients and roundings to BF16 are not. In the same order:
//!
//! * 2, 4: an element of `h_j` is moved by H products and by silu's quotient, `L (H + 2) ζ`, and by η as BF16. Over the W elements of
//!   all experts, weighted by the gates: `(η + L (H + 2) ζ) √(W Σg²)`. It passes through D as in 5.
//! * 6: an element of the sum is moved by W products for each expert, weighted by gates that sum to 1, and by k products with the
//!   gates: `(W + k) ζ √H`.
//! * 7, 8: an element of at most k parts and of the result is moved by η: `(k + 1) η √H`, by expert `(2k + 1) η √H`.
//!
//! Products of two of these are smaller than 4u of the sum: the sum is multiplied by 1 + 4u. τ = 8, so that s = 32 and a row
//! misses its tolerance by bad luck with a probability of about 1e-14. Weights rounded to BF16 are still sub-Gaussian, with
//! σ larger by at most 1 + u.
use epoxide::bf16;

use crate::e4m3::{self, Scaling};
use crate::experts::Experts;

/// Unit roundoff of BF16, 8 significant bits.
pub const U_BF16: f64 = 1.0 / 256.0;
/// Unit roundoff of e4m3, 4 significant bits.
pub const U_E4M3: f64 = 1.0 / 16.0;
/// Unit roundoff of f32, 24 significant bits.
pub const U_F32: f64 = 1.0 / 16_777_216.0;
/// Half of e4m3's smallest step.
const HALF_STEP: f64 = 1.0 / 1024.0;
/// Half of BF16's smallest step, 2^-134.
pub const ETA_BF16: f64 = 1.0 / (1u128 << 127) as f64 / 128.0;
/// Half of f32's smallest step, 2^-150.
pub const ETA_F32: f64 = ETA_BF16 / 65_536.0;
/// How many standard deviations the sums of random weights are allowed.
pub const TAU: f64 = 8.0;
/// The steepest slope of silu, at 2.3994.
pub const SLOPE: f64 = 1.0999;

/// What rounds rows besides, in a run as it was asked for.
#[derive(Clone, Copy)]
pub struct Rounded {
    /// FP8 on the wire, and how it is scaled.
    pub scaling: Option<Scaling>,
    /// Rows that lie by expert, and are summed on each rank.
    pub by_expert: bool,
}

/// What the reference knows of one token, for its tolerance.
#[derive(Clone, Copy, Default)]
pub struct Norms {
    /// Σ g².
    pub gates2: f64,
    /// Σ g⁴.
    pub gates4: f64,
    /// max g².
    pub gate_max2: f64,
    /// Σ g ‖h‖.
    pub inner: f64,
    /// Σ g² ‖h‖².
    pub inner2: f64,
    /// Σ g ‖o‖.
    pub outputs: f64,
}

impl Norms {
    /// Adds an expert with gate weight `gate`, activations of norm `inner` and an output of norm `output`.
    pub fn add(&mut self, gate: f64, inner: f64, output: f64) {
        let gate2 = gate * gate;
        self.gates2 += gate2;
        self.gates4 += gate2 * gate2;
        self.gate_max2 = self.gate_max2.max(gate2);
        self.inner += gate * inner;
        self.inner2 += gate2 * inner * inner;
        self.outputs += gate * output;
    }

    /// The tolerance of the row `x` with reference norm `y`: see the module's text, item by item.
    pub fn tolerance(&self, x: &[bf16], y: f64, experts: &Experts, top_k: usize, rounded: Rounded) -> f64 {
        let (hidden, width) = (experts.hidden as f64, experts.width as f64);
        let s = TAU * TAU / 2.0;
        let x_norm = norm(x.iter().map(|v| f64::from(v.to_f32())));
        let quantised = rounded.scaling.map_or(0.0, |scaling| quantised(x, scaling));
        let dx = quantised + 2.0 * hidden * U_F32 * x_norm;
        let spread = (width * self.gates2 + 2.0 * (width * self.gates4 * s).sqrt() + 2.0 * self.gate_max2 * s).sqrt();
        let first = SLOPE * (1.0 + U_BF16) * experts.up_sigma() * spread * dx;
        let step = ETA_BF16 + SLOPE * (hidden + 2.0) * ETA_F32;
        let activations = (U_BF16 + 16.0 * U_F32) * self.inner2.sqrt() + step * (width * self.gates2).sqrt();
        let second = (1.0 + U_BF16) * experts.down_sigma() * (hidden.sqrt() + TAU);
        let parts = top_k as f64;
        let times = if rounded.by_expert { 2.0 } else { 1.0 };
        let sums = 2.0 * (width + parts) * U_F32 * self.inner;
        let rounding = U_BF16 * (times * self.outputs + y)
            + hidden.sqrt() * ((times * parts + 1.0) * ETA_BF16 + (width + parts) * ETA_F32);
        (1.0 + 4.0 * U_BF16) * (second * (first + activations + sums) + rounding)
    }
}

/// How far FP8 and the rounding to BF16 after it move a row, at most.
fn quantised(x: &[bf16], scaling: Scaling) -> f64 {
    let group = |group: &[bf16]| {
        let amax = e4m3::amax(group);
        let scale = match scaling {
            Scaling::F32 => f64::from(amax) / f64::from(e4m3::MAX),
            _ => f64::from(scaling.scale(amax)),
        };
        let half_step = HALF_STEP * scale;
        let of_element = |x: &bf16| {
            let x = f64::from(x.to_f32().abs());
            (1.0 + U_BF16) * x.min(half_step.max(U_E4M3 * x)) + U_BF16 * x + ETA_BF16
        };
        group.iter().map(|x| of_element(x).powi(2)).sum::<f64>()
    };
    x.chunks(scaling.group()).map(group).sum::<f64>().sqrt()
}

/// The 2-norm.
pub fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_steps_are_those_of_the_formats() {
        assert_eq!(2.0 * ETA_BF16, f64::from(bf16::from_bits(1).to_f32()));
        assert_eq!(2.0 * ETA_F32, f64::from(f32::from_bits(1)));
    }

    /// Against the plain quantiser, over 60 powers of two and every place between two of them.
    #[test]
    fn no_row_is_quantised_further_from_itself_than_its_bound() {
        let round_trip = |row: &[bf16], scaling: Scaling| {
            let group = scaling.group();
            let (mut codes, mut scales) = (vec![0; row.len()], vec![0.0; row.len().div_ceil(group)]);
            e4m3::quantise_row(row, scaling, &mut codes, &mut scales);
            let words = scaling.words(&scales);
            let scales = (0..row.len()).map(|at| scaling.scale_of(&words, at / group));
            let back = codes.iter().zip(scales).map(|(&code, scale)| bf16::from_f32(e4m3::decode(code) * scale));
            norm(row.iter().zip(back).map(|(a, b)| f64::from(a.to_f32()) - f64::from(b.to_f32())))
        };
        for scaling in [Scaling::F32, Scaling::Ue8m0, Scaling::Mx] {
            let mut closest = 0.0f64;
            for amax in [0x0001, 0x0020, 0x3800, 0x3f80, 0x7f00].map(bf16::from_bits) {
                // Rounded up to the next power of two, the last numbers before 2^128 would be beyond the formats.
                let end = if scaling == Scaling::F32 { 0x7f80 } else { 0x7f78 };
                for bits in 0..end {
                    let row = [amax, bf16::from_bits(bits)];
                    let (moved, bound) = (round_trip(&row, scaling), quantised(&row, scaling));
                    assert!(moved <= bound, "{row:?} moves by {moved:e}, bound {bound:e}");
                    closest = closest.max(moved / bound);
                }
                let row = [bf16::from_bits(11); 8];
                let size = norm(row.iter().map(|v| f64::from(v.to_f32())));
                let bound = quantised(&row, scaling);
                assert!(bound < 1.2 * size, "a bound that says nothing: {bound:e} of {size:e}");
            }
            assert!(closest > 0.8, "the bound is no longer near what happens: {closest}");
        }
    }
}
