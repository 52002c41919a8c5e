//! How many distinct ranks and domains a token goes to, on average.
//!
//! A token that selects `K` of `E` experts misses a set of `n` of them with probability `C(E-n, K) / C(E, K)`: that is the
//! hypergeometric distribution at zero. DeepEP's planner uses the same law for equal groups (as DeepEP at dd758ca computes it).
use epoxide_kernels::placement::Placement;

use crate::topology::Topology;
use crate::workload::{Routing, Workload};

/// What a token of any rank does, on average.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Expected {
    /// Distinct ranks of a token.
    pub ranks: f64,
    /// Distinct NVLink domains of a token.
    pub domains: f64,
    /// For every rank, the probability that a token goes there.
    pub to_rank: Vec<f64>,
    /// For every domain, the probability that a token goes there.
    pub to_domain: Vec<f64>,
    /// For every rank, the selections of a token that it owns.
    pub selections: Vec<f64>,
    /// For every rank, the probability that a token selects several of its experts.
    pub several: Vec<f64>,
}

impl Expected {
    /// Computes the expectation. `workload` has been checked.
    pub(crate) fn new(topology: &Topology, workload: &Workload) -> Self {
        let placement = Placement::new(workload.experts, topology.ranks());
        let ranges = |first: u32, last: u32| (placement.first(first), placement.first(last));
        let of_ranks = (0..topology.ranks()).map(|r| ranges(r, r + 1));
        let of_domains = (0..topology.domains()).map(|d| ranges(topology.members(d).start, topology.members(d).end));
        let gate = Gate::new(workload);
        let to_rank: Vec<f64> = of_ranks.clone().map(|(a, b)| gate.hits(a, b)).collect();
        let to_domain: Vec<f64> = of_domains.map(|(a, b)| gate.hits(a, b)).collect();
        let selections = of_ranks.clone().map(|(a, b)| gate.selections(a, b)).collect();
        let several = of_ranks.zip(&to_rank).map(|((a, b), hits)| (hits - gate.one(a, b)).clamp(0.0, 1.0)).collect();
        Self { ranks: to_rank.iter().sum(), domains: to_domain.iter().sum(), to_rank, to_domain, selections, several }
    }
}

/// Expected number of distinct ones of `groups` equal groups of experts that a token's `top_k` of `experts` fall into, when every set
/// is as likely: `G (1 - C(E - E/G, K) / C(E, K))`.
///
/// ```
/// let x = epoxide_plan::distinct_groups(256, 8, 8);
/// assert!((x - 5.2947).abs() < 1e-4);
/// ```
pub fn distinct_groups(experts: u32, top_k: u32, groups: u32) -> f64 {
    if groups == 0 {
        return 0.0;
    }
    f64::from(groups) * (1.0 - misses(experts, experts / groups, top_k))
}

/// `C(total - set, draws) / C(total, draws)`: the probability that `draws` of `total` miss a set.
fn misses(total: u32, set: u32, draws: u32) -> f64 {
    if draws == 0 || set == 0 {
        return 1.0;
    }
    if set + draws > total {
        return 0.0;
    }
    // The smaller of set and draws is the number of factors: C is symmetric in them.
    let (few, many) = (set.min(draws), set.max(draws));
    (0..few).map(|i| f64::from(total - many - i) / f64::from(total - i)).product()
}

/// `set C(total - set, draws - 1) / C(total, draws)`: the probability that `draws` of `total` have one of a set.
fn hits_once(total: u32, set: u32, draws: u32) -> f64 {
    if draws == 0 || set == 0 {
        return 0.0;
    }
    // A certain one is drawn, and the others miss what is left of the set.
    f64::from(set) * f64::from(draws) / f64::from(total) * misses(total - 1, set - 1, draws - 1)
}

