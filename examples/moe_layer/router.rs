//! The router: which experts a token selects, and with what gate weights.
use std::cmp::Ordering;

use epoxide::bf16;

use crate::input::{Input, Logits};
use crate::matmul::{linear, widen_into};
use crate::parallel;
use crate::progress::Progress;
use crate::seeded::Sequence;

/// Tokens that are routed together: enough for an efficient matrix product, few enough that their f32 copy is small.
const TOKENS_AT_ONCE: usize = 256;
/// Names the router's weights among the seeded numbers.
const ROUTER: u64 = 2;

/// Every token's selections.
pub struct Routing {
    /// Selections of a token.
    pub top_k: usize,
    /// Experts `[tokens, top_k]`, distinct in a token, the one with the largest logit first.
    pub experts: Vec<i32>,
    /// Gate weights `[tokens, top_k]`, which sum to 1 in a token.
    pub weights: Vec<f32>,
}

impl Routing {
    /// Routes all tokens: by the input's own logits, or by a linear layer of seeded weights.
    pub fn new(input: &Input, top_k: usize, seed: u64, progress: &Progress) -> Self {
        let experts = input.experts;
        let weights = match &input.logits {
            Logits::Given(_) => Vec::new(),
            Logits::Seeded => seeded_weights(experts, input.hidden, seed),
        };
        let mut routing =
            Self { top_k, experts: vec![0; input.tokens * top_k], weights: vec![0.0; input.tokens * top_k] };
        let parts =
            routing.experts.chunks_mut(TOKENS_AT_ONCE * top_k).zip(routing.weights.chunks_mut(TOKENS_AT_ONCE * top_k));
        parallel::for_each(parts.enumerate(), |(part, (selected, gates))| {
            let first = part * TOKENS_AT_ONCE;
            let tokens = first..first + selected.len() / top_k;
            let mut computed = Vec::new();
            let logits = match &input.logits {
                Logits::Given(logits) => &logits[tokens.start * experts..tokens.end * experts],
                Logits::Seeded => {
                    let mut x = Vec::new();
                    widen_into(&mut x, input.rows(tokens.clone()));
                    linear(&x, &weights, input.hidden, &mut computed);
                    &computed[..]
                }
            };
            let outputs = selected.chunks_exact_mut(top_k).zip(gates.chunks_exact_mut(top_k));
            for (logits, (selected, gates)) in logits.chunks_exact(experts).zip(outputs) {
                select(logits, selected, gates);
            }
            progress.rows(tokens.len());
        });
        routing
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.experts.len() / self.top_k
    }

    /// Experts that a token selects.
    pub fn selected(&self, token: usize) -> &[i32] {
        &self.experts[token * self.top_k..(token + 1) * self.top_k]
    }

    /// Gate weights of these experts.
    pub fn gates(&self, token: usize) -> &[f32] {
        &self.weights[token * self.top_k..(token + 1) * self.top_k]
    }
}

/// The router's weights, f32 `[experts, hidden]`: logits of rows with variance 1 have variance 1.
fn seeded_weights(experts: usize, hidden: usize, seed: u64) -> Vec<f32> {
    let mut weights = vec![0.0; experts * hidden];
    let sigma = 1.0 / (hidden as f64).sqrt();
    // In BF16, as a model's router would be stored.
    let store = |i: usize, value| weights[i] = bf16::from_f32(value).to_f32();
    Sequence::new(&[ROUTER, seed]).uniform(sigma, experts * hidden, store);
    weights
}

/// Selects the largest logits, of equal ones the lower expert, and gives them softmax weights among themselves.
fn select(logits: &[f32], selected: &mut [i32], gates: &mut [f32]) {
    let top_k = selected.len();
    let larger = |a: &usize, b: &usize| match logits[*b].total_cmp(&logits[*a]) {
        Ordering::Equal => a.cmp(b),
        unequal => unequal,
    };
    let mut order: Vec<usize> = (0..logits.len()).collect();
    if top_k < order.len() {
        order.select_nth_unstable_by(top_k, larger);
    }
    order.truncate(top_k);
    order.sort_unstable_by(larger);
    // The largest logit is subtracted so that no exponential overflows. It is finite: a token has an expert that is not masked. A
    // masked one (-inf) that is selected for want of others has a weight of 0.
    let largest = order.first().map_or(0.0, |&expert| logits[expert]);
    for ((&expert, selected), gate) in order.iter().zip(selected).zip(gates.iter_mut()) {
        *selected = expert as i32;
        *gate = (logits[expert] - largest).exp();
    }
    let sum: f32 = gates.iter().sum();
    gates.iter_mut().for_each(|gate| *gate /= sum);
}

#[cfg(test)]
mod tests {
    use super::select;

    fn selected(logits: &[f32], top_k: usize) -> (Vec<i32>, Vec<f32>) {
        let (mut experts, mut gates) = (vec![0; top_k], vec![0.0; top_k]);
        select(logits, &mut experts, &mut gates);
        (experts, gates)
    }

    #[test]
    fn a_masked_expert_is_selected_last_and_weighs_nothing() {
        let masked = f32::NEG_INFINITY;
        assert_eq!(selected(&[0.0, masked], 1), (vec![0], vec![1.0]));
        assert_eq!(selected(&[masked, 0.0], 2), (vec![1, 0], vec![1.0, 0.0]));
        assert_eq!(selected(&[masked, 3.0, masked, 3.0], 3), (vec![1, 3, 0], vec![0.5, 0.5, 0.0]));
    }
}
