//! Which ranks share an NVLink domain, which share a GPU, and how many rails leave a domain.
use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::{Error, Result};

/// Most ranks that the planner takes.
pub const MAX_PLAN_RANKS: u32 = 2048;

/// Where the ranks are. Ranks are numbered domain by domain.
///
/// A *domain* is a set of GPUs that reach each other over NVLink: a node, or a rack of GB200. A *rail* joins the ranks of the same
/// place in every domain; in a smaller domain the places wrap around.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    sizes: Vec<u32>,
    firsts: Vec<u32>,
    ranks_per_gpu: u32,
    nics_per_gpu: u32,
}

impl Topology {
    /// `ranks` ranks in domains of `per_domain`, one rank and one NIC per GPU.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for no ranks, for more than [`MAX_PLAN_RANKS`], and when whole domains do not cover the ranks.
    ///
    /// ```
    /// use epoxide_plan::Topology;
    /// assert_eq!(Topology::new(64, 8)?.domains(), 8);
    /// assert!(Topology::new(20, 8).is_err());
    /// assert_eq!(Topology::of_domains(&[8, 8, 4])?.ranks(), 20);
    /// # Ok::<(), epoxide_plan::Error>(())
    /// ```
    pub fn new(ranks: u32, per_domain: u32) -> Result<Self> {
        check_ranks(u64::from(ranks))?;
        if per_domain == 0 {
            return Err(Error::argument("per_domain", 0, "an NVLink domain has at least 1 rank"));
        }
        if per_domain > ranks || !ranks.is_multiple_of(per_domain) {
            let rule = format!("whole domains must cover the {ranks} ranks; uneven domains are given one by one");
            return Err(Error::argument("per_domain", per_domain, rule));
        }
        Self::of_domains(&vec![per_domain; (ranks / per_domain) as usize])
    }

    /// Domains of these sizes, which may differ.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for no domains, for an empty one, and for more than [`MAX_PLAN_RANKS`] ranks.
    pub fn of_domains(sizes: &[u32]) -> Result<Self> {
        check_ranks(sizes.iter().map(|&s| u64::from(s)).sum())?;
        if let Some(empty) = sizes.iter().position(|&s| s == 0) {
            return Err(Error::argument("domains", format!("{sizes:?}"), format!("domain {empty} has no rank")));
        }
        let firsts = sizes.iter().scan(0, |next, &size| Some(std::mem::replace(next, *next + size)));
        Ok(Self { firsts: firsts.collect(), sizes: sizes.to_vec(), ranks_per_gpu: 1, nics_per_gpu: 1 })
    }

    /// Puts several ranks on every GPU: consecutive ranks of a domain share one, its memory and its SMs.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when a domain's ranks do not fill whole GPUs.
    pub fn with_ranks_per_gpu(mut self, ranks_per_gpu: u32) -> Result<Self> {
        if ranks_per_gpu == 0 || self.sizes.iter().any(|s| !s.is_multiple_of(ranks_per_gpu)) {
            let rule = format!("the ranks of every domain, {:?}, must fill whole GPUs", self.summary());
            return Err(Error::argument("ranks_per_gpu", ranks_per_gpu, rule));
        }
        self.ranks_per_gpu = ranks_per_gpu;
        Ok(self)
    }

    /// Gives every GPU this many NICs, which its ranks share.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for none.
    pub fn with_nics_per_gpu(mut self, nics_per_gpu: u32) -> Result<Self> {
        if !(1..=64).contains(&nics_per_gpu) {
            return Err(Error::argument("nics_per_gpu", nics_per_gpu, "a GPU has 1 to 64 NICs"));
        }
        self.nics_per_gpu = nics_per_gpu;
        Ok(self)
    }