/// A gate that can say how likely a token goes to a range of experts, and draw a token's experts.
pub(super) enum Gate<'a> {
    Uniform { experts: u32, top_k: u32 },
    Groups { size: u32, groups: u32, limit: u32, top_k: u32 },
    Histogram(Box<MaximumEntropy<'a>>),
}

impl<'a> Gate<'a> {
    pub(super) fn new(workload: &'a Workload) -> Self {
        let (experts, top_k) = (workload.experts, workload.top_k);
        match &workload.routing {
            Routing::Uniform => Self::Uniform { experts, top_k },
            &Routing::GroupLimited { groups, limit } => Self::Groups { size: experts / groups, groups, limit, top_k },
            Routing::Histogram(loads) => Self::Histogram(Box::new(MaximumEntropy::new(loads, top_k as usize))),
        }
    }

    /// Draws the experts of a token into `chosen`, which is empty; `unit` draws from 0 to 1, 1 excluded.
    pub(super) fn draw(&self, unit: &mut impl FnMut() -> f64, chosen: &mut Vec<u32>) {
        match *self {
            Self::Uniform { experts, top_k } => draw_distinct(experts, top_k, unit, chosen),
            Self::Groups { size, groups, limit, top_k } => {
                let mut of = Vec::with_capacity(limit as usize);
                draw_distinct(groups, limit, unit, &mut of);
                draw_distinct(limit * size, top_k, unit, chosen);
                chosen.iter_mut().for_each(|e| *e = of[(*e / size) as usize] * size + *e % size);
            }
            Self::Histogram(ref gate) => gate.draw(unit, chosen),
        }
    }

    /// Selections of a token in `first..last`, on average.
    fn selections(&self, first: u32, last: u32) -> f64 {
        match self {
            Self::Uniform { experts, top_k } => f64::from(*top_k) * f64::from(last - first) / f64::from(*experts),
            Self::Groups { size, groups, top_k, .. } => {
                f64::from(*top_k) * f64::from(last - first) / f64::from(size * groups)
            }
            Self::Histogram(gate) => gate.selections(first as usize, last as usize),
        }
    }

    /// Probability that a token selects one of `first..last`.
    fn hits(&self, first: u32, last: u32) -> f64 {
        if first == last {
            return 0.0;
        }
        let misses = match self {
            Self::Uniform { experts, top_k } => misses(*experts, last - first, *top_k),
            Self::Groups { .. } => self.in_groups(first, last, misses),
            Self::Histogram(gate) => gate.misses(first as usize, last as usize),
        };
        (1.0 - misses).clamp(0.0, 1.0)
    }

    /// Probability that a token selects one of `first..last`, and no other.
    fn one(&self, first: u32, last: u32) -> f64 {
        match self {
            Self::Uniform { experts, top_k } => hits_once(*experts, last - first, *top_k),
            Self::Groups { .. } => self.in_groups(first, last, hits_once),
            Self::Histogram(gate) => gate.hits_once(first as usize, last as usize),
        }
    }

    /// The mean of `law` of the experts that may be chosen, those of them in a range, and the selections.
    ///
    /// A range covers part of a group, then whole groups, then part of one. The chosen groups hold some of each, with the weight of
    /// a draw of groups without replacement; then the experts are drawn from the chosen groups.
    fn in_groups(&self, first: u32, last: u32, law: fn(u32, u32, u32) -> f64) -> f64 {
        let &Self::Groups { size, groups, limit, top_k } = self else { return 0.0 };
        let mut parts = Vec::new();
        let (mut whole, mut at) = (0, first);
        while at < last {
            let end = (at / size + 1) * size;
            let covered = end.min(last) - at;
            if covered == size {
                whole += 1
            } else {
                parts.push(covered)
            }
            at += covered;
        }
        let rest = groups - whole - parts.len() as u32;
        let mut sum = 0.0;
        for chosen in 0..1u32 << parts.len() {
            let mut covered = 0;
            for (i, part) in parts.iter().enumerate() {
                covered += if chosen >> i & 1 == 1 { *part } else { 0 };
            }
            let of_parts = chosen.count_ones();
            for of_whole in 0..=whole.min(limit) {
                let Some(of_rest) = limit.checked_sub(of_parts + of_whole).filter(|&n| n <= rest) else { continue };
                let ways = ln_choose(whole, of_whole) + ln_choose(rest, of_rest) - ln_choose(groups, limit);
                sum += ways.exp() * law(limit * size, covered + of_whole * size, top_k);
            }
        }
        sum
    }
}

