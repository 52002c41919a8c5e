//! How many rows a token has on every rank.

/// Rows of one rank's tokens on another, or on itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Selections of experts there.
    pub selections: u32,
    /// Tokens that have any.
    pub tokens: u32,
    /// Tokens that have several.
    pub several: u32,
}

/// Calls `with` for each of a rank's tokens, with the selections that it has on every rank, `[ranks]`. `first` is the first expert of each
/// rank, ascending.
pub fn for_each_token(picks: &[i32], top_k: usize, first: &[u32], mut with: impl FnMut(&[u32])) {
    let mut here = vec![0; first.len()];
    for selected in picks.chunks_exact(top_k) {
        here.fill(0);
        for &expert in selected {
            // Of ranks that begin at the same expert all but the last have none.
            let owner = first.partition_point(|&first| first <= expert as u32) - 1;
            here[owner] += 1;
        }
        with(&here);
    }
}

/// What a rank sends to each.
pub fn sent(picks: &[i32], top_k: usize, first: &[u32]) -> Vec<Sent> {
    let mut sent = vec![Sent::default(); first.len()];
    for_each_token(picks, top_k, first, |here| {
        for (sent, &selections) in sent.iter_mut().zip(here) {
            sent.selections += selections;
            sent.tokens += u32::from(selections > 0);
            sent.several += u32::from(selections > 1);
        }
    });
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three ranks: experts 0 and 1, none, 2 to 4.
    #[test]
    fn selections_are_counted_where_their_experts_are() {
        let sent = sent(&[0, 1, 4, 2, 3, 4], 3, &[0, 2, 2]);
        let counts: Vec<_> = sent.iter().map(|s| (s.selections, s.tokens, s.several)).collect();
        assert_eq!(counts, [(2, 1, 1), (0, 0, 0), (4, 2, 1)]);
    }
}
