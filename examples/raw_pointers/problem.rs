//! What the ranks dispatch, and in plain code what must come back.
use epoxide::bf16;

/// Elements of a row.
pub const HIDDEN: u32 = 512;
/// Experts in all.
pub const EXPERTS: u32 = 8;
/// Experts of a token.
pub const TOP_K: u32 = 2;

/// The size of it.
pub struct Problem {
    pub ranks: u32,
    /// Of each rank.
    pub tokens: u32,
}

/// A token's selections: expert and gate weight, -1 and 0 for none.
///
/// Weights are eighths and elements small integers, so that f32 holds every product and sum exactly, in whatever order.
fn selections(rank: u32, token: u32) -> [(i64, f32); TOP_K as usize] {
    let first = (rank + 3 * token) % EXPERTS;
    let second = (first + 1 + token % (EXPERTS - 1)) % EXPERTS;
    let weight = |k: u32| (1 + (rank + token + k) % 8) as f32 / 8.0;
    let second = if token % 5 == 4 { (-1, 0.0) } else { (i64::from(second), weight(1)) };
    [(i64::from(first), weight(0)), second]
}

fn element(rank: u32, token: u32, column: u32) -> f32 {
    ((31 * rank + 7 * token + column) % 17) as f32 - 8.0
}

impl Problem {
    /// BF16 `[tokens, hidden]`.
    pub fn rows(&self, rank: u32) -> Vec<bf16> {
        let row = |token| (0..HIDDEN).map(move |column| bf16::from_f32(element(rank, token, column)));
        (0..self.tokens).flat_map(row).collect()
    }

    /// `[tokens, top_k]`.
    pub fn topk_idx(&self, rank: u32) -> Vec<i64> {
        (0..self.tokens).flat_map(|token| selections(rank, token).map(|(expert, _)| expert)).collect()
    }

    /// `[tokens, top_k]`.
    pub fn topk_weights(&self, rank: u32) -> Vec<f32> {
        (0..self.tokens).flat_map(|token| selections(rank, token).map(|(_, weight)| weight)).collect()
    }

    /// The rank that owns an expert: contiguous ranges, the first `experts % ranks` ranks one more.
    fn owner(&self, expert: u32) -> u32 {
        let (each, longer) = (EXPERTS / self.ranks, EXPERTS % self.ranks);
        let long = longer * (each + 1);
        if expert < long { expert / (each + 1) } else { longer + (expert - long) / each }
    }

    /// What a rank's experts make of a token's row is the row times this: its weights times expert numbers from 1 if `weighted`, else 1.
    /// Nothing for a rank without an expert of the token's.
    fn factor(&self, owner: u32, weighted: bool, token: [(i64, f32); TOP_K as usize]) -> Option<f32> {
        let own = token.into_iter().filter_map(|(expert, weight)| Some((u32::try_from(expert).ok()?, weight)));
        let mut own = own.filter(|(expert, _)| self.owner(*expert) == owner).peekable();
        own.peek()?;
        Some(if weighted { own.map(|(expert, weight)| weight * (expert + 1) as f32).sum() } else { 1.0 })
    }

    /// Compares a rank's sums.
    ///
    /// # Errors
    ///
    /// The first that is another.
    pub fn check(&self, rank: u32, weighted: bool, y: &[bf16]) -> Result<(), String> {
        if y.len() != self.tokens as usize * HIDDEN as usize {
            return Err(format!("rank {rank}: {} sums", y.len()));
        }
        for (token, y) in (0..).zip(y.chunks_exact(HIDDEN as usize)) {
            let selected = selections(rank, token);
            let factors: Vec<f32> = (0..self.ranks).filter_map(|o| self.factor(o, weighted, selected)).collect();
            for (column, &got) in (0..).zip(y) {
                let x = element(rank, token, column);
                // Each rank's row is rounded to BF16, and so is their sum.
                let sum: f32 = factors.iter().map(|factor| bf16::from_f32(x * factor).to_f32()).sum();
                let want = bf16::from_f32(sum);
                if got != want {
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
    fn a_sum_that_is_another_is_found() {
        let problem = Problem { ranks: 3, tokens: 1 };
        // Token 0 of rank 0 selects experts 0 and 1, both of rank 0: x / 8 + 2 x * 2 / 8.
        let weighted: Vec<bf16> = problem.rows(0).into_iter().map(|x| bf16::from_f32(x.to_f32() * 0.625)).collect();
        problem.check(0, true, &weighted).unwrap();
        problem.check(0, false, &problem.rows(0)).unwrap();
        for (mut y, weighted) in [(weighted, true), (problem.rows(0), false)] {
            y[511] = bf16::from_f32(100.0);
            let found = problem.check(0, weighted, &y).unwrap_err();
            assert!(found.starts_with("rank 0, token 0, column 511: 100, expected "), "{found}");
        }
        assert!(problem.check(0, true, &[]).is_err());
    }

    #[test]
    fn every_expert_has_one_owner_in_order() {
        let owners = |ranks| (0..EXPERTS).map(|e| Problem { ranks, tokens: 1 }.owner(e)).collect::<Vec<_>>();
        assert_eq!(owners(3), [0, 0, 0, 1, 1, 1, 2, 2]);
        assert_eq!(owners(8), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(owners(1), [0; 8]);
    }
}
