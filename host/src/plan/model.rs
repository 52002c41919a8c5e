//! From bytes to SMs, queue pairs and time.

use super::bytes::PlannedBytes;
use super::deepep;
use super::expectation::Expected;
use super::hardware::{Gpu, Hardware};
use super::topology::Topology;
use super::traffic::{self, Flows, Resource, StepTraffic, Traffic};
use super::workload::{Capacity, RowLayout, Workload};
use crate::config::dispatch_shared;
use crate::error::{Error, Result};

/// Whose protocol moves the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// Ours. For several domains a projection: it is designed, not built.
    #[default]
    Epoxide,
    /// DeepEP V2's, with its constants for an SM.
    DeepEpV2,
}

/// What the caller decides instead of the planner.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct PlanOptions {
    /// Whose protocol.
    pub protocol: Protocol,
    /// SMs of an operation; `None` lets the planner decide.
    pub num_sms: Option<u32>,
    /// Queue pairs that may be used; `None` is no limit (129 for DeepEP V2, its default).
    pub allocated_qps: Option<u32>,
    /// DeepEP V2 only: at least 64 SMs, as it takes when nothing is to overlap.
    pub many_sms: bool,
}

impl PlanOptions {
    /// Our protocol, SMs as the planner decides.
    pub fn new() -> Self {
        Self::default()
    }
    /// Sets whose protocol.
    #[must_use]
    pub fn with_protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }
    /// Sets the SMs of an operation.
    #[must_use]
    pub fn with_num_sms(mut self, num_sms: u32) -> Self {
        self.num_sms = Some(num_sms);
        self
    }
    /// Limits the queue pairs.
    #[must_use]
    pub fn with_allocated_qps(mut self, qps: u32) -> Self {
        self.allocated_qps = Some(qps);
        self
    }
    /// Takes at least 64 SMs for DeepEP V2.
    #[must_use]
    pub fn with_many_sms(mut self) -> Self {
        self.many_sms = true;
        self
    }
}

/// What a resource takes for a step.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ResourceTime {
    /// The resource.
    pub resource: Resource,
    /// Bytes (messages for [`Resource::Messages`]) of the rank that uses it most; for memory, of all ranks of the GPU.
    pub bytes: f64,
    /// Bytes (messages) per second.
    pub rate: f64,
    /// Bytes over rate.
    pub seconds: f64,
}

/// A kernel of a phase.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// Its name.
    pub name: &'static str,
    /// Its bytes, per rank.
    pub traffic: StepTraffic,
    /// Every resource that it uses, the longest first.
    pub resources: Vec<ResourceTime>,
    /// What no bandwidth shortens.
    pub latency: f64,
    /// The longest resource, and the latency.
    pub seconds: f64,
}

/// A rate in three accountings, in bytes per second per rank; over the main kernel's time.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Bandwidth {
    /// As DeepEP's tables count inside a domain: every received row, also the rank's own (DeepEP at dd758ca).
    pub scale_up: f64,
    /// As they count between domains: a row per (token, domain), the own domain too. 0 with one domain.
    pub scale_out: f64,
    /// What crosses NVLink.
    pub nvlink: f64,
    /// What crosses the network.
    pub rdma: f64,
}

/// Dispatch or combine.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Phase {
    /// Its kernels, the main one first.
    pub steps: Vec<Step>,
    /// All steps.
    pub seconds: f64,
    /// What it reaches.
    pub bandwidth: Bandwidth,
}

impl Phase {
    /// What binds the main kernel.
    pub fn binding(&self) -> &ResourceTime {
        &self.steps[0].resources[0]
    }
}

/// The plan of a dispatch and its combine.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// Whose protocol.
    pub protocol: Protocol,
    /// SMs of an operation.
    pub num_sms: u32,
    /// Queue pairs of a rank; 0 with one domain.
    pub num_qps: u32,
    /// Channels of a rank: pairs of a sending and a forwarding warp; 0 with one domain.
    pub channels: u32,
    /// What a token does.
    pub expected: Expected,
    /// Dispatch.
    pub dispatch: Phase,
    /// Combine.
    pub combine: Phase,
    /// What a buffer takes on the rank that needs most.
    pub bytes: PlannedBytes,
    /// Whether time and bytes describe something that is designed but not built.
    pub projection: bool,
}

/// Plans our protocol.
///
/// # Errors
///
/// [`Error::InvalidArgument`] for a workload, a topology or hardware that breaks a rule: the field, its value and the rule.
pub fn plan(topology: &Topology, hardware: &Hardware, workload: &Workload) -> Result<Plan> {
    plan_with(topology, hardware, workload, &PlanOptions::default())
}

