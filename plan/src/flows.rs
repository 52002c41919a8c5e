//! How many rows take which way, for every rank.
use crate::expectation::Expected;
use crate::topology::Topology;
use crate::workload::Workload;

/// How many rows take which way, for one rank. All are expectations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flows {
    /// Copies that it sends inside its domain for its own tokens.
    pub local_out: f64,
    /// Of these, to other GPUs.
    pub local_out_linked: f64,
    /// Copies that it sends to other domains.
    pub remote_out: f64,
    /// Copies that it takes from other domains, to forward.
    pub remote_in: f64,
    /// Copies that it forwards inside its domain.
    pub forwarded: f64,
    /// Of these, to other GPUs.
    pub forwarded_linked: f64,
    /// Rows that it receives.
    pub received: f64,
    /// Of these, from other GPUs of its domain.
    pub received_linked: f64,
    /// Rows that its experts make of them.
    pub expanded: f64,
    /// Rows that it receives of tokens with several of its experts.
    pub several: f64,
    /// What is of its own tokens among these.
    pub own: Own,
    /// Tokens of its own that have a copy in its own domain.
    pub at_home: f64,
    /// Ranks of its domain.
    pub domain: f64,
}

/// What a rank receives of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Own {
    /// Rows.
    pub received: f64,
    /// Rows that its experts make of them.
    pub expanded: f64,
    /// Rows of tokens with several of its experts.
    pub several: f64,
}

impl Flows {
    /// The same, of a rank that receives `imbalance` times the mean: its own rows, and its share of what the forwarders of its domain
    /// carry more.
    pub fn busiest(&self, imbalance: f64) -> Self {
        let forwarders = 1.0 + (imbalance - 1.0) / self.domain;
        Self {
            remote_in: self.remote_in * forwarders,
            forwarded: self.forwarded * forwarders,
            forwarded_linked: self.forwarded_linked * forwarders,
            received: self.received * imbalance,
            received_linked: self.received_linked * imbalance,
            expanded: self.expanded * imbalance,
            several: self.several * imbalance,
            own: Own {
                received: self.own.received * imbalance,
                expanded: self.own.expanded * imbalance,
                several: self.own.several * imbalance,
            },
            ..*self
        }
    }
}

/// The flows of every rank.
pub(crate) fn flows(topology: &Topology, workload: &Workload, expected: &Expected) -> Vec<Flows> {
    let tokens = f64::from(workload.tokens);
    let per_gpu = topology.ranks_per_gpu();
    let copies = &expected.to_rank;
    let of_domain: Vec<f64> =
        (0..topology.domains()).map(|d| topology.members(d).map(|r| copies[r as usize]).sum()).collect();
    let all_domains: f64 = expected.to_domain.iter().sum();
    let served: Vec<f64> = topology.served().into_iter().map(f64::from).collect();
    let mut flows = Vec::with_capacity(served.len());
    for domain in 0..topology.domains() {
        let members = topology.members(domain);
        let size = members.len() as f64;
        let (in_domain, to_domain) = (of_domain[domain as usize], expected.to_domain[domain as usize]);
        let served = &served[members.start as usize..members.end as usize];
        let all_served: f64 = served.iter().sum();
        for rank in members.clone() {
            let place = (rank - members.start) as usize;
            let gpu = place as u32 / per_gpu * per_gpu;
            let own_gpu = || members.start + gpu..members.start + gpu + per_gpu;
            let on_gpu: f64 = own_gpu().map(|r| copies[r as usize]).sum();
            let served_on_gpu: f64 = own_gpu().map(|r| served[(r - members.start) as usize]).sum();
            let to_me = copies[rank as usize];
            flows.push(Flows {
                local_out: tokens * in_domain,
                local_out_linked: tokens * (in_domain - on_gpu).max(0.0),
                remote_out: tokens * (all_domains - to_domain).max(0.0),
                remote_in: tokens * served[place] * to_domain,
                forwarded: tokens * served[place] * in_domain,
                forwarded_linked: tokens * served[place] * (in_domain - on_gpu).max(0.0),
                received: tokens * (size + all_served) * to_me,
                received_linked: tokens * (size - f64::from(per_gpu) + all_served - served_on_gpu) * to_me,
                expanded: tokens * (size + all_served) * expected.selections[rank as usize],
                several: tokens * (size + all_served) * expected.several[rank as usize],
                own: Own {
                    received: tokens * to_me,
                    expanded: tokens * expected.selections[rank as usize],
                    several: tokens * expected.several[rank as usize],
                },
                at_home: tokens * to_domain,
                domain: size,
            });
        }
    }
    flows
}