    /// All ranks.
    pub fn ranks(&self) -> u32 {
        self.sizes.iter().sum()
    }
    /// NVLink domains.
    pub fn domains(&self) -> u32 {
        self.sizes.len() as u32
    }
    /// Ranks of a domain.
    pub fn size(&self, domain: u32) -> u32 {
        self.sizes[domain as usize]
    }
    /// Ranks of the largest domain.
    pub fn largest(&self) -> u32 {
        self.sizes.iter().copied().max().unwrap_or(0)
    }
    /// First and last-plus-one rank of a domain.
    pub fn members(&self, domain: u32) -> Range<u32> {
        let first = self.firsts[domain as usize];
        first..first + self.size(domain)
    }
    /// The domain of a rank.
    pub fn domain_of(&self, rank: u32) -> u32 {
        self.firsts.partition_point(|&first| first <= rank) as u32 - 1
    }
    /// Whether all domains have as many ranks.
    pub fn is_uniform(&self) -> bool {
        self.sizes.windows(2).all(|s| s[0] == s[1])
    }
    /// Ranks that share a GPU.
    pub fn ranks_per_gpu(&self) -> u32 {
        self.ranks_per_gpu
    }
    /// NICs of a GPU.
    pub fn nics_per_gpu(&self) -> u32 {
        self.nics_per_gpu
    }
    /// The rank of `domain` that takes what `rank` of another domain sends there: the one of its place, which wraps around.
    pub fn forwarder(&self, rank: u32, domain: u32) -> u32 {
        let place = rank - self.firsts[self.domain_of(rank) as usize];
        self.firsts[domain as usize] + place % self.size(domain)
    }
    /// Ranks of `from` that `rank`, in another domain, forwards for.
    pub fn forwards_for(&self, rank: u32, from: u32) -> u32 {
        let domain = self.domain_of(rank);
        at_place(rank - self.firsts[domain as usize], self.size(domain), self.size(from))
    }
    /// Ranks of all other domains that each rank forwards for.
    pub(crate) fn served(&self) -> Vec<u32> {
        // Domains of one size are alike.
        let mut sizes = BTreeMap::new();
        self.sizes.iter().for_each(|&size| *sizes.entry(size).or_insert(0) += 1);
        let of_place = |place, own| {
            let all: u32 = sizes.iter().map(|(&from, count)| count * at_place(place, own, from)).sum();
            all - at_place(place, own, own)
        };
        self.sizes
            .iter()
            .flat_map(|&own| (0..own).map(move |place| (place, own)))
            .map(|(p, own)| of_place(p, own))
            .collect()
    }

    /// "8 x 8", or the sizes one by one.
    pub fn summary(&self) -> String {
        if self.is_uniform() {
            format!("{} x {}", self.domains(), self.largest())
        } else {
            self.sizes.iter().map(u32::to_string).collect::<Vec<_>>().join(" + ")
        }
    }
}

/// How many of `from` places wrap around to `place` of `own`.
fn at_place(place: u32, own: u32, from: u32) -> u32 {
    (from + own - 1 - place) / own
}

fn check_ranks(ranks: u64) -> Result<()> {
    if (1..=u64::from(MAX_PLAN_RANKS)).contains(&ranks) {
        return Ok(());
    }
    Err(Error::argument("ranks", ranks, format!("a plan has 1 to {MAX_PLAN_RANKS} ranks")))
}

#[cfg(test)]
mod tests {
    use super::Topology;

    #[test]
    fn every_rank_has_one_forwarder_in_every_other_domain() {
        let topology = Topology::of_domains(&[2, 5, 3, 1]).unwrap();
        assert!(!topology.is_uniform());
        for (rank, all) in (0..topology.ranks()).zip(topology.served()) {
            let others = (0..4).filter(|&d| d != topology.domain_of(rank));
            assert_eq!(all, others.map(|d| topology.forwards_for(rank, d)).sum::<u32>());
        }
        for domain in 0..4 {
            for from in (0..4).filter(|&from| from != domain) {
                let mut served = vec![0; topology.ranks() as usize];
                for rank in topology.members(from) {
                    assert_eq!(topology.domain_of(rank), from);
                    served[topology.forwarder(rank, domain) as usize] += 1;
                }
                for rank in 0..topology.ranks() {
                    let want = if topology.domain_of(rank) == domain { topology.forwards_for(rank, from) } else { 0 };
                    assert_eq!(served[rank as usize], want, "rank {rank} of domain {domain} for {from}");
                }
            }
        }
    }
}