/// Draws `count` different numbers below `n`, each set as likely.
fn draw_distinct(n: u32, count: u32, unit: &mut impl FnMut() -> f64, chosen: &mut Vec<u32>) {
    while chosen.len() < count as usize {
        let drawn = (unit() * f64::from(n)) as u32;
        if !chosen.contains(&drawn) {
            chosen.push(drawn);
        }
    }
}

/// Natural logarithm of a binomial coefficient.
fn ln_choose(n: u32, k: u32) -> f64 {
    let k = k.min(n - k);
    (0..k).map(|i| (f64::from(n - i) / f64::from(i + 1)).ln()).sum()
}

/// Sets of a fixed size whose members have given frequencies, and that are otherwise as random as can be: the probability of a
/// set is proportional to the product of its members' weights (conditional Poisson sampling; Chen, Dempster and Liu, Biometrika
/// 81, 1994, whose iteration finds the weights). With equal frequencies it is the hypergeometric law.
pub(super) struct MaximumEntropy<'a> {
    loads: &'a [f64],
    sum: f64,
    top_k: usize,
    /// Experts that every token selects: their weights would be infinite. The tables leave them out.
    always: Vec<usize>,
    /// Selections that are left for the others.
    others: usize,
    /// `before[e]`: elementary symmetric sums of the weights of all experts below e, by degree.
    before: Vec<f64>,
    /// `after[e]`: of all experts from e on.
    after: Vec<f64>,
}

impl<'a> MaximumEntropy<'a> {
    fn new(loads: &'a [f64], top_k: usize) -> Self {
        /// It stops when nine digits are right, mostly after fewer than 30.
        const ROUNDS: usize = 200;
        /// A frequency that is 1 but for this is 1.
        const SURE: f64 = 1e-9;
        let sum: f64 = loads.iter().sum();
        let mut wanted: Vec<f64> = loads.iter().map(|l| l / sum * top_k as f64).collect();
        let always: Vec<usize> = (0..wanted.len()).filter(|&e| wanted[e] >= 1.0 - SURE).collect();
        always.iter().for_each(|&e| wanted[e] = 0.0);
        let others = top_k.saturating_sub(always.len());
        let mut weights: Vec<f64> = wanted.iter().map(|p| p / (1.0 - p)).collect();
        let mut gate = Self { loads, sum, top_k, always, others, before: Vec::new(), after: Vec::new() };
        for _ in 0..if others > 0 { ROUNDS } else { 0 } {
            gate.tabulate(&weights);
            let mut worst = 0.0f64;
            for (e, weight) in weights.iter_mut().enumerate() {
                if wanted[e] == 0.0 {
                    continue;
                }
                let (without, with) = (gate.around(e, e + 1, others), gate.around(e, e + 1, others - 1));
                let got = with * *weight / (with * *weight + without);
                worst = worst.max((got - wanted[e]).abs() / wanted[e]);
                // What the other experts leave to it.
                *weight = wanted[e] / with;
            }
            let total: f64 = weights.iter().sum();
            weights.iter_mut().for_each(|w| *w *= others as f64 / total);
            if worst < 1e-9 {
                break;
            }
        }
        gate.tabulate(&weights);
        gate
    }

