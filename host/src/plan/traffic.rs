//! The bytes that each resource moves: for our protocol, and for DeepEP V2's.
//!
//! Everything is per rank and expected, and follows from the probability that a token goes to each rank and domain
//! ([`Expected`]). Rows are counted where they move: a row that one kernel reads from memory and writes into a peer is one SM
//! read, one SM write, a memory read here, a memory write there, and a pass over NVLink if the peer is another GPU.
use epoxide_kernels::shape::Shape;

use super::expectation::Expected;
use super::topology::Topology;
use super::workload::{RowLayout, Workload};
use super::{Protocol, deepep};
use crate::config::WireFormat;

/// What bounds a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// What the operation's SMs load.
    SmRead,
    /// What the operation's SMs store.
    SmWrite,
    /// Device memory, reads and writes together, of all ranks of the GPU.
    Hbm,
    /// NVLink to other GPUs.
    NvlinkOut,
    /// NVLink from other GPUs.
    NvlinkIn,
    /// The NIC, sending.
    RdmaOut,
    /// The NIC, receiving.
    RdmaIn,
    /// Messages that the NIC sends; the "bytes" are messages.
    Messages,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::SmRead,
        Self::SmWrite,
        Self::Hbm,
        Self::NvlinkOut,
        Self::NvlinkIn,
        Self::RdmaOut,
        Self::RdmaIn,
        Self::Messages,
    ];
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::SmRead => "SM loads",
            Self::SmWrite => "SM stores",
            Self::Hbm => "HBM",
            Self::NvlinkOut => "NVLink out",
            Self::NvlinkIn => "NVLink in",
            Self::RdmaOut => "RDMA out",
            Self::RdmaIn => "RDMA in",
            Self::Messages => "NIC messages",
        }
    }
    /// Whether SMs, and so their number, set its rate.
    pub fn is_sm(self) -> bool {
        matches!(self, Self::SmRead | Self::SmWrite)
    }
}

/// Bytes per resource, in the order of [`Resource::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    amounts: [f64; 8],
    /// What SMs do more slowly than the rest.
    pub(super) slow: Slow,
}

/// Parts of what SMs load and store that they are slower at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Slow {
    /// Loaded from other GPUs.
    pub linked_loads: f64,
    /// Loaded as BF16 and quantised.
    pub quantized: f64,
    /// Stored to other GPUs.
    pub linked_stores: f64,
}

impl Traffic {
    /// Bytes (or messages) of a resource.
    pub fn of(&self, resource: Resource) -> f64 {
        self.amounts[resource as usize]
    }
    fn add(&mut self, resource: Resource, bytes: f64) {
        self.amounts[resource as usize] += bytes;
    }
    fn combine(mut self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Self {
        self.amounts.iter_mut().zip(other.amounts).for_each(|(a, b)| *a = f(*a, b));
        self.slow = Slow {
            linked_loads: f(self.slow.linked_loads, other.slow.linked_loads),
            quantized: f(self.slow.quantized, other.slow.quantized),
            linked_stores: f(self.slow.linked_stores, other.slow.linked_stores),
        };
        self
    }
}

/// The traffic of one step of a phase.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepTraffic {
    /// "dispatch", "copy epilogue", ...
    pub name: &'static str,
    /// The mean over ranks.
    pub mean: Traffic,
    /// For every resource, the rank that uses it most.
    pub busiest: Traffic,
    /// Dependent round trips over NVLink or inside the GPU, beyond the kernel's first exchange with its peers.
    pub round_trips: u32,
    /// Dependent passes over the network.
    pub network_trips: u32,
    /// Whether it has the whole device: DeepEP's epilogues.
    pub whole_device: bool,
    /// Whether a launch precedes it that nothing hides.
    pub launched: bool,
    /// Whether what crosses NVLink is read by who wants it, and not written by who has it.
    pub(super) pulls: bool,
    /// What each rank moves.
    pub(super) ranks: Vec<Traffic>,
}

/// Bytes of rows in each phase.
#[derive(Clone, Copy, Debug)]
struct Rows {
    /// Read by dispatch from the caller.
    input: f64,
    /// A copy in dispatch, with scales and metadata.
    wire: f64,
    /// A row of combine.
    output: f64,
    /// What a copy counts in DeepEP's own tables: data, scales, indices, weights.
    counted: [f64; 2],
}

