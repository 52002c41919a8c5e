//! What the ranks of an example dispatch, and what must come back, in plain code: every expert's output is rounded to BF16, and so are each
//! rank's sum of them and the sum of those, in the order of the selections.
use epoxide::bf16;

/// Elements of a row.
pub const HIDDEN: u32 = 512;
/// Experts in all.
pub const EXPERTS: u32 = 16;
/// Experts of a token.
pub const TOP_K: u32 = 4;

/// The tokens of all ranks.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    pub ranks: u32,
    /// Of each rank.
    pub tokens: u32,
}

/// A token's experts and their gate weights, which add up to 1.
pub fn selections(rank: u32, token: u32) -> [(u32, f32); TOP_K as usize] {
    let first = 5 * rank + 3 * token;
    [(0, 0.5), (1, 0.25), (4, 0.125), (9, 0.125)].map(|(step, weight)| ((first + step) % EXPERTS, weight))
}

/// An element of a row. In FP8 it is the same number: the largest of 128 is 1.75, so the scale is 1/256, and four bits hold the others.
pub fn element(rank: u32, token: u32, column: u32) -> bf16 {
    let sixteenths =
        if column.is_multiple_of(128) { 28 } else { (31 * rank + 7 * token + 5 * column) as i32 % 31 - 15 };
    bf16::from_f32(sixteenths as f32 / 16.0)
}

impl Tokens {
    /// What a rank dispatches, BF16 `[tokens, hidden]`.
    pub fn rows(&self, rank: u32) -> Vec<bf16> {
        let row = |token| (0..HIDDEN).map(move |column| element(rank, token, column));
        (0..self.tokens).flat_map(row).collect()
    }

    /// A rank's experts and gate weights, `[tokens, top_k]`.
    pub fn routing(&self, rank: u32) -> (Vec<i64>, Vec<f32>) {
        let all = (0..self.tokens).flat_map(|token| selections(rank, token));
        all.map(|(expert, weight)| (i64::from(expert), weight)).unzip()
    }

    /// The rank that owns an expert: contiguous ranges, the first `experts % ranks` ranks one more.
    pub fn owner(&self, expert: u32) -> u32 {
        let (each, longer) = (EXPERTS / self.ranks, EXPERTS % self.ranks);
        let long = longer * (each + 1);
        if expert < long { expert / (each + 1) } else { longer + (expert - long) / each }
    }

    /// What combine makes of an element of a token's rows, given what each expert makes of it.
    fn sum(&self, selected: &[(u32, f32)], output: impl Fn(u32, f32) -> bf16) -> bf16 {
        let mut owners: Vec<u32> = Vec::new();
        selected.iter().map(|(expert, _)| self.owner(*expert)).for_each(|owner| {
            if !owners.contains(&owner) {
                owners.push(owner);
            }
        });
        let of = |owner: u32| {
            let own = selected.iter().filter(|(expert, _)| self.owner(*expert) == owner);
            bf16::from_f32(own.fold(0.0, |sum, &(expert, weight)| sum + output(expert, weight).to_f32()))
        };
        bf16::from_f32(owners.into_iter().fold(0.0, |sum, owner| sum + of(owner).to_f32()))
    }

    /// Compares what was combined on a rank, bit for bit, where `output` is what an expert makes of its row at (token, column), with a weight.
    ///
    /// # Errors
    ///
    /// The first element that is another.
    pub fn check(&self, rank: u32, y: &[bf16], output: impl Fn(u32, u32, u32, f32) -> bf16) -> Result<(), String> {
        if y.len() as u64 != u64::from(self.tokens) * u64::from(HIDDEN) {
            return Err(format!("rank {rank}: {} elements", y.len()));
        }
        for (token, y) in (0..).zip(y.chunks_exact(HIDDEN as usize)) {
            let selected = selections(rank, token);
            for (column, got) in (0..).zip(y) {
                let want = self.sum(&selected, |expert, weight| output(token, column, expert, weight));
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
        let all = Tokens { ranks: 1, tokens: 1 };
        let own = |token, column, _: u32, weight: f32| bf16::from_f32(weight * element(0, token, column).to_f32());
        let mut y = all.rows(0);
        all.check(0, &y, own).unwrap();
        y[511] = bf16::from_f32(100.0);
        let found = all.check(0, &y, own).unwrap_err();
        assert!(found.starts_with("rank 0, token 0, column 511: 100, expected "), "{found}");
        assert!(all.check(0, &[], own).is_err());
    }

    #[test]
    fn every_expert_has_an_owner() {
        let all = Tokens { ranks: 5, tokens: 1 };
        let owners: Vec<_> = (0..EXPERTS).map(|expert| all.owner(expert)).collect();
        assert_eq!(owners, [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
    }
}
