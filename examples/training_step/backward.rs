//! What must come out of a step, in plain code.
use epoxide::bf16;

use crate::by_hand::{EXPERTS, HIDDEN, Tokens, element, selections};

/// An expert's parameter for a column.
pub fn parameter(expert: u32, column: u32) -> f32 {
    1.0 + expert as f32 / 8.0 + (column % 4) as f32 / 4.0
}

/// The gradient of what was combined for a token, at a column.
pub fn d_output(rank: u32, token: u32, column: u32) -> bf16 {
    bf16::from_f32(((17 * rank + 11 * token + 3 * column) % 29) as f32 / 8.0 - 1.75)
}

/// What comes out of a step on a rank.
pub struct Outcome {
    /// The sums, BF16 `[tokens, hidden]`.
    pub y: Vec<bf16>,
    /// The gradients of what was dispatched, of the same shape.
    pub dx: Vec<bf16>,
    /// Of the parameters, `[local experts, hidden]`.
    pub d_parameters: Vec<f32>,
    /// Of the gate weights of the rank's tokens, `[tokens, top_k]`.
    pub d_gates: Vec<f32>,
}

impl Tokens {
    /// The gradients of a rank's sums, BF16 `[tokens, hidden]`.
    pub fn d_outputs(&self, rank: u32) -> Vec<bf16> {
        let row = |token| (0..HIDDEN).map(move |column| d_output(rank, token, column));
        (0..self.tokens).flat_map(row).collect()
    }

    /// Compares all that came out of a rank, bit for bit.
    ///
    /// # Errors
    ///
    /// The first number that is another.
    pub fn check_step(&self, rank: u32, outcome: &Outcome) -> Result<(), String> {
        let product = |of: fn(u32, u32, u32) -> bf16| {
            move |token, column, expert, gate: f32| {
                bf16::from_f32(gate * (parameter(expert, column) * of(rank, token, column).to_f32()))
            }
        };
        self.check(rank, &outcome.y, product(element))?;
        self.check(rank, &outcome.dx, product(d_output)).map_err(|wrong| format!("gradients of {wrong}"))?;
        self.check_gates(rank, &outcome.d_gates)?;
        let mut d_parameters = outcome.d_parameters.chunks_exact(HIDDEN as usize);
        for expert in (0..EXPERTS).filter(|expert| self.owner(*expert) == rank) {
            let mut want = vec![0.0f32; HIDDEN as usize];
            for (source, token) in (0..self.ranks).flat_map(|source| (0..self.tokens).map(move |token| (source, token)))
            {
                let Some((_, gate)) = selections(source, token).into_iter().find(|(e, _)| *e == expert) else {
                    continue;
                };
                for (column, want) in (0..).zip(&mut want) {
                    let x = element(source, token, column).to_f32();
                    let d = d_output(source, token, column).to_f32();
                    *want += gate * d * x;
                }
            }
            let got = d_parameters.next().unwrap_or_default();
            if got.iter().map(|x| x.to_bits()).ne(want.iter().map(|x| x.to_bits())) {
                return Err(format!("gradients of expert {expert}'s parameters are others"));
            }
        }
        let left = d_parameters.count();
        if left > 0 { Err(format!("rank {rank}: {left} gradients too many")) } else { Ok(()) }
    }

    /// Compares the gradients of the gate weights of a rank's tokens, bit for bit.
    fn check_gates(&self, rank: u32, d_gates: &[f32]) -> Result<(), String> {
        let of_token = |token| selections(rank, token).into_iter().map(move |(expert, _)| (token, expert));
        let selected: Vec<_> = (0..self.tokens).flat_map(of_token).collect();
        if d_gates.len() != selected.len() {
            return Err(format!("rank {rank}: {} gradients of {} gate weights", d_gates.len(), selected.len()));
        }
        for ((token, expert), got) in selected.into_iter().zip(d_gates) {
            let of = |column| {
                let (x, d) = (element(rank, token, column).to_f32(), d_output(rank, token, column).to_f32());
                d * (parameter(expert, column) * x)
            };
            let want = (0..HIDDEN).fold(0.0f32, |sum, column| sum + of(column));
            if got.to_bits() != want.to_bits() {
                return Err(format!("rank {rank}, token {token}, gate of expert {expert}: {got}, expected {want}"));
            }
        }
        Ok(())
    }
}
