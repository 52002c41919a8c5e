//! What must be communicated, computed plainly from the global input: who gets which row, and where it lies there.
//!
//! This is written from the contract and shares nothing with the library: for every rank, the tokens that select one of its
//! experts, ordered by source rank, then token.
use std::ops::Range;

use crate::router::Routing;

/// Deals `total` things to `parts` in contiguous ranges whose sizes differ by at most one, the larger ones first.
///
/// Tokens are dealt to ranks like this by the example, experts by the library's contract.
pub fn deal(total: usize, parts: usize) -> Vec<Range<usize>> {
    let mut start = 0;
    (0..parts)
        .map(|part| {
            let end = start + total / parts + usize::from(part < total % parts);
            std::mem::replace(&mut start, end)..end
        })
        .collect()
}

/// All ranks' part in a dispatch.
pub struct Plan {
    /// Tokens of each rank.
    pub tokens: Vec<Range<usize>>,
    /// Experts of each rank.
    pub experts: Vec<Range<usize>>,
    /// The rank of each expert.
    pub owner: Vec<usize>,
    /// What each rank receives.
    pub received: Vec<ReceivedPlan>,
    /// Rows that each rank sends, itself included.
    pub sent: Vec<usize>,
    /// `[tokens, top_k]`: where a selection's row lies on the rank of its expert.
    pub row_of: Vec<u32>,
}

/// What one rank receives.
pub struct ReceivedPlan {
    /// Source rank and token of each row.
    pub sources: Vec<(u32, u32)>,
    /// `[rows, top_k]`: local experts, -1 where the selection is another rank's.
    pub topk_idx: Vec<i32>,
    /// `[rows, top_k]`: gate weights, 0 where the selection is another rank's.
    pub topk_weights: Vec<f32>,
    /// Rows from each source.
    pub by_source: Vec<u32>,
    /// Selections of each local expert.
    pub by_expert: Vec<u32>,
}

impl ReceivedPlan {
    /// Rows that the rank receives.
    pub fn rows(&self) -> usize {
        self.sources.len()
    }

    /// Selections that its experts compute.
    pub fn selections(&self) -> u64 {
        self.by_expert.iter().map(|&n| u64::from(n)).sum()
    }
}

impl Plan {
    /// Plans the dispatch of `routing` for `ranks` ranks and `experts` experts.
    pub fn new(routing: &Routing, ranks: usize, experts: usize) -> Self {
        let (tokens, experts) = (deal(routing.tokens(), ranks), deal(experts, ranks));
        let owner: Vec<usize> = experts.iter().enumerate().flat_map(|(rank, e)| e.clone().map(move |_| rank)).collect();
        let mut sent = vec![0; ranks];
        let mut row_of = vec![0; routing.tokens() * routing.top_k];
        let received = (0..ranks).map(|rank| {
            let mine = &experts[rank];
            let mut plan = ReceivedPlan {
                sources: Vec::new(),
                topk_idx: Vec::new(),
                topk_weights: Vec::new(),
                by_source: vec![0; ranks],
                by_expert: vec![0; mine.len()],
            };
            for (source, range) in tokens.iter().enumerate() {
                for token in range.clone() {
                    let selected = routing.selected(token);
                    if !selected.iter().any(|&e| mine.contains(&(e as usize))) {
                        continue;
                    }
                    for (position, (&expert, &weight)) in selected.iter().zip(routing.gates(token)).enumerate() {
                        let local = mine.contains(&(expert as usize)).then(|| expert as usize - mine.start);
                        plan.topk_idx.push(local.map_or(-1, |local| local as i32));
                        plan.topk_weights.push(if local.is_some() { weight } else { 0.0 });
                        if let Some(local) = local {
                            plan.by_expert[local] += 1;
                            row_of[token * routing.top_k + position] = plan.sources.len() as u32;
                        }
                    }
                    plan.sources.push((source as u32, (token - range.start) as u32));
                    plan.by_source[source] += 1;
                    sent[source] += 1;
                }
            }
            plan
        });
        let received = received.collect();
        Self { tokens, experts, owner, received, sent, row_of }
    }

    /// Rows that all ranks receive.
    pub fn rows(&self) -> usize {
        self.sent.iter().sum()
    }

    /// The first rank that receives anything.
    pub fn first_receiver(&self) -> Option<usize> {
        self.received.iter().position(|r| r.rows() > 0)
    }
}