    fn tabulate(&mut self, weights: &[f64]) {
        let (n, width) = (weights.len(), self.others + 1);
        self.before = vec![0.0; (n + 1) * width];
        self.after = vec![0.0; (n + 1) * width];
        self.before[0] = 1.0;
        self.after[n * width] = 1.0;
        for (e, weight) in weights.iter().enumerate() {
            for degree in 0..width {
                let with = if degree > 0 { self.before[e * width + degree - 1] * weight } else { 0.0 };
                self.before[(e + 1) * width + degree] = self.before[e * width + degree] + with;
            }
        }
        for e in (0..n).rev() {
            for degree in 0..width {
                let with = if degree > 0 { self.after[(e + 1) * width + degree - 1] * weights[e] } else { 0.0 };
                self.after[e * width + degree] = self.after[(e + 1) * width + degree] + with;
            }
        }
    }

    /// The elementary symmetric sum of `degree` over all experts but `first..last`.
    fn around(&self, first: usize, last: usize, degree: usize) -> f64 {
        let width = self.others + 1;
        let (before, after) = (&self.before[first * width..][..=degree], &self.after[last * width..][..=degree]);
        before.iter().zip(after.iter().rev()).map(|(a, b)| a * b).sum()
    }

    fn misses(&self, first: usize, last: usize) -> f64 {
        if self.always.iter().any(|e| (first..last).contains(e)) {
            return 0.0;
        }
        self.around(first, last, self.others) / self.around(0, 0, self.others)
    }

    fn hits_once(&self, first: usize, last: usize) -> f64 {
        let all = self.around(0, 0, self.others);
        match self.always.iter().filter(|e| (first..last).contains(e)).count() {
            0 if self.others > 0 => {
                // Symmetric sums of degree 1 are the weights, summed up.
                let weights = |below: usize| self.before[below * (self.others + 1) + 1];
                (weights(last) - weights(first)) * self.around(first, last, self.others - 1) / all
            }
            1 => self.around(first, last, self.others) / all,
            _ => 0.0,
        }
    }

    fn selections(&self, first: usize, last: usize) -> f64 {
        self.loads[first..last].iter().sum::<f64>() / self.sum * self.top_k as f64
    }

    /// Expert after expert: with `left` to choose from expert `at` on, the next one is beyond `e` with probability
    /// `after[e + 1][left] / after[at][left]`.
    fn draw(&self, unit: &mut impl FnMut() -> f64, chosen: &mut Vec<u32>) {
        chosen.extend(self.always.iter().map(|&e| e as u32));
        let experts = self.loads.len();
        let mut at = 0;
        for left in (1..=self.others).rev() {
            let ways = |e: usize| self.after[e * (self.others + 1) + left];
            let beyond = (1.0 - unit()) * ways(at);
            let (mut low, mut high) = (at, experts - 1);
            while low < high {
                let middle = low.midpoint(high);
                if ways(middle + 1) >= beyond { low = middle + 1 } else { high = middle }
            }
            chosen.push(low as u32);
            at = low + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::LayerSizes;

    #[test]
    fn an_even_histogram_and_one_group_are_the_hypergeometric_law() {
        let uniform = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 64, tokens: 1 });
        let topology = Topology::new(16, 4).unwrap();
        let want = Expected::new(&topology, &uniform);
        assert!((want.ranks - distinct_groups(256, 8, 16)).abs() < 1e-12);
        assert!((want.domains - distinct_groups(256, 8, 4)).abs() < 1e-12);
        for routing in [
            Routing::Histogram(vec![3.0; 256]),
            Routing::GroupLimited { groups: 8, limit: 8 },
            Routing::GroupLimited { groups: 1, limit: 1 },
        ] {
            let got = Expected::new(&topology, &uniform.clone().with_routing(routing.clone()));
            assert!((got.ranks - want.ranks).abs() < 1e-6, "{routing:?}: {} {}", got.ranks, want.ranks);
            assert!((got.domains - want.domains).abs() < 1e-6, "{routing:?}");
        }
    }