/// Plans with what the caller decides.
///
/// # Errors
///
/// See [`plan`]; also for what DeepEP V2 does not support, when its protocol is asked for.
pub fn plan_with(topology: &Topology, hardware: &Hardware, workload: &Workload, options: &PlanOptions) -> Result<Plan> {
    workload.check()?;
    hardware.check()?;
    if workload.imbalance > f64::from(topology.ranks()) {
        let rule = format!("the busiest rank has at most all rows, which is {} times the mean", topology.ranks());
        return Err(Error::argument("imbalance", workload.imbalance, rule));
    }
    let limits = Limits::new(topology, hardware, options)?;
    let expected = Expected::new(topology, workload);
    let flows = traffic::flows(topology, workload, &expected);
    if let Capacity::Rows(rows) = workload.capacity {
        let received = workload.imbalance * flows.iter().map(|f| f.received).fold(0.0, f64::max);
        if (rows as f64) < received.floor() {
            let rule = format!("the busiest rank receives {received:.0} rows, on average");
            return Err(Error::argument("capacity", rows, rule));
        }
    }
    let dispatch = traffic::dispatch(topology, workload, &flows, options.protocol);
    let combine = traffic::combine(topology, workload, &flows, options.protocol);
    if options.protocol == Protocol::DeepEpV2 {
        limits.check_deepep(topology, workload)?;
    }
    let num_sms = match options.num_sms {
        Some(n) => n,
        None => limits.sms(topology, workload, [&dispatch[0], &combine[0]])?,
    };
    if num_sms == 0 || num_sms > limits.most_sms {
        let rule = format!("an operation has 1 to {} SMs on this GPU, for each of its ranks", limits.most_sms);
        return Err(Error::argument("num_sms", num_sms, rule));
    }
    let (channels, num_qps) = limits.channels(topology, workload, num_sms)?;
    let counted = traffic::counted_bytes(workload);
    let phase = |steps: Vec<StepTraffic>, counted: f64| {
        let steps: Vec<Step> = steps.into_iter().map(|s| limits.time(s, num_sms)).collect();
        let seconds = steps.iter().map(|s| s.seconds).sum();
        Phase { bandwidth: bandwidth(topology, &flows, &steps[0], counted), seconds, steps }
    };
    let dispatch = phase(dispatch, counted[0]);
    let combine = phase(combine, counted[1]);
    let bytes = PlannedBytes::new(topology, workload, num_sms, options.protocol)?;
    let projection = bytes.is_projection();
    Ok(Plan { protocol: options.protocol, num_sms, num_qps, channels, expected, dispatch, combine, bytes, projection })
}

/// More SMs than bind nothing in the model, which takes the longest of what overlaps: at exactly as many, neither the SMs nor the rest
/// keep the other busy all the while, and kernels take up to half longer (docs/planning.md). DeepEP's planner has the same factor.
const SM_HEADROOM: f64 = 1.25;

/// What the SMs of every rank take to load and to store its share of a step of our protocol, in seconds.
pub(super) fn sm_seconds(
    topology: &Topology,
    hardware: &Hardware,
    num_sms: u32,
    step: &StepTraffic,
) -> Result<Vec<[f64; 2]>> {
    let limits = Limits::new(topology, hardware, &PlanOptions::new())?;
    let seconds =
        |traffic: &Traffic, resource| traffic.of(resource) / limits.rate(step, traffic, resource, f64::from(num_sms));
    Ok(step.ranks.iter().map(|t| [seconds(t, Resource::SmRead), seconds(t, Resource::SmWrite)]).collect())
}

/// The rates of the hardware, as one rank has them.
struct Limits<'a> {
    gpu: &'a Gpu,
    protocol: Protocol,
    many_sms: bool,
    allocated_qps: u32,
    ranks_per_gpu: f64,
    most_sms: u32,
    nic: [f64; 2],
    network_trip: f64,
}

