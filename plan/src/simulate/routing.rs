//! Draws the experts of every token, and keeps what the queues need: rows from each rank to each domain and rank.
use std::ops::Range;

use epoxide_kernels::placement::Placement;

use super::scenario::{Draw, Scenario};
use crate::expectation::Gate;
use crate::flows::{Flows, Own};
use crate::topology::Topology;
use crate::workload::{Routing, Workload};

/// splitmix64 (Steele, Lea and Flood, OOPSLA 2014): ample for drawing experts, and the fastest that is.
#[derive(Clone, Copy)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    /// Uniform below `n`, by multiplication; the bias is below 2^-32.
    fn below(&mut self, n: u32) -> u32 {
        (((self.next() >> 32) * u64::from(n)) >> 32) as u32
    }
    /// Uniform in 0..1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Draws one expert with given probabilities in constant time (Walker's alias method, built as Vose does).
struct Alias {
    keep: Vec<f64>,
    other: Vec<u32>,
}

impl Alias {
    fn new(weights: &[f64]) -> Self {
        let n = weights.len();
        let scale = n as f64 / weights.iter().sum::<f64>();
        let mut keep: Vec<f64> = weights.iter().map(|w| w * scale).collect();
        let mut other: Vec<u32> = (0..n as u32).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..n).partition(|&i| keep[i] < 1.0);
        while let (Some(&s), Some(&l)) = (small.last(), large.last()) {
            small.pop();
            other[s] = l as u32;
            keep[l] -= 1.0 - keep[s];
            if keep[l] < 1.0 {
                large.pop();
                small.push(l);
            }
        }
        Self { keep, other }
    }
    fn draw(&self, random: &mut Random) -> u32 {
        let i = random.below(self.keep.len() as u32);
        if random.unit() < self.keep[i as usize] { i } else { self.other[i as usize] }
    }
}

/// What the experts of a token are drawn from.
enum Law<'a> {
    Gate(Gate<'a>),
    Weights(Alias),
    OneHot { expert: u32, experts: u32 },
}

impl Law<'_> {
    /// Draws the `top_k` experts of a token into `chosen`, which is empty.
    fn draw(&self, top_k: u32, random: &mut Random, chosen: &mut Vec<u32>) {
        match self {
            Self::Gate(gate) => gate.draw(&mut || random.unit(), chosen),
            Self::Weights(alias) => {
                let mut misses = 0;
                while chosen.len() < top_k as usize {
                    let mut expert = alias.draw(random);
                    while chosen.contains(&expert) {
                        // A steep law keeps drawing what it has: then the next free expert, which is the likeliest left.
                        misses += 1;
                        let next = (expert + 1) % alias.keep.len() as u32;
                        expert = if misses > 64 { next } else { alias.draw(random) };
                    }
                    chosen.push(expert);
                }
            }
            &Self::OneHot { expert, experts } => {
                chosen.push(expert);
                while chosen.len() < top_k as usize {
                    let drawn = random.below(experts);
                    if !chosen.contains(&drawn) {
                        chosen.push(drawn);
                    }
                }
            }
        }
    }
}

/// The routing of all tokens, summed up.
pub(super) struct Drawn {
    pub ranks: usize,
    pub domains: usize,
    tokens: u64,
    /// Rows from rank to rank, `[source][destination]`.
    to_rank: Vec<u32>,
    /// Rows from rank to domain, `[source][domain]`.
    to_domain: Vec<u32>,
}

impl Drawn {
    /// Draws the routing; `watch` is told which share of it is drawn.
    pub(super) fn new(topology: &Topology, workload: &Workload, scenario: &Scenario, watch: &dyn Fn(f64)) -> Self {
        let (ranks, domains) = (topology.ranks() as usize, topology.domains() as usize);
        let experts = workload.experts;
        let placement = Placement::new(experts, topology.ranks());
        let owner: Vec<u32> = (0..experts).map(|e| placement.owner(e)).collect();
        let domain_of: Vec<u32> = (0..topology.ranks()).map(|r| topology.domain_of(r)).collect();
        let even = Workload { routing: Routing::Uniform, ..workload.clone() };
        let law = match scenario.draw {
            Draw::Gate => Law::Gate(Gate::new(workload)),
            Draw::Uniform => Law::Gate(Gate::new(&even)),
            Draw::Zipf { exponent } => {
                Law::Weights(Alias::new(&(0..experts).map(|i| f64::from(i + 1).powf(-exponent)).collect::<Vec<_>>()))
            }
            Draw::OneHot { expert } => Law::OneHot { expert, experts },
        };
        let mut to_rank = vec![0; ranks * ranks];
        let mut to_domain = vec![0; ranks * domains];
        // The last token that touched a rank, a domain.
        let (mut of_rank, mut of_domain) = (vec![0u64; ranks], vec![0u64; domains]);
        let mut random = Random::new(scenario.seed);
        let mut chosen = Vec::with_capacity(workload.top_k as usize);
        let mut token = 0u64;
        for source in 0..ranks {
            watch(source as f64 / ranks as f64);
            let rows = &mut to_rank[source * ranks..][..ranks];
            let nodes = &mut to_domain[source * domains..][..domains];
            for _ in 0..workload.tokens {
                token += 1;
                chosen.clear();
                law.draw(workload.top_k, &mut random, &mut chosen);
                for &expert in &chosen {
                    let rank = owner[expert as usize] as usize;
                    if of_rank[rank] != token {
                        of_rank[rank] = token;
                        rows[rank] += 1;
                        let domain = domain_of[rank] as usize;
                        if of_domain[domain] != token {
                            of_domain[domain] = token;
                            nodes[domain] += 1;
                        }
                    }
                }
            }
        }
        Self { ranks, domains, tokens: token, to_rank, to_domain }
    }

