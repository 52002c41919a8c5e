//! The layer as one process without ranks would compute it: for every token, the gate-weighted sum of its experts on the
//! original row, in f64.
//!
//! Nothing here knows of dispatch, of ranks or of FP8. Tokens of one expert are computed together, because a matrix product
//! of one row is slow.
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use epoxide::bf16;

use crate::experts::Experts;
use crate::input::Input;
use crate::matmul::{linear, widen_into, widen_onto};
use crate::parallel;
use crate::progress::Progress;
use crate::router::Routing;
use crate::tolerance::{Norms, Rounded, norm};

/// Tokens that are computed together, at most: their f64 sums are kept, and every expert's weights are widened once for them.
const TOKENS_AT_ONCE: usize = 2048;

/// How far the layer's rows are from the reference. Errors and tolerances are relative to the reference row's norm.
#[derive(Clone, Default)]
pub struct Accuracy {
    /// Rows compared.
    pub rows: usize,
    /// Largest error of a row.
    pub max_error: f64,
    /// Mean error.
    pub mean_error: f64,
    /// Smallest tolerance of a row.
    pub min_tolerance: f64,
    /// Mean tolerance.
    pub mean_tolerance: f64,
    /// Rows whose tolerance is as large as they are.
    pub unresolved: usize,
    /// The row whose error is the largest part of its tolerance: token, error, tolerance.
    pub worst: Option<(usize, f64, f64)>,
}

impl Accuracy {
    /// The worst row's error as a part of its tolerance.
    pub fn worst_ratio(&self) -> f64 {
        // A row of zeros has no tolerance and needs none.
        self.worst.map_or(0.0, |(_, error, tolerance)| if error == 0.0 { 0.0 } else { error / tolerance })
    }

    fn add(&mut self, token: usize, error: f64, tolerance: f64) {
        let row = Self {
            rows: 1,
            max_error: error,
            mean_error: error,
            min_tolerance: tolerance,
            mean_tolerance: tolerance,
            unresolved: usize::from(tolerance >= 1.0),
            worst: Some((token, error, tolerance)),
        };
        *self = std::mem::take(self).with(row);
    }

    fn with(self, other: Self) -> Self {
        if self.rows == 0 || other.rows == 0 {
            return if self.rows == 0 { other } else { self };
        }
        let (a, b) = (self.rows as f64, other.rows as f64);
        let mean = |x: f64, y: f64| (x * a + y * b) / (a + b);
        // In the total order a NaN, which no error should be, is worse than anything.
        let worse = other.worst_ratio().abs().total_cmp(&self.worst_ratio().abs()).is_gt();
        Self {
            rows: self.rows + other.rows,
            max_error: self.max_error.max(other.max_error),
            mean_error: mean(self.mean_error, other.mean_error),
            min_tolerance: self.min_tolerance.min(other.min_tolerance),
            mean_tolerance: mean(self.mean_tolerance, other.mean_tolerance),
            unresolved: self.unresolved + other.unresolved,
            worst: if worse { other.worst } else { self.worst },
        }
    }
}

/// Compares `y` `[tokens, hidden]` with the reference.
pub fn compare(
    input: &Input,
    routing: &Routing,
    experts: &Experts,
    y: &[bf16],
    rounded: Rounded,
    progress: &Progress,
) -> Accuracy {
    let chunk = input.tokens.div_ceil(parallel::cores()).clamp(1, TOKENS_AT_ONCE);
    let chunks = (0..input.tokens).step_by(chunk).map(|start| start..(start + chunk).min(input.tokens));
    let total = Mutex::new(Accuracy::default());
    parallel::for_each(chunks, |tokens| {
        let (sums, norms) = evaluate(input, routing, experts, tokens.clone());
        let mut part = Accuracy::default();
        for ((token, reference), norms) in tokens.clone().zip(sums.chunks_exact(input.hidden)).zip(&norms) {
            let row = &y[token * input.hidden..(token + 1) * input.hidden];
            let size = norm(reference.iter().copied());
            let error = norm(row.iter().zip(reference).map(|(y, reference)| f64::from(y.to_f32()) - reference));
            let tolerance = norms.tolerance(input.row(token), size, experts, routing.top_k, rounded);
            // A reference of exactly 0 leaves the error as it is, to be compared with a tolerance of 0.
            let unit = if size == 0.0 { 1.0 } else { size };
            part.add(token, error / unit, tolerance / unit);
        }
        progress.rows(tokens.len());
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        *total = std::mem::take(&mut *total).with(part);
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The reference's rows of some tokens, and what their tolerance needs.
fn evaluate(input: &Input, routing: &Routing, experts: &Experts, tokens: Range<usize>) -> (Vec<f64>, Vec<Norms>) {
    let hidden = input.hidden;
    let mut sums = vec![0f64; tokens.len() * hidden];
    let mut norms = vec![Norms::default(); tokens.len()];
    let mut by_expert = vec![Vec::new(); input.experts];
    for token in tokens.clone() {
        for (&expert, &gate) in routing.selected(token).iter().zip(routing.gates(token)) {
            by_expert[expert as usize].push((token - tokens.start, f64::from(gate)));
        }
    }
    let (mut x, mut weights, mut inner, mut outputs) = (Vec::<f64>::new(), Vec::new(), Vec::new(), Vec::new());
    for (expert, members) in by_expert.iter().enumerate().filter(|(_, members)| !members.is_empty()) {
        x.clear();
        for &(token, _) in members {
            widen_onto(&mut x, input.row(tokens.start + token));
        }
        widen_into(&mut weights, experts.up(expert));
        linear(&x, &weights, hidden, &mut inner);
        for a in &mut inner {
            *a *= 1.0 / (1.0 + f64::exp(-*a));
        }
        widen_into(&mut weights, experts.down(expert));
        linear(&inner, &weights, experts.width, &mut outputs);
        let rows = inner.chunks_exact(experts.width).zip(outputs.chunks_exact(hidden));
        for (&(token, gate), (h, o)) in members.iter().zip(rows) {
            norms[token].add(gate, norm(h.iter().copied()), norm(o.iter().copied()));
            let sum = &mut sums[token * hidden..(token + 1) * hidden];
            sum.iter_mut().zip(o).for_each(|(sum, o)| *sum += gate * o);
        }
    }
    (sums, norms)
}
