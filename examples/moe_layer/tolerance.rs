//! How far a row of the layer may be from the dense reference, and why.
//!
//! For one token with row `x`, gates `g_j` and experts `o_j = D_j · h_j`, `h_j = silu(U_j · x)`, the reference is
//! `y = Σ g_j o_j`. Norms are 2-norms of rows; `H` is hidden, `W` the expert width, `k` the number of selections. The layer
//! differs from the reference by these roundings, in order:
//!
//! 1. **FP8 on the wire** (only with `--format fp8`). e4m3 has 4 significant bits, so rounding to nearest moves an element by
//!    at most 2^-4 of itself, or by half of the smallest step 2^-9 where that is more; in units of `x`, times the scale
//!    amax/448. The experts round the dequantised number to BF16, 2^-8 of itself. So
//!    `‖δx‖ ≤ (2^-4 + 2^-8) ‖x‖ + 2^-10 ‖amax/448‖`, the last norm over all elements with their group's amax.
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
//! 7. **BF16 rows for combine**: each rank rounds its part of `Σ g_j o_j`: together at most `u Σ g_j ‖o_j‖`.
//! 8. **BF16 result**: `u ‖y‖`; combine's own f32 sum is within item 6.
//!
//! Products of two of these are smaller than 4u of the sum: the sum is multiplied by 1 + 4u. τ = 8, so that s = 32 and a row
//! misses its tolerance by bad luck with a probability of about 1e-14. Weights rounded to BF16 are still sub-Gaussian, with
//! σ larger by at most 1 + u.
use epoxide::bf16;

use crate::e4m3;
use crate::experts::Experts;

/// Unit roundoff of BF16, 8 significant bits.
pub const U_BF16: f64 = 1.0 / 256.0;
/// Unit roundoff of e4m3, 4 significant bits.
pub const U_E4M3: f64 = 1.0 / 16.0;
/// Unit roundoff of f32, 24 significant bits.
pub const U_F32: f64 = 1.0 / 16_777_216.0;
/// Half of e4m3's smallest step.
const HALF_STEP: f64 = 1.0 / 1024.0;
/// How many standard deviations the sums of random weights are allowed.
pub const TAU: f64 = 8.0;
/// The steepest slope of silu, at 2.3994.
pub const SLOPE: f64 = 1.0999;

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
    pub fn tolerance(&self, x: &[bf16], y: f64, experts: &Experts, top_k: usize, fp8: bool) -> f64 {
        let (hidden, width) = (experts.hidden as f64, experts.width as f64);
        let s = TAU * TAU / 2.0;
        let x_norm = norm(x.iter().map(|v| f64::from(v.to_f32())));
        let quantised = if fp8 { (U_E4M3 + U_BF16) * x_norm + HALF_STEP * scale_norm(x) } else { 0.0 };
        let dx = quantised + 2.0 * hidden * U_F32 * x_norm;
        let spread = (width * self.gates2 + 2.0 * (width * self.gates4 * s).sqrt() + 2.0 * self.gate_max2 * s).sqrt();
        let first = SLOPE * (1.0 + U_BF16) * experts.up_sigma() * spread * dx;
        let activations = (U_BF16 + 16.0 * U_F32) * self.inner2.sqrt();
        let second = (1.0 + U_BF16) * experts.down_sigma() * (hidden.sqrt() + TAU);
        let sums = 2.0 * (width + top_k as f64) * U_F32 * self.inner;
        let rounding = U_BF16 * (self.outputs + y);
        (1.0 + 4.0 * U_BF16) * (second * (first + activations + sums) + rounding)
    }
}

/// The norm over all elements of their group's scale.
fn scale_norm(x: &[bf16]) -> f64 {
    let scale = |group: &[bf16]| f64::from(e4m3::amax(group)) / f64::from(e4m3::MAX);
    x.chunks(e4m3::GROUP).map(|group| group.len() as f64 * scale(group).powi(2)).sum::<f64>().sqrt()
}

/// The 2-norm.
pub fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}