    pub(super) fn to_rank(&self, source: usize) -> &[u32] {
        &self.to_rank[source * self.ranks..][..self.ranks]
    }
    pub(super) fn to_domain(&self, source: usize) -> &[u32] {
        &self.to_domain[source * self.domains..][..self.domains]
    }
    /// Copies that leave their sources: to a rank of the same domain, or to another domain.
    pub(super) fn sent(&self, topology: &Topology) -> u64 {
        self.flows(topology).iter().map(|f| (f.local_out + f.remote_out) as u64).sum()
    }
    /// What every rank sends, forwards and receives.
    pub(super) fn flows(&self, topology: &Topology) -> Vec<Flows> {
        let per_gpu = topology.ranks_per_gpu();
        let sum = |rows: &[u32]| rows.iter().map(|&n| f64::from(n)).sum::<f64>();
        let mut flows: Vec<Flows> = Vec::with_capacity(self.ranks);
        for rank in 0..self.ranks as u32 {
            let domain = topology.domain_of(rank);
            let (members, rows) = (topology.members(domain), self.to_rank(rank as usize));
            let at_home = f64::from(self.to_domain(rank as usize)[domain as usize]);
            let (local_out, on_gpu) = (sum(&rows[range(&members)]), sum(&rows[gpu_of(rank, per_gpu)]));
            flows.push(Flows {
                local_out,
                local_out_linked: local_out - on_gpu,
                remote_out: sum(self.to_domain(rank as usize)) - at_home,
                remote_in: 0.0,
                forwarded: 0.0,
                forwarded_linked: 0.0,
                received: 0.0,
                received_linked: 0.0,
                expanded: 0.0,
                several: 0.0,
                own: Own::default(),
                at_home,
                domain: members.len() as f64,
            });
        }
        for source in 0..self.ranks as u32 {
            let rows = self.to_rank(source as usize);
            for domain in 0..topology.domains() {
                let members = topology.members(domain);
                let own = domain == topology.domain_of(source);
                let from = if own { source } else { topology.forwarder(source, domain) };
                let near = gpu_of(from, per_gpu);
                for to in members.clone() {
                    let copies = f64::from(rows[to as usize]);
                    let receiver = &mut flows[to as usize];
                    receiver.received += copies;
                    receiver.received_linked += if near.contains(&(to as usize)) { 0.0 } else { copies };
                }
                if !own {
                    let all = sum(&rows[range(&members)]);
                    let forwarder = &mut flows[from as usize];
                    forwarder.remote_in += f64::from(self.to_domain(source as usize)[domain as usize]);
                    forwarder.forwarded += all;
                    forwarder.forwarded_linked += all - sum(&rows[near]);
                }
            }
        }
        flows.iter_mut().for_each(|f| f.expanded = f.received);
        flows
    }
    pub(super) fn ranks_per_token(&self) -> f64 {
        self.to_rank.iter().map(|&n| f64::from(n)).sum::<f64>() / self.tokens as f64
    }
    pub(super) fn domains_per_token(&self) -> f64 {
        self.to_domain.iter().map(|&n| f64::from(n)).sum::<f64>() / self.tokens as f64
    }
    pub(super) fn row_imbalance(&self) -> f64 {
        let mut received = vec![0u64; self.ranks];
        for rows in self.to_rank.chunks(self.ranks) {
            received.iter_mut().zip(rows).for_each(|(sum, &n)| *sum += u64::from(n));
        }
        let busiest = received.iter().copied().max().unwrap_or(0) as f64;
        busiest * self.ranks as f64 / received.iter().sum::<u64>() as f64
    }
}

fn range(ranks: &Range<u32>) -> Range<usize> {
    ranks.start as usize..ranks.end as usize
}

/// The ranks of `rank`'s GPU: domains have whole GPUs.
fn gpu_of(rank: u32, per_gpu: u32) -> Range<usize> {
    let first = rank / per_gpu * per_gpu;
    range(&(first..first + per_gpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alias_method_draws_what_it_is_told() {
        let weights = [5.0, 0.0, 1.0, 2.0, 0.5];
        let (alias, mut random) = (Alias::new(&weights), Random::new(3));
        let mut counts = [0.0f64; 5];
        for _ in 0..200_000 {
            counts[alias.draw(&mut random) as usize] += 1.0;
        }
        for (count, weight) in counts.into_iter().zip(weights) {
            assert!((count / 200_000.0 - weight / 8.5).abs() < 0.005, "{counts:?}");
        }
    }
}