impl<'a> Limits<'a> {
    fn new(topology: &Topology, hardware: &'a Hardware, options: &PlanOptions) -> Result<Self> {
        let per_gpu = topology.ranks_per_gpu();
        let device = hardware.gpu.sms.value as u32;
        // Ours leave one SM of a GPU free (see `runtime::cuda::budget`).
        let spare = u32::from(options.protocol == Protocol::Epoxide);
        let most_sms = device.saturating_sub(spare) / per_gpu;
        if most_sms == 0 {
            let rule = format!("each rank of a GPU needs a whole SM of its {device}, and one stays free");
            return Err(Error::argument("ranks_per_gpu", per_gpu, rule));
        }
        let share = f64::from(topology.nics_per_gpu()) / f64::from(per_gpu);
        let (nic, network_trip) = match &hardware.nic {
            Some(nic) => ([nic.bandwidth.value * share, nic.message_rate.value * share], nic.latency.value),
            None if topology.domains() > 1 => {
                let rule = format!(
                    "{} NVLink domains need a NIC; known: {}",
                    topology.domains(),
                    super::Nic::names().join(", ")
                );
                return Err(Error::argument("nic", "none", rule));
            }
            None => ([0.0; 2], 0.0),
        };
        let default_qps = if options.protocol == Protocol::DeepEpV2 { 129 } else { u32::MAX };
        let allocated_qps = options.allocated_qps.unwrap_or(default_qps);
        if allocated_qps == 0 {
            return Err(Error::argument("allocated_qps", 0, "at least 1 queue pair"));
        }
        Ok(Self {
            gpu: &hardware.gpu,
            protocol: options.protocol,
            many_sms: options.many_sms,
            allocated_qps,
            ranks_per_gpu: f64::from(per_gpu),
            most_sms,
            nic,
            network_trip,
        })
    }

    /// What a resource does of a rank's `traffic`, with `sms` SMs of a rank or its share of the device.
    fn rate(&self, step: &StepTraffic, traffic: &Traffic, resource: Resource, sms: f64) -> f64 {
        let (gpu, slow) = (self.gpu, &traffic.slow);
        match (self.protocol, resource) {
            (Protocol::Epoxide, Resource::SmRead) => {
                let parts = [(slow.linked_loads, gpu.sm_read_link.value), (slow.quantized, gpu.sm_quantize.value)];
                sms * mixed(traffic.of(resource), gpu.sm_read.value, &parts)
            }
            (Protocol::Epoxide, Resource::SmWrite) => {
                let parts = [(slow.linked_stores, gpu.sm_write_link.value)];
                sms * mixed(traffic.of(resource), gpu.sm_write.value, &parts)
            }
            (Protocol::DeepEpV2, Resource::SmRead) => sms * deepep::SM_READ,
            (Protocol::DeepEpV2, Resource::SmWrite) => sms * deepep::SM_WRITE,
            (_, Resource::Hbm) => gpu.hbm.value,
            (_, Resource::NvlinkOut | Resource::NvlinkIn) => self.nvlink(step.pulls) / self.ranks_per_gpu,
            (_, Resource::RdmaOut | Resource::RdmaIn) => self.nic[0],
            (_, Resource::Messages) => self.nic[1],
        }
    }

    /// NVLink of a GPU, in one direction.
    fn nvlink(&self, pulls: bool) -> f64 {
        match self.protocol {
            Protocol::Epoxide if pulls => self.gpu.nvlink_read(),
            Protocol::Epoxide => self.gpu.nvlink(),
            Protocol::DeepEpV2 => self.gpu.nvlink_nominal() * deepep::NVLINK_SHARE,
        }
    }

    /// What a resource takes, for the rank for which it takes longest; `None` if the step does not use it.
    fn resource_time(&self, step: &StepTraffic, resource: Resource, sms: f64) -> Option<ResourceTime> {
        // One GPU's memory serves all its ranks; nothing says that they are busy alike, so all count as the busiest.
        let ranks = if resource == Resource::Hbm { self.ranks_per_gpu } else { 1.0 };
        let of_rank = |traffic: &Traffic| {
            let bytes = traffic.of(resource) * ranks;
            let rate = self.rate(step, traffic, resource, sms);
            ResourceTime { resource, bytes, rate, seconds: bytes / rate }
        };
        let longest = step.ranks.iter().map(of_rank).max_by(|a, b| a.seconds.total_cmp(&b.seconds));
        longest.filter(|time| time.bytes > 0.0)
    }

    fn time(&self, traffic: StepTraffic, num_sms: u32) -> Step {
        let device = self.gpu.sms.value / self.ranks_per_gpu;
        let sms = if traffic.whole_device { device } else { f64::from(num_sms) };
        let mut resources: Vec<_> =
            Resource::ALL.into_iter().filter_map(|r| self.resource_time(&traffic, r, sms)).collect();
        resources.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let launch = if traffic.launched { self.gpu.kernel.value } else { 0.0 };
        let latency = launch
            + f64::from(traffic.round_trips) * self.gpu.round_trip.value
            + f64::from(traffic.network_trips) * self.network_trip;
        let seconds = resources.first().map_or(0.0, |r| r.seconds) + latency;
        Step { name: traffic.name, traffic, resources, latency, seconds }
    }

