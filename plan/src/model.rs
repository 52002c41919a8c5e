//! A plan: SMs, queue pairs, bytes and time of a dispatch and its combine.
use crate::bytes::PlannedBytes;
use crate::deepep::counted_bytes;
use crate::error::{Error, Result};
use crate::expectation::Expected;
use crate::flows::{Flows, flows};
use crate::hardware::Hardware;
use crate::limits::{Limits, ResourceTime, Step};
use crate::protocol::{PlanOptions, Protocol};
use crate::topology::Topology;
use crate::traffic::{Resource, StepTraffic};
use crate::workload::{Capacity, RowLayout, Workload};

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
        return Err(Error::number("imbalance", workload.imbalance, rule));
    }
    let limits = Limits::new(topology, hardware, options)?;
    let expected = Expected::new(topology, workload);
    let flows = flows(topology, workload, &expected);
    if let Capacity::Rows(rows) = workload.capacity {
        let experts = match workload.layout {
            RowLayout::Slab => f64::from(workload.experts.div_ceil(topology.ranks())),
            _ => 1.0,
        };
        let of_rank = |f: &Flows| if workload.layout.is_by_expert() { f.expanded } else { f.received };
        let received = workload.imbalance * flows.iter().map(of_rank).fold(0.0, f64::max) / experts;
        if (rows as f64) < received.floor() {
            let who =
                if workload.layout == RowLayout::Slab { "each expert of the busiest rank" } else { "the busiest rank" };
            let rule = format!("{who} receives {received:.0} rows, on average");
            return Err(Error::argument("capacity", rows, rule));
        }
    }
    let (rules, setting) = (limits.rules, limits.setting(topology, workload));
    let dispatch = rules.dispatch(topology, workload, &flows);
    let combine = rules.combine(topology, workload, &flows);
    rules.check(&setting)?;
    let num_sms = match options.num_sms {
        Some(n) => n,
        None => limits.num_sms(&setting, [&dispatch[0], &combine[0]])?,
    };
    if num_sms == 0 || num_sms > limits.most_sms {
        let rule = format!("an operation has 1 to {} SMs on this GPU, for each of its ranks", limits.most_sms);
        return Err(Error::argument("num_sms", num_sms, rule));
    }
    let (channels, num_qps) = rules.channels(&setting, num_sms)?;
    let counted = counted_bytes(workload);
    let phase = |steps: Vec<StepTraffic>, counted: f64| {
        let steps: Vec<Step> = steps.into_iter().map(|s| limits.time(s, num_sms)).collect();
        let seconds = steps.iter().map(|s| s.seconds).sum();
        Phase { bandwidth: bandwidth(topology, &flows, &steps[0], counted), seconds, steps }
    };
    let dispatch = phase(dispatch, counted[0]);
    let combine = phase(combine, counted[1]);
    let bytes = rules.bytes(topology, workload, num_sms)?;
    let projection = bytes.is_projection();
    Ok(Plan { protocol: options.protocol, num_sms, num_qps, channels, expected, dispatch, combine, bytes, projection })
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