    #[test]
    fn all_experts_reach_all_ranks_that_have_any() {
        let topology = Topology::new(8, 8).unwrap();
        let expected =
            Expected::new(&topology, &Workload::new(LayerSizes { experts: 5, top_k: 5, hidden: 64, tokens: 1 }));
        assert!((expected.ranks - 5.0).abs() < 1e-12, "{expected:?}");
        assert_eq!(expected.to_rank[5..], [0.0; 3]);
    }

    /// Loads of which some experts are in every token, up to all of a token's; others are in none.
    #[test]
    fn experts_that_every_token_selects_are_counted_as_such() {
        let topology = Topology::new(8, 4).unwrap();
        let mut all = vec![0.0; 16];
        all[..8].fill(1.0);
        let workload = Workload::new(LayerSizes { experts: 16, top_k: 8, hidden: 64, tokens: 1 })
            .with_routing(Routing::Histogram(all));
        workload.check().unwrap();
        let expected = Expected::new(&topology, &workload);
        assert_eq!(expected.to_rank, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!((expected.ranks, expected.domains), (4.0, 1.0));
        // One in every token; of the other 15 any one.
        let mut one = vec![1.0; 16];
        one[3] = 15.0;
        let workload = Workload::new(LayerSizes { experts: 16, top_k: 2, hidden: 64, tokens: 1 })
            .with_routing(Routing::Histogram(one));
        workload.check().unwrap();
        let expected = Expected::new(&topology, &workload);
        assert_eq!(expected.to_rank[1], 1.0);
        assert!((expected.to_rank[0] - 2.0 / 15.0).abs() < 1e-9, "{expected:?}");
        assert!((expected.ranks - (1.0 + 7.0 * 2.0 / 15.0)).abs() < 1e-9, "{expected:?}");
    }

    /// How often drawn tokens hit every rank is what the expectation says, for every kind of gate.
    #[test]
    fn tokens_are_drawn_as_they_are_expected() {
        const TOKENS: u32 = 100_000;
        let topology = Topology::new(8, 4).unwrap();
        let loads: Vec<f64> = (0..32).map(|e| if e == 9 { 28.5 } else { f64::from(e % 5) }).collect();
        for (top_k, routing) in [
            (4, Routing::Uniform),
            (6, Routing::GroupLimited { groups: 8, limit: 2 }),
            (2, Routing::Histogram(loads.clone())),
            (3, Routing::Histogram(loads)),
        ] {
            let workload =
                Workload::new(LayerSizes { experts: 32, top_k, hidden: 64, tokens: 1 }).with_routing(routing.clone());
            workload.check().unwrap();
            let (gate, expected) = (Gate::new(&workload), Expected::new(&topology, &workload));
            let mut state = 0x9e37_79b9_7f4a_7c15u64;
            let mut unit = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 11) as f64 / (1u64 << 53) as f64
            };
            let (mut hits, mut several) = ([0u32; 8], [0u32; 8]);
            for _ in 0..TOKENS {
                let mut chosen = Vec::new();
                gate.draw(&mut unit, &mut chosen);
                let mut distinct = chosen.clone();
                distinct.sort_unstable();
                distinct.dedup();
                assert_eq!((chosen.len(), distinct.len()), (top_k as usize, top_k as usize), "{routing:?}: {chosen:?}");
                for rank in 0..8 {
                    let selected = chosen.iter().filter(|e| *e / 4 == rank).count();
                    hits[rank as usize] += u32::from(selected > 0);
                    several[rank as usize] += u32::from(selected > 1);
                }
            }
            let wanted = expected.to_rank.iter().chain(&expected.several);
            for (rank, (&hits, want)) in hits.iter().chain(&several).zip(wanted).enumerate() {
                let got = f64::from(hits) / f64::from(TOKENS);
                // Five standard deviations.
                assert!((got - want).abs() < 0.008, "{routing:?}: rank {} {got}, not {want}", rank % 8);
            }
        }
    }
}
