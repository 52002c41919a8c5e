//! The bytes that each resource moves in a step.
//!
//! Everything is per rank and expected, and follows from the probability that a token goes to each rank and domain
//! ([`Expected`](crate::Expected)). Rows are counted where they move: a row that one kernel reads from memory and writes into a peer is
//! one SM read, one SM write, a memory read here, a memory write there, and a pass over NVLink if the peer is another GPU.
use crate::flows::Flows;
use crate::workload::Workload;

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
    pub(crate) slow: Slow,
}

/// Parts of what SMs load and store that they are slower at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Slow {
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
    pub(crate) fn add(&mut self, resource: Resource, bytes: f64) {
        self.amounts[resource as usize] += bytes;
    }
    pub(crate) fn combine(mut self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Self {
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
    pub(crate) pulls: bool,
    /// What each rank moves.
    pub(crate) ranks: Vec<Traffic>,
}

impl StepTraffic {
    /// A step: the mean over ranks as the gate says, and the busiest rank of each resource with the workload's own imbalance.
    pub(crate) fn new(
        name: &'static str,
        workload: &Workload,
        flows: &[Flows],
        traffic: impl Fn(&Flows) -> Traffic,
        round_trips: u32,
        network_trips: u32,
    ) -> Self {
        let share = 1.0 / flows.len() as f64;
        let mean = flows.iter().fold(Traffic::default(), |sum, f| sum.combine(&traffic(f), |a, b| a + b * share));
        let ranks: Vec<_> = flows.iter().map(|f| traffic(&f.busiest(workload.imbalance))).collect();
        let busiest = ranks.iter().fold(Traffic::default(), |most, t| most.combine(t, f64::max));
        Self {
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
}
