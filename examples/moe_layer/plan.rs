//! What must be communicated, computed plainly from the global input: who gets which row, and where it lies there.
//!
//! This is written from the contract and shares nothing with the library: for every rank, the tokens that select one of its
//! experts, ordered by source rank, then token; or where rows lie by expert, the selections of its experts, ordered by expert, source
//! rank, then token, each expert's from a multiple of the alignment on, or from the beginning of its slab.
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

/// The source of a row that pads.
pub const NOBODY: (u32, u32) = (u32::MAX, u32::MAX);

/// Where an expert's rows end, where rows lie by expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padded {
    /// At a multiple.
    ToMultipleOf(usize),
    /// Where a slab of so many rows does.
    ToSlab(usize),
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
    /// Rows that each rank sends, itself included: one for each of its tokens and rank.
    pub sent: Vec<usize>,
    /// `[tokens, top_k]`: where a selection's row lies on the rank of its expert.
    pub row_of: Vec<u32>,
    /// What pads an expert's rows, where they lie by expert.
    pub by_expert: Option<Padded>,
    /// Where rows lie by expert: how often a token has several rows on a rank that is not its own.
    pub several: usize,
}

/// What one rank receives.
#[derive(Default)]
pub struct ReceivedPlan {
    /// Source rank and token of each row.
    pub sources: Vec<(u32, u32)>,
    /// `[rows, top_k]`: local experts, -1 where the selection is another rank's; `[rows]` where rows lie by expert, -1 where one pads.
    pub topk_idx: Vec<i32>,
    /// As many gate weights, 0 where there is no local expert.
    pub topk_weights: Vec<f32>,
    /// Rows from each source.
    pub by_source: Vec<u32>,
    /// Selections of each local expert.
    pub by_expert: Vec<u32>,
    /// Where rows lie by expert: the first row of each local expert, and the end.
    pub offsets: Vec<u32>,
}

impl ReceivedPlan {
    /// Rows that lie there, with those that pad.
    pub fn rows(&self) -> usize {
        self.sources.len()
    }

    /// Rows that are of a token.
    pub fn filled(&self) -> usize {
        self.by_source.iter().map(|&rows| rows as usize).sum()
    }

    /// Selections that its experts compute.
    pub fn selections(&self) -> u64 {
        self.by_expert.iter().map(|&n| u64::from(n)).sum()
    }
}

impl Plan {
    /// Plans the dispatch of `routing` for `ranks` ranks and `experts` experts; rows lie by expert if it is said how they are padded.
    pub fn new(routing: &Routing, ranks: usize, experts: usize, by_expert: Option<Padded>) -> Self {
        let (tokens, experts) = (deal(routing.tokens(), ranks), deal(experts, ranks));
        let owner: Vec<usize> = experts.iter().enumerate().flat_map(|(rank, e)| e.clone().map(move |_| rank)).collect();
        let row_of = vec![0; routing.tokens() * routing.top_k];
        let (sent, received) = (vec![0; ranks], Vec::new());
        let mut plan = Self { tokens, experts, owner, received, sent, row_of, by_expert, several: 0 };
        for rank in 0..ranks {
            let received = match by_expert {
                None => plan.by_token(routing, rank),
                Some(padded) => plan.by_selection(routing, rank, padded),
            };
            plan.received.push(received);
        }
        plan.count_sent(routing);
        plan
    }

    /// What `rank` receives, a row for each token.
    fn by_token(&mut self, routing: &Routing, rank: usize) -> ReceivedPlan {
        let mine = &self.experts[rank];
        let mut plan = self.nothing(rank);
        for (source, range) in self.tokens.iter().enumerate() {
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
                        self.row_of[token * routing.top_k + position] = plan.sources.len() as u32;
                    }
                }
                plan.sources.push((source as u32, (token - range.start) as u32));
                plan.by_source[source] += 1;
            }
        }
        plan
    }

    /// What `rank` receives, a row for each selection.
    fn by_selection(&mut self, routing: &Routing, rank: usize, padded: Padded) -> ReceivedPlan {
        let mut plan = self.nothing(rank);
        plan.offsets.push(0);
        for (local, expert) in self.experts[rank].clone().enumerate() {
            for (source, range) in self.tokens.iter().enumerate() {
                for token in range.clone() {
                    let Some(position) = routing.selected(token).iter().position(|&e| e as usize == expert) else {
                        continue;
                    };
                    self.row_of[token * routing.top_k + position] = plan.sources.len() as u32;
                    plan.sources.push((source as u32, (token - range.start) as u32));
                    plan.topk_idx.push(local as i32);
                    plan.topk_weights.push(routing.gates(token)[position]);
                    plan.by_source[source] += 1;
                    plan.by_expert[local] += 1;
                }
            }
            let end = match padded {
                Padded::ToMultipleOf(alignment) => plan.rows().next_multiple_of(alignment),
                // More than it holds is an error of the dispatch.
                Padded::ToSlab(rows) => plan.rows().max((local + 1) * rows),
            };
            plan.sources.resize(end, NOBODY);
            plan.topk_idx.resize(end, -1);
            plan.topk_weights.resize(end, 0.0);
            plan.offsets.push(end as u32);
        }
        plan
    }

    /// No rows, yet.
    fn nothing(&self, rank: usize) -> ReceivedPlan {
        ReceivedPlan {
            by_source: vec![0; self.tokens.len()],
            by_expert: vec![0; self.experts[rank].len()],
            ..ReceivedPlan::default()
        }
    }

    /// Counts what crosses, the same in every layout.
    fn count_sent(&mut self, routing: &Routing) {
        let mut here = vec![0; self.tokens.len()];
        for (source, range) in self.tokens.iter().enumerate() {
            for token in range.clone() {
                here.fill(0);
                routing.selected(token).iter().for_each(|&expert| here[self.owner[expert as usize]] += 1);
                self.sent[source] += here.iter().filter(|rows| **rows > 0).count();
                if self.by_expert.is_some() {
                    self.several += here.iter().enumerate().filter(|&(rank, rows)| rank != source && *rows > 1).count();
                }
            }
        }
    }

    /// Rows that lie at all ranks, with those that pad.
    pub fn rows(&self) -> usize {
        self.received.iter().map(ReceivedPlan::rows).sum()
    }

    /// Rows that are of a token, at all ranks.
    pub fn filled(&self) -> usize {
        self.received.iter().map(ReceivedPlan::filled).sum()
    }

    /// The first rank that receives anything.
    pub fn first_receiver(&self) -> Option<usize> {
        self.received.iter().position(|r| r.filled() > 0)
    }
}