    /// [`SM_HEADROOM`] times the fewest SMs whose loads and stores bind neither step; for DeepEP V2 its own formula.
    fn sms(&self, topology: &Topology, workload: &Workload, steps: [&StepTraffic; 2]) -> Result<u32> {
        if self.protocol == Protocol::DeepEpV2 {
            let setup = self.deepep_setup(topology, workload);
            return Ok(setup.num_sms()?.min(self.most_sms));
        }
        let mut wanted = 1.0f64;
        for step in steps {
            let time = |r: Resource| self.resource_time(step, r, 1.0).map_or(0.0, |t| t.seconds);
            let longest =
                |sm: bool| Resource::ALL.into_iter().filter(|r| r.is_sm() == sm).map(time).fold(0.0, f64::max);
            wanted = wanted.max((SM_HEADROOM * longest(true) / longest(false)).ceil());
        }
        Ok(wanted.min(f64::from(self.most_sms)) as u32)
    }

    fn deepep_setup(&self, topology: &Topology, workload: &Workload) -> deepep::Setup {
        let (ranks, domain) = (topology.ranks(), topology.largest());
        let mut setup = deepep::Setup::new(
            ranks,
            domain,
            workload.experts,
            workload.top_k,
            self.nvlink(false),
            self.nic[0],
            self.gpu.sms.value as u32,
        );
        setup.prefer_overlap = !self.many_sms;
        setup
    }

    /// Refuses what DeepEP V2 has not, also where the caller gives the SMs.
    fn check_deepep(&self, topology: &Topology, workload: &Workload) -> Result<()> {
        if !topology.is_uniform() {
            return Err(Error::argument("domains", topology.summary(), "DeepEP V2 needs equal NVLink domains"));
        }
        if workload.capacity != Capacity::WorstCase {
            let rule = "the buffers of DeepEP V2 are planned for the worst case";
            return Err(Error::argument("capacity", format!("{:?}", workload.capacity), rule));
        }
        if workload.layout == RowLayout::Slab {
            return Err(Error::argument(
                "layout",
                "Slab",
                "DeepEP V2 is planned with the compact or the expanded layout",
            ));
        }
        self.deepep_setup(topology, workload).num_sms().map(|_| ())
    }

    /// Channels and queue pairs of a rank: a queue pair for every channel, so that none takes a lock, and one for the counts.
    fn channels(&self, topology: &Topology, workload: &Workload, num_sms: u32) -> Result<(u32, u32)> {
        let shared = self.gpu.shared_memory.value as u32;
        if self.protocol == Protocol::DeepEpV2 {
            let (out, up) = (topology.domains(), topology.largest());
            let fp8 = workload.format == crate::config::WireFormat::Fp8;
            let buffer = deepep::Buffer::new(workload.tokens, workload.hidden, workload.top_k, fp8, out, up);
            let per_sm = deepep::Warps::new(&buffer, workload.experts, shared.into()).channels as u32;
            let per_sm = if self.many_sms { per_sm.min(4) } else { per_sm };
            let setup = self.deepep_setup(topology, workload);
            let qps = if out > 1 { setup.num_qps(num_sms, self.allocated_qps) } else { 0 };
            return Ok((if out > 1 { per_sm * num_sms } else { 0 }, qps));
        }
        let stages = dispatch_shared(&traffic::shape(workload, topology.largest()), shared)?;
        if topology.domains() == 1 {
            return Ok((0, 0));
        }
        let channels = (stages.copy_warps / 2).max(1) * num_sms;
        Ok((channels, (channels + 1).min(self.allocated_qps)))
    }
}

/// The rate of an SM that moves `bytes` at `rate`, but for some parts of them at other rates.
fn mixed(bytes: f64, rate: f64, parts: &[(f64, f64)]) -> f64 {
    let (others, others_seconds) = parts.iter().fold((0.0, 0.0), |(b, s), (bytes, rate)| (b + bytes, s + bytes / rate));
    let seconds = (bytes - others).max(0.0) / rate + others_seconds;
    if seconds > 0.0 { bytes / seconds } else { rate }
}

fn bandwidth(topology: &Topology, flows: &[Flows], main: &Step, counted: f64) -> Bandwidth {
    let ranks = flows.len() as f64;
    let mean = |f: fn(&Flows) -> f64| flows.iter().map(f).sum::<f64>() / ranks;
    let traffic = &main.traffic.mean;
    let many = topology.domains() > 1;
    Bandwidth {
        scale_up: mean(|f| f.received) * counted / main.seconds,
        scale_out: if many { mean(|f| f.remote_out + f.at_home) * counted / main.seconds } else { 0.0 },
        nvlink: traffic.of(Resource::NvlinkOut) / main.seconds,
        rdma: traffic.of(Resource::RdmaOut) / main.seconds,
    }
}