impl Rows {
    fn new(workload: &Workload, protocol: Protocol) -> Self {
        let shape = shape(workload, 1);
        let (bf16, data) = (shape.bf16_row_bytes() as f64, shape.wire_row_bytes() as f64);
        let top_k = f64::from(workload.top_k);
        let buffer = deepep::Buffer::new(workload.tokens, workload.hidden, workload.top_k, bf16 != data, 1, 1);
        let exact_scales = 4.0 * buffer.scales() as f64;
        let counted = [data + exact_scales + 12.0 * top_k, bf16 + 4.0 * top_k];
        match protocol {
            Protocol::Epoxide => Self { input: bf16, wire: shape.received_bytes() as f64, output: bf16, counted },
            Protocol::DeepEpV2 => Self {
                input: data + exact_scales,
                wire: buffer.dispatch_record(buffer.scales()) as f64,
                output: bf16 + 4.0 * top_k,
                counted,
            },
        }
    }
}

pub(crate) fn shape(workload: &Workload, ranks: u32) -> Shape {
    Shape {
        ranks,
        experts: workload.experts,
        top_k: workload.top_k,
        hidden: workload.hidden,
        max_tokens: workload.tokens,
        rows: Shape::worst_rows(ranks, workload.tokens),
        blocks: 1,
        format: workload.format,
    }
}

/// Bytes of a row of ours as it crosses a link: in dispatch with scales and metadata, in combine in BF16.
pub(super) fn row_bytes(workload: &Workload, combine: bool) -> f64 {
    let rows = Rows::new(workload, Protocol::Epoxide);
    if combine { rows.output } else { rows.wire }
}

/// Bytes of a copy in DeepEP's accounting: in dispatch and in combine.
pub(crate) fn counted_bytes(workload: &Workload) -> [f64; 2] {
    Rows::new(workload, Protocol::DeepEpV2).counted
}

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
    /// Tokens of its own that have a copy in its own domain.
    pub at_home: f64,
    /// Ranks of its domain.
    pub domain: f64,
}

impl Flows {
    /// The same, of a rank that receives `imbalance` times the mean: its own rows, and its share of what the forwarders of its domain
    /// carry more.
    fn busiest(&self, imbalance: f64) -> Self {
        let forwarders = 1.0 + (imbalance - 1.0) / self.domain;
        Self {
            remote_in: self.remote_in * forwarders,
            forwarded: self.forwarded * forwarders,
            forwarded_linked: self.forwarded_linked * forwarders,
            received: self.received * imbalance,
            received_linked: self.received_linked * imbalance,
            expanded: self.expanded * imbalance,
            ..*self
        }
    }
}

/// The flows of every rank.
pub(crate) fn flows(topology: &Topology, workload: &Workload, expected: &Expected) -> Vec<Flows> {
    let tokens = f64::from(workload.tokens);
    let per_gpu = topology.ranks_per_gpu();
    let copies = match workload.layout {
        RowLayout::Slab => &expected.selections,
        _ => &expected.to_rank,
    };
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
                at_home: tokens * to_domain,
                domain: size,
            });
        }
    }
    flows
}

