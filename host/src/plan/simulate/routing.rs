//! Draws the experts of every token, and keeps what the queues need: rows from each rank to each domain and rank.
use epoxide_kernels::placement::Placement;

use super::Scenario;
use crate::plan::topology::Topology;
use crate::plan::workload::Workload;

/// How a token's experts are drawn; they are distinct always.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Draw {
    /// Every expert as likely as any other.
    Uniform,
    /// Expert `i` with a probability proportional to `(i + 1)^-exponent`, so that the hottest share a rank.
    Zipf {
        /// 0 is uniform; about 1 is a badly balanced gate.
        exponent: f64,
    },
    /// Every token selects this expert, and others uniformly.
    OneHot {
        /// The hot expert.
        expert: u32,
    },
}

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
    pub(super) fn new(topology: &Topology, workload: &Workload, scenario: &Scenario) -> Self {
        let (ranks, domains) = (topology.ranks() as usize, topology.domains() as usize);
        let experts = workload.experts;
        let placement = Placement::new(experts, topology.ranks());
        let owner: Vec<u32> = (0..experts).map(|e| placement.owner(e)).collect();
        let domain_of: Vec<u32> = (0..topology.ranks()).map(|r| topology.domain_of(r)).collect();
        let alias = match scenario.draw {
            Draw::Zipf { exponent } => {
                Some(Alias::new(&(0..experts).map(|i| f64::from(i + 1).powf(-exponent)).collect::<Vec<_>>()))
            }
            _ => None,
        };
        let mut to_rank = vec![0; ranks * ranks];
        let mut to_domain = vec![0; ranks * domains];
        // The last token that touched an expert, a rank, a domain.
        let (mut of_expert, mut of_rank) = (vec![0u64; experts as usize], vec![0u64; ranks]);
        let mut of_domain = vec![0u64; domains];
        let mut random = Random::new(scenario.seed);
        let mut token = 0u64;
        for source in 0..ranks {
            let rows = &mut to_rank[source * ranks..][..ranks];
            let nodes = &mut to_domain[source * domains..][..domains];
            for _ in 0..workload.tokens {
                token += 1;
                let mut misses = 0;
                for k in 0..workload.top_k {
                    let mut expert = match (scenario.draw, &alias) {
                        (Draw::OneHot { expert }, _) if k == 0 => expert,
                        (_, Some(alias)) => alias.draw(&mut random),
                        _ => random.below(experts),
                    };
                    while of_expert[expert as usize] == token {
                        // A steep law keeps drawing what it has: then the next free expert, which is the likeliest left.
                        misses += 1;
                        expert = match &alias {
                            Some(_) if misses > 64 => (expert + 1) % experts,
                            Some(alias) => alias.draw(&mut random),
                            None => random.below(experts),
                        };
                    }
                    of_expert[expert as usize] = token;
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
