//! What the ranks compute, and in plain code what must come out.
use std::f32::consts::LOG2_E;

use epoxide::bf16;
use epoxide_dsl::math;

/// Elements of a row.
pub const HIDDEN: u32 = 512;
/// Experts in all.
pub const EXPERTS: u32 = 16;
/// Experts of a token.
pub const TOP_K: u32 = 4;

/// The size of it.
pub struct Model {
    pub ranks: u32,
    /// Of each rank.
    pub tokens: u32,
    pub layers: u32,
}

/// An expert's factor.
pub fn factor(expert: u32) -> f32 {
    1.0 + expert as f32 / 8.0
}

/// A token's experts in a layer and their gate weights, which add up to 1.
fn selections(rank: u32, token: u32, layer: u32) -> [(u32, f32); TOP_K as usize] {
    let first = 5 * rank + 3 * token + 7 * layer;
    [(0, 0.5), (1, 0.25), (4, 0.125), (9, 0.125)].map(|(step, weight)| ((first + step) % EXPERTS, weight))
}

impl Model {
    /// BF16 `[tokens, hidden]`.
    pub fn rows(&self, rank: u32) -> Vec<bf16> {
        let element = move |token, column| ((31 * rank + 7 * token + column) % 61) as f32 / 16.0 - 1.875;
        let row = |token| (0..HIDDEN).map(move |column| bf16::from_f32(element(token, column)));
        (0..self.tokens).flat_map(row).collect()
    }

    /// Experts and gate weights of a layer, `[tokens, top_k]`.
    pub fn routing(&self, rank: u32, layer: u32) -> (Vec<i64>, Vec<f32>) {
        let all = (0..self.tokens).flat_map(|token| selections(rank, token, layer));
        all.map(|(expert, weight)| (i64::from(expert), weight)).unzip()
    }

    /// The rank that owns an expert: contiguous ranges, the first `experts % ranks` ranks one more.
    fn owner(&self, expert: u32) -> u32 {
        let (each, longer) = (EXPERTS / self.ranks, EXPERTS % self.ranks);
        let long = longer * (each + 1);
        if expert < long { expert / (each + 1) } else { longer + (expert - long) / each }
    }

    /// A layer of one element: every expert's output is rounded to BF16, and so are each rank's sum of them, and the sum of those, in the
    /// order of the selections.
    fn layer(&self, selected: &[(u32, f32)], x: bf16) -> bf16 {
        let round = |x: f32| bf16::from_f32(x).to_f32();
        let output = |&(expert, weight): &(u32, f32)| {
            let (x, gate) = (x.to_f32(), factor(expert) * x.to_f32());
            round(weight * (gate / (1.0 + math::exp2(-gate * LOG2_E)) * x))
        };
        let mut owners: Vec<u32> = Vec::new();
        selected.iter().map(|(expert, _)| self.owner(*expert)).for_each(|owner| {
            if !owners.contains(&owner) {
                owners.push(owner);
            }
        });
        let own = |owner: u32| selected.iter().filter(move |(expert, _)| self.owner(*expert) == owner);
        let sums = owners.into_iter().map(|owner| round(own(owner).map(output).fold(0.0, |sum, y| sum + y)));
        bf16::from_f32(sums.fold(0.0, |total, sum| total + sum))
    }

    /// Compares what came out of a rank, bit for bit.
    ///
    /// # Errors
    ///
    /// The first element that is another.
    pub fn check(&self, rank: u32, y: &[bf16]) -> Result<(), String> {
        let x = self.rows(rank);
        if y.len() != x.len() {
            return Err(format!("rank {rank}: {} elements", y.len()));
        }
        let rows = x.chunks_exact(HIDDEN as usize).zip(y.chunks_exact(HIDDEN as usize));
        for (token, (x, y)) in (0..).zip(rows) {
            let layers: Vec<_> = (0..self.layers).map(|layer| selections(rank, token, layer)).collect();
            for (column, (&x, &got)) in x.iter().zip(y).enumerate() {
                let want = layers.iter().fold(x, |x, selected| self.layer(selected, x));
                if got.to_bits() != want.to_bits() {
                    return Err(format!("rank {rank}, token {token}, column {column}: {got}, expected {want}"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_that_is_another_is_found() {
        let model = Model { ranks: 1, tokens: 1, layers: 0 };
        let mut y = model.rows(0);
        model.check(0, &y).unwrap();
        y[511] = bf16::from_f32(100.0);
        let found = model.check(0, &y).unwrap_err();
        assert!(found.starts_with("rank 0, token 0, column 511: 100, expected "), "{found}");
        assert!(model.check(0, &[]).is_err());
    }

    #[test]
    fn a_layer_is_the_gated_function_by_weight() {
        let model = Model { ranks: 2, tokens: 1, layers: 1 };
        // Factor 1: x / (1 + e^-x) * x at 1 is 0.731; of two experts by halves it is the same.
        let y = model.layer(&[(0, 0.5), (0, 0.5)], bf16::ONE).to_f32();
        assert!((y - 0.731).abs() < 0.004, "{y}");
        assert!(model.layer(&[(0, 1.0)], bf16::ZERO).to_f32() == 0.0);
    }
}
