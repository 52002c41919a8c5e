//! From bytes to time: the rates of the hardware, as one rank and its protocol have them.
use crate::deepep::DeepEpV2;
use crate::error::{Error, Result};
use crate::hardware::{Gpu, Hardware, Nic};
use crate::ours::Ours;
use crate::protocol::{PlanOptions, Protocol};
use crate::rules::{OneSm, Rules, Setting};
use crate::topology::Topology;
use crate::traffic::{Resource, StepTraffic, Traffic};
use crate::workload::Workload;

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

/// The rates of the hardware, as one rank has them.
#[derive(Debug)]
pub(crate) struct Limits<'a> {
    gpu: &'a Gpu,
    /// Whose protocol uses them.
    pub rules: &'static dyn Rules,
    many_sms: bool,
    allocated_qps: u32,
    ranks_per_gpu: f64,
    /// Most SMs of an operation, for each rank of the GPU.
    pub most_sms: u32,
    nic: [f64; 2],
    network_trip: f64,
}

impl<'a> Limits<'a> {
    /// The limits of this hardware for that protocol.
    pub fn new(topology: &Topology, hardware: &'a Hardware, options: &PlanOptions) -> Result<Self> {
        let rules: &'static dyn Rules = match options.protocol {
            Protocol::Epoxide => &Ours,
            Protocol::DeepEpV2 => &DeepEpV2,
        };
        let per_gpu = topology.ranks_per_gpu();
        let device = hardware.gpu.sms.value as u32;
        let most_sms = rules.available_sms(hardware, topology);
        if most_sms == 0 {
            let rule = format!("each rank of a GPU needs a whole SM of its {device}, and one stays free");
            return Err(Error::argument("ranks_per_gpu", per_gpu, rule));
        }
        let share = f64::from(topology.nics_per_gpu()) / f64::from(per_gpu);
        let (nic, network_trip) = match &hardware.nic {
            Some(nic) => ([nic.bandwidth.value * share, nic.message_rate.value * share], nic.latency.value),
            None if topology.domains() > 1 => {
                let rule =
                    format!("{} NVLink domains need a NIC; known: {}", topology.domains(), Nic::names().join(", "));
                return Err(Error::argument("nic", "none", rule));
            }
            None => ([0.0; 2], 0.0),
        };
        let allocated_qps = options.allocated_qps.unwrap_or(rules.default_qps());
        if allocated_qps == 0 {
            return Err(Error::argument("allocated_qps", 0, "at least 1 queue pair"));
        }
        Ok(Self {
            gpu: &hardware.gpu,
            rules,
            many_sms: options.many_sms,
            allocated_qps,
            ranks_per_gpu: f64::from(per_gpu),
            most_sms,
            nic,
            network_trip,
        })
    }

    /// What the protocol's rules are asked about.
    pub fn setting(&self, topology: &'a Topology, workload: &'a Workload) -> Setting<'a> {
        let (rdma, allocated_qps, many_sms) = (self.nic[0], self.allocated_qps, self.many_sms);
        Setting { topology, workload, gpu: self.gpu, rdma, allocated_qps, many_sms }
    }

    /// What a resource does of a rank's `traffic`, with `sms` SMs of a rank or its share of the device.
    fn rate(&self, step: &StepTraffic, traffic: &Traffic, resource: Resource, sms: f64) -> f64 {
        match resource {
            Resource::SmRead | Resource::SmWrite => self.rules.sm_rate(self.gpu, traffic, resource, sms),
            Resource::Hbm => self.gpu.hbm.value,
            Resource::NvlinkOut | Resource::NvlinkIn => self.rules.nvlink(self.gpu, step.pulls) / self.ranks_per_gpu,
            Resource::RdmaOut | Resource::RdmaIn => self.nic[0],
            Resource::Messages => self.nic[1],
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

    /// What a step takes.
    pub fn time(&self, traffic: StepTraffic, num_sms: u32) -> Step {
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

    /// What one SM would take for the step, and what the rest of the machine takes.
    fn one_sm(&self, step: &StepTraffic) -> OneSm {
        let time = |r: Resource| self.resource_time(step, r, 1.0).map_or(0.0, |t| t.seconds);
        let longest = |sm: bool| Resource::ALL.into_iter().filter(|r| r.is_sm() == sm).map(time).fold(0.0, f64::max);
        OneSm { sm: longest(true), others: longest(false) }
    }

    /// SMs of an operation whose main kernels are `steps`: what the protocol asks for, of those that there are.
    pub fn num_sms(&self, setting: &Setting<'_>, steps: [&StepTraffic; 2]) -> Result<u32> {
        let wanted = self.rules.num_sms(setting, steps.map(|step| self.one_sm(step)))?;
        Ok(wanted.min(f64::from(self.most_sms)) as u32)
    }

    /// What the SMs of every rank take to load and to store its share of a step, in seconds.
    pub fn sm_seconds(&self, step: &StepTraffic, num_sms: u32) -> Vec<[f64; 2]> {
        let seconds =
            |traffic: &Traffic, resource| traffic.of(resource) / self.rate(step, traffic, resource, f64::from(num_sms));
        step.ranks.iter().map(|t| [seconds(t, Resource::SmRead), seconds(t, Resource::SmWrite)]).collect()
    }
}