/// Dispatch, step by step.
pub(crate) fn dispatch(
    topology: &Topology,
    workload: &Workload,
    flows: &[Flows],
    protocol: Protocol,
) -> Vec<StepTraffic> {
    let rows = Rows::new(workload, protocol);
    let hybrid = topology.domains() > 1;
    let control = control_bytes(topology, workload);
    let quantizes = protocol == Protocol::Epoxide && workload.format == WireFormat::Fp8;
    let main = |f: &Flows| {
        let mut t = Traffic::default();
        let tokens = f64::from(workload.tokens);
        t.add(Resource::SmRead, tokens * rows.input);
        t.add(Resource::Hbm, tokens * rows.input + control.memory);
        if hybrid {
            // Rows for other domains are staged once, put from there, and read again by a forwarder.
            t.add(Resource::SmWrite, tokens * rows.wire);
            t.add(Resource::Hbm, (tokens + f.remote_out + 2.0 * f.remote_in) * rows.wire);
            t.add(Resource::RdmaOut, f.remote_out * rows.wire);
            t.add(Resource::RdmaIn, f.remote_in * rows.wire);
            t.add(Resource::Messages, f.remote_out);
            t.add(Resource::SmRead, f.remote_in * rows.wire);
        }
        t.add(Resource::SmWrite, (f.local_out + f.forwarded) * rows.wire);
        let linked = (f.local_out_linked + f.forwarded_linked) * rows.wire;
        t.add(Resource::NvlinkOut, linked + control.link);
        t.add(Resource::NvlinkIn, f.received_linked * rows.wire + control.link);
        t.add(Resource::Hbm, f.received * rows.wire);
        t.slow.linked_stores = linked;
        t.slow.quantized = if quantizes { tokens * rows.input } else { 0.0 };
        t
    };
    let deepep_main = |f: &Flows| {
        let mut t = main(f);
        if hybrid {
            // The own domain's rows pass through a forwarder too: stored once more, and read again.
            t.add(Resource::SmWrite, f.at_home * rows.wire);
            t.add(Resource::SmRead, f.at_home * rows.wire);
            t.add(Resource::Hbm, 2.0 * f.at_home * rows.wire);
        }
        t
    };
    let expand = |f: &Flows| {
        // The receiver makes the second and further copies of a row.
        let extra = (f.expanded - f.received).max(0.0) * (rows.wire - control.metadata);
        let mut t = Traffic::default();
        t.add(Resource::SmRead, extra);
        t.add(Resource::SmWrite, extra);
        t.add(Resource::Hbm, 2.0 * extra);
        t
    };
    let is_expand = matches!(workload.layout, RowLayout::Expand { .. });
    match protocol {
        Protocol::Epoxide => {
            // The grid agrees on its counts; rows land; the grid's last block knows of it, and its word goes to the peers.
            let with_copies = |f: &Flows| {
                let t = main(f);
                if is_expand { t.combine(&expand(f), |a, b| a + b) } else { t }
            };
            vec![step("dispatch", workload, flows, with_copies, 4, u32::from(hybrid) * 2)]
        }
        Protocol::DeepEpV2 => {
            // Notify: a grid reduction and an exchange; the row; the exit barrier.
            let first = step("dispatch", workload, flows, deepep_main, 4, u32::from(hybrid) * 2);
            let copy = |f: &Flows| {
                let mut t = Traffic::default();
                let out = if is_expand { f.expanded } else { f.received };
                t.add(Resource::SmRead, f.received * rows.wire);
                t.add(Resource::SmWrite, out * rows.wire);
                t.add(Resource::Hbm, (f.received + out) * rows.wire);
                t
            };
            vec![
                first,
                StepTraffic {
                    whole_device: true,
                    launched: false,
                    ..step("copy epilogue", workload, flows, copy, 2, 0)
                },
            ]
        }
    }
}

