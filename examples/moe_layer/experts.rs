//! The experts: small seeded MLPs in BF16, and what a rank computes with its own.
//!
//! An expert is `down · silu(up · x)`. As on a GPU with BF16 tensor cores, inputs, weights and the activations between the
//! two products are BF16 and sums are f32. A row's experts on one rank are summed in f32 with their gate weights, and the
//! sum is rounded once to BF16: that row is what combine gathers.
use anyhow::Result;
use epoxide::{WireRows, bf16};

use crate::e4m3::{self, Scaling};
use crate::matmul::{Number, linear, round, widen_into, widen_onto};
use crate::memory::zeroed;
use crate::parallel;
use crate::plan::ReceivedPlan;
use crate::progress::Progress;
use crate::seeded::Sequence;

/// Rows that are computed together: their f32 sums are the largest thing that a rank keeps beside its rows.
const ROWS_AT_ONCE: usize = 1024;
/// Names the experts' weights among the seeded numbers.
const UP: u64 = 3;
/// See [`UP`].
const DOWN: u64 = 4;

/// All experts' weights. A rank looks only at its own.
pub struct Experts {
    /// Elements of a row.
    pub hidden: usize,
    /// Elements between the two products.
    pub width: usize,
    /// BF16 `[experts, width, hidden]`, of standard deviation [`Experts::up_sigma`].
    up: Vec<bf16>,
    /// BF16 `[experts, hidden, width]`, of standard deviation [`Experts::down_sigma`].
    down: Vec<bf16>,
}

impl Experts {
    /// Makes the weights that `seed` names.
    ///
    /// # Errors
    ///
    /// When there is no memory for them.
    pub fn new(experts: usize, hidden: usize, width: usize, seed: u64) -> Result<Self> {
        let size = hidden * width;
        let room = || zeroed::<bf16>("the experts' weights", experts * size);
        let mut made = Self { hidden, width, up: room()?, down: room()? };
        let (up_sigma, down_sigma) = (made.up_sigma(), made.down_sigma());
        let weights = made.up.chunks_exact_mut(size).zip(made.down.chunks_exact_mut(size));
        parallel::for_each(weights.enumerate(), |(expert, (up, down))| {
            for (matrix, sigma, weights) in [(UP, up_sigma, up), (DOWN, down_sigma, down)] {
                let sequence = Sequence::new(&[matrix, seed, expert as u64]);
                sequence.uniform(sigma, size, |i, value| weights[i] = round(value));
            }
        });
        Ok(made)
    }

    /// Standard deviation of the first matrix' weights: rows of variance 1 become activations of variance 1.
    pub fn up_sigma(&self) -> f64 {
        1.0 / (self.hidden as f64).sqrt()
    }

    /// Standard deviation of the second matrix' weights.
    pub fn down_sigma(&self) -> f64 {
        1.0 / (self.width as f64).sqrt()
    }

    /// An expert's first matrix, `[width, hidden]`.
    pub fn up(&self, expert: usize) -> &[bf16] {
        &self.up[expert * self.hidden * self.width..][..self.hidden * self.width]
    }

    /// An expert's second matrix, `[hidden, width]`.
    pub fn down(&self, expert: usize) -> &[bf16] {
        &self.down[expert * self.hidden * self.width..][..self.hidden * self.width]
    }
}

/// Computes a rank's output rows from what it received; `first` is its first expert. Received BF16 rows are replaced one by
/// one by the outputs, so that the two never exist together.
pub fn outputs(
    experts: &Experts,
    first: usize,
    x: WireRows,
    topk_idx: &[i32],
    topk_weights: &[f32],
    plan: &ReceivedPlan,
    progress: &Progress,
) -> Vec<bf16> {
    let (hidden, rows) = (experts.hidden, plan.rows());
    let top_k = topk_idx.len().checked_div(rows).unwrap_or(1);
    let (wire, mut out) = match x {
        WireRows::Bf16(rows) => (None, rows),
        WireRows::Fp8 { codes, scales, scale_stride } => {
            let words = scales.into_iter().map(f32::to_bits).collect();
            (Some((codes, words, scale_stride as usize, Scaling::F32)), vec![bf16::ZERO; rows * hidden])
        }
        WireRows::Fp8Packed { codes, scales, scale_stride, group } => {
            let scaling = if group == 32 { Scaling::Mx } else { Scaling::Ue8m0 };
            (Some((codes, scales, scale_stride as usize, scaling)), vec![bf16::ZERO; rows * hidden])
        }
        WireRows::Opaque { .. } => unreachable!("the example has no such format, and the rows were counted"),
    };
    let table = e4m3::table();
    let mut work = Workspace::default();
    let mut sums = Vec::new();
    for start in (0..rows).step_by(ROWS_AT_ONCE) {
        let chunk = start..(start + ROWS_AT_ONCE).min(rows);
        sums.clear();
        sums.resize(chunk.len() * hidden, 0f32);
        // Which rows of the chunk, with which weight, each expert has.
        let mut members = vec![Vec::new(); plan.by_expert.len()];
        for row in chunk.clone() {
            for position in row * top_k..(row + 1) * top_k {
                if let Ok(local) = usize::try_from(topk_idx[position]) {
                    members[local].push((row, topk_weights[position]));
                }
            }
        }
        for (local, members) in members.iter().enumerate().filter(|(_, members)| !members.is_empty()) {
            work.x.clear();
            for &(row, _) in members {
                match &wire {
                    None => widen_onto(&mut work.x, &out[row * hidden..(row + 1) * hidden]),
                    Some((codes, words, stride, scaling)) => {
                        let (codes, words) = (&codes[row * hidden..(row + 1) * hidden], &words[row * stride..]);
                        for (number, group) in codes.chunks(scaling.group()).enumerate() {
                            let scale = scaling.scale_of(words, number);
                            // An expert in BF16 takes BF16: the dequantised number is rounded once more.
                            let dequantise = |&code: &u8| f32::widen(round(table[usize::from(code)] * scale));
                            work.x.extend(group.iter().map(dequantise));
                        }
                    }
                }
            }
            work.mlp(experts, first + local);
            for (&(row, weight), output) in members.iter().zip(work.output.chunks_exact(hidden)) {
                let sum = &mut sums[(row - start) * hidden..][..hidden];
                sum.iter_mut().zip(output).for_each(|(sum, output)| *sum += weight * output);
            }
        }
        for (out, &sum) in out[chunk.start * hidden..chunk.end * hidden].iter_mut().zip(&sums) {
            *out = round(sum);
        }
        progress.rows(chunk.len());
    }
    out
}

/// Room for one expert's rows, kept from expert to expert.
#[derive(Default)]
struct Workspace {
    x: Vec<f32>,
    weights: Vec<f32>,
    inner: Vec<f32>,
    output: Vec<f32>,
}

impl Workspace {
    /// Computes `output` from `x`.
    fn mlp(&mut self, experts: &Experts, expert: usize) {
        widen_into(&mut self.weights, experts.up(expert));
        linear(&self.x, &self.weights, experts.hidden, &mut self.inner);
        for value in &mut self.inner {
            let silu = *value / (1.0 + (-*value).exp());
            *value = f32::widen(round(silu));
        }
        widen_into(&mut self.weights, experts.down(expert));
        linear(&self.inner, &self.weights, experts.width, &mut self.output);
    }
}