/// Combine, step by step.
pub(crate) fn combine(
    topology: &Topology,
    workload: &Workload,
    flows: &[Flows],
    protocol: Protocol,
) -> Vec<StepTraffic> {
    let rows = Rows::new(workload, protocol);
    let hybrid = topology.domains() > 1;
    let tokens = f64::from(workload.tokens);
    let handle = tokens * f64::from(workload.top_k) * 8.0;
    // The way back: what was received is lent, what was forwarded is gathered, what was put comes in.
    let links = |t: &mut Traffic, f: &Flows| {
        t.add(Resource::NvlinkOut, f.received_linked * rows.output);
        t.add(Resource::NvlinkIn, (f.local_out_linked + f.forwarded_linked) * rows.output);
        t.add(Resource::RdmaOut, f.remote_in * rows.output);
        t.add(Resource::RdmaIn, f.remote_out * rows.output);
        t.add(Resource::Messages, f.remote_in);
    };
    match protocol {
        Protocol::Epoxide => {
            let pull = |f: &Flows| {
                let mut t = Traffic::default();
                links(&mut t, f);
                t.slow.linked_loads = t.of(Resource::NvlinkIn);
                let pulled = f.local_out + f.forwarded;
                t.add(Resource::SmRead, (pulled + f.remote_out) * rows.output);
                t.add(Resource::SmWrite, (tokens + f.remote_in) * rows.output);
                let memory = tokens + f.received + 2.0 * f.remote_in + 2.0 * f.remote_out;
                t.add(Resource::Hbm, memory * rows.output + handle);
                if matches!(workload.layout, RowLayout::Expand { .. }) {
                    // Where a token has m > 1 rows on one rank they are summed there first: m <= 2 (m - 1) loads, one store.
                    let extra = (f.expanded - f.received).max(0.0) * rows.output;
                    t.add(Resource::SmRead, 2.0 * extra);
                    t.add(Resource::SmWrite, extra);
                    t.add(Resource::Hbm, 3.0 * extra);
                }
                t
            };
            // Rows are pulled; the grid's last block knows of it.
            vec![StepTraffic { pulls: true, ..step("combine", workload, flows, pull, 2, u32::from(hybrid)) }]
        }
        Protocol::DeepEpV2 => {
            let push = |f: &Flows| {
                let mut t = Traffic::default();
                links(&mut t, f);
                // Owners push rows into per-source slots; with rails a forwarder reads them, sums, and puts.
                let own = if hybrid { f.at_home } else { 0.0 };
                let gathered = if hybrid { f.local_out + f.forwarded } else { 0.0 };
                let pushed = f.received;
                t.add(Resource::SmRead, (pushed + gathered) * rows.output);
                t.add(Resource::SmWrite, (pushed + f.remote_in + own) * rows.output);
                let landed = f.local_out + f.forwarded;
                let memory = pushed + landed + gathered + 2.0 * f.remote_in + f.remote_out + own;
                t.add(Resource::Hbm, memory * rows.output);
                t
            };
            let reduce = |f: &Flows| {
                let mut t = Traffic::default();
                let slots = if hybrid { f.at_home + f.remote_out } else { f.local_out };
                t.add(Resource::SmRead, slots * rows.output);
                t.add(Resource::SmWrite, tokens * rows.output);
                t.add(Resource::Hbm, (slots + tokens) * rows.output);
                t
            };
            let epilogue = step("reduce epilogue", workload, flows, reduce, 2, 0);
            vec![
                step("combine", workload, flows, push, 3, u32::from(hybrid)),
                StepTraffic { whole_device: true, launched: false, ..epilogue },
            ]
        }
    }
}

/// What dispatch moves beside rows.
struct Control {
    memory: f64,
    link: f64,
    metadata: f64,
}

fn control_bytes(topology: &Topology, workload: &Workload) -> Control {
    let selections = f64::from(workload.tokens) * f64::from(workload.top_k);
    // i64 indices are read twice and weights once; the handle's two i32 are written once, one is rewritten, each is read twice.
    let memory = selections * (16.0 + 4.0 + 12.0 + 16.0);
    // A row of the count matrix for every peer on another GPU: one 8-byte word per rank and expert of the domain.
    let domain = topology.largest();
    let experts = f64::from(workload.experts) * f64::from(domain) / f64::from(topology.ranks());
    let link = 8.0 * (f64::from(domain) + experts) * f64::from(domain.saturating_sub(topology.ranks_per_gpu()));
    let shape = shape(workload, 1);
    let data = shape.wire_row_bytes() + 4 * u64::from(shape.scale_stride());
    Control { memory, link, metadata: (shape.received_bytes() - data) as f64 }
}

/// A step: the mean over ranks as the gate says, and the busiest rank of each resource with the workload's own imbalance.
fn step(
    name: &'static str,
    workload: &Workload,
    flows: &[Flows],
    traffic: impl Fn(&Flows) -> Traffic,
    round_trips: u32,
    network_trips: u32,
) -> StepTraffic {
    let share = 1.0 / flows.len() as f64;
    let mean = flows.iter().fold(Traffic::default(), |sum, f| sum.combine(&traffic(f), |a, b| a + b * share));
    let ranks: Vec<_> = flows.iter().map(|f| traffic(&f.busiest(workload.imbalance))).collect();
    let busiest = ranks.iter().fold(Traffic::default(), |most, t| most.combine(t, f64::max));
    StepTraffic {
        name,
        mean,
        busiest,
        round_trips,
        network_trips,
        whole_device: false,
        launched: true,
        pulls: false,
        ranks,
    }
}
