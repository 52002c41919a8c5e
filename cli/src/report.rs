//! A plan as JSON. The field names are documented in `epoxide plan --help` and stay.
use epoxide::plan::simulate as sim;
use epoxide::plan::{self, Basis, Capacity, Protocol, Resource, Routing, RowLayout, Unit};
use epoxide::{ScaleLayout, WireFormat};
use serde::Serialize;

use crate::machine::Found;
use crate::planned;
use crate::sweep;

/// A resource as JSON names it: "SM loads" is `sm_loads`.
fn id(resource: Resource) -> String {
    resource.name().to_lowercase().replace(' ', "_")
}

#[derive(Serialize)]
pub(crate) struct Planned {
    protocol: &'static str,
    projection: bool,
    topology: Topology,
    hardware: Hardware,
    workload: Workload,
    expected: Expected,
    num_sms: u32,
    num_qps: u32,
    channels: u32,
    dispatch: Phase,
    combine: Phase,
    simulation: Option<Simulation>,
    bytes: Bytes,
}

#[derive(Serialize)]
struct Topology {
    ranks: u32,
    domains: Vec<u32>,
    ranks_per_gpu: u32,
    nics_per_gpu: u32,
}

#[derive(Serialize)]
struct Hardware {
    gpu: String,
    nic: Option<String>,
    figures: Vec<Figure>,
    machine: Option<Machine>,
}

#[derive(Serialize)]
struct Machine {
    gpu: Option<MachineGpu>,
    nic: Option<MachineNic>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct MachineGpu {
    name: String,
    count: u32,
    domain: u32,
    compute_capability: String,
    built_in: &'static str,
}

#[derive(Serialize)]
struct MachineNic {
    name: String,
    nics: Vec<String>,
    bandwidth: f64,
    gpus_per_nic: u32,
}

#[derive(Serialize)]
struct Figure {
    key: &'static str,
    value: f64,
    unit: &'static str,
    source: String,
}

#[derive(Serialize)]
struct Workload {
    tokens: u32,
    hidden: u32,
    top_k: u32,
    experts: u32,
    format: &'static str,
    layout: &'static str,
    scales: &'static str,
    alignment: Option<u32>,
    capacity_rows: Option<u64>,
    row_slots: u32,
    routing: &'static str,
    imbalance: f64,
}

#[derive(Serialize)]
struct Expected {
    ranks_per_token: f64,
    domains_per_token: f64,
}

#[derive(Serialize)]
struct Phase {
    seconds: f64,
    binding: String,
    bandwidth: Bandwidth,
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Bandwidth {
    scale_up: f64,
    scale_out: f64,
    nvlink: f64,
    rdma: f64,
}

#[derive(Serialize)]
struct Step {
    name: &'static str,
    seconds: f64,
    latency: f64,
    resources: Vec<Used>,
}

#[derive(Serialize)]
struct Used {
    resource: String,
    amount: f64,
    unit: &'static str,
    rate: f64,
    seconds: f64,
    binds: bool,
}

#[derive(Serialize)]
struct Simulation {
    draw: String,
    seed: u64,
    ranks_per_token: f64,
    domains_per_token: f64,
    row_imbalance: f64,
    dispatch: Simulated,
    combine: Simulated,
}

#[derive(Serialize)]
struct Simulated {
    seconds: f64,
    model: f64,
    busiest: f64,
    resource: String,
    rank: u32,
    imbalance: f64,
    queueing: f64,
    disturbance: f64,
    events: u64,
}

#[derive(Serialize)]
struct Bytes {
    basis: &'static str,
    total: u64,
    window: u64,
    private: u64,
    fits: bool,
    regions: Vec<Region>,
}

#[derive(Serialize)]
struct Region {
    name: &'static str,
    offset: u64,
    bytes: u64,
    symmetric: bool,
}

#[derive(Serialize)]
pub(crate) struct Sweep {
    sweep: &'static str,
    points: Vec<Point>,
}

#[derive(Serialize)]
struct Point {
    value: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Planned>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Planned {
    /// The JSON of a plan.
    pub fn new(planned: &planned::Planned) -> Self {
        let planned::Planned { request, plan, simulation } = planned;
        let protocol = if plan.protocol == Protocol::DeepEpV2 { "deepep-v2" } else { "epoxide" };
        Self {
            protocol,
            projection: plan.projection,
            topology: Topology::new(&request.topology),
            hardware: Hardware::new(&request.hardware, &request.found),
            workload: Workload::new(&request.workload),
            expected: Expected { ranks_per_token: plan.expected.ranks, domains_per_token: plan.expected.domains },
            num_sms: plan.num_sms,
            num_qps: plan.num_qps,
            channels: plan.channels,
            dispatch: Phase::new(&plan.dispatch),
            combine: Phase::new(&plan.combine),
            simulation: simulation.as_ref().map(|(setting, report)| Simulation {
                draw: setting.draw(),
                seed: setting.seed(),
                ranks_per_token: report.ranks_per_token,
                domains_per_token: report.domains_per_token,
                row_imbalance: report.row_imbalance,
                dispatch: Simulated::new(&report.dispatch),
                combine: Simulated::new(&report.combine),
            }),
            bytes: Bytes::new(&plan.bytes, planned.fits()),
        }
    }
}

impl Topology {
    fn new(t: &plan::Topology) -> Self {
        Self {
            ranks: t.ranks(),
            domains: (0..t.domains()).map(|d| t.size(d)).collect(),
            ranks_per_gpu: t.ranks_per_gpu(),
            nics_per_gpu: t.nics_per_gpu(),
        }
    }
}

impl Hardware {
    fn new(hardware: &plan::Hardware, found: &Found) -> Self {
        let figures = hardware.figures().into_iter().map(|(key, unit, figure)| Figure {
            key,
            value: figure.value,
            unit: match unit {
                Unit::Count | Unit::Share => "1",
                Unit::Bytes => "B",
                Unit::GigabytesPerSecond => "B/s",
                Unit::MillionsPerSecond => "1/s",
                Unit::Microseconds => "s",
            },
            source: figure.source.to_string(),
        });
        Self {
            gpu: hardware.gpu.name.to_string(),
            nic: hardware.nic.as_ref().map(|nic| nic.name.to_string()),
            figures: figures.collect(),
            machine: (*found != Found::default()).then(|| Machine::new(found)),
        }
    }
}

impl Machine {
    fn new(found: &Found) -> Self {
        Self {
            gpu: found.gpus.as_ref().map(|gpus| MachineGpu {
                name: gpus.gpu.name.to_string(),
                count: gpus.count,
                domain: gpus.domain,
                compute_capability: format!("{}.{}", gpus.compute_capability.0, gpus.compute_capability.1),
                built_in: gpus.base,
            }),
            nic: found.nics.as_ref().map(|nics| MachineNic {
                name: nics.nic.name.to_string(),
                nics: nics.names.clone(),
                bandwidth: nics.gigabits * 1e9 / 8.0,
                gpus_per_nic: nics.gpus_per_nic,
            }),
            notes: found.notes().cloned().collect(),
        }
    }
}

impl Workload {
    fn new(w: &plan::Workload) -> Self {
        Self {
            tokens: w.tokens,
            hidden: w.hidden,
            top_k: w.top_k,
            experts: w.experts,
            format: match w.format {
                WireFormat::Fp8 => "fp8",
                WireFormat::Fp8Ue8m0 => "fp8-ue8m0",
                WireFormat::Mxfp8 => "mxfp8",
                _ => "bf16",
            },
            layout: match w.layout {
                RowLayout::Compact => "compact",
                RowLayout::Expand { .. } => "expand",
                _ => "slab",
            },
            scales: if w.scale_layout == ScaleLayout::RowMajor { "row-major" } else { "column-major" },
            alignment: match w.layout {
                RowLayout::Expand { alignment } => Some(alignment),
                _ => None,
            },
            capacity_rows: match w.capacity {
                Capacity::Rows(rows) => Some(rows),
                _ => None,
            },
            row_slots: w.row_slots,
            routing: match w.routing {
                Routing::Uniform => "uniform",
                Routing::GroupLimited { .. } => "group-limited",
                _ => "histogram",
            },
            imbalance: w.imbalance,
        }
    }
}

impl Phase {
    fn new(phase: &plan::Phase) -> Self {
        let b = &phase.bandwidth;
        Self {
            seconds: phase.seconds,
            binding: id(phase.binding().resource),
            bandwidth: Bandwidth { scale_up: b.scale_up, scale_out: b.scale_out, nvlink: b.nvlink, rdma: b.rdma },
            steps: phase.steps.iter().map(Step::new).collect(),
        }
    }
}

impl Step {
    fn new(step: &plan::Step) -> Self {
        let resources = step.resources.iter().enumerate().map(|(i, used)| Used {
            resource: id(used.resource),
            amount: used.bytes,
            unit: if used.resource == Resource::Messages { "messages" } else { "bytes" },
            rate: used.rate,
            seconds: used.seconds,
            binds: i == 0,
        });
        Self { name: step.name, seconds: step.seconds, latency: step.latency, resources: resources.collect() }
    }
}

impl Simulated {
    fn new(phase: &sim::PhaseReport) -> Self {
        Self {
            seconds: phase.seconds,
            model: phase.model,
            busiest: phase.busiest,
            resource: id(phase.resource),
            rank: phase.rank,
            imbalance: phase.imbalance,
            queueing: phase.queueing,
            disturbance: phase.disturbance,
            events: phase.events,
        }
    }
}

impl Bytes {
    fn new(bytes: &plan::PlannedBytes, fits: bool) -> Self {
        let regions = bytes.regions.iter();
        let regions =
            regions.map(|r| Region { name: r.name, offset: r.offset, bytes: r.bytes, symmetric: r.symmetric });
        Self {
            basis: match bytes.basis {
                Basis::Exact => "exact",
                Basis::DeepEpV2 => "deepep-v2",
                _ => "projection",
            },
            total: bytes.total(),
            window: bytes.window,
            private: bytes.private,
            fits,
            regions: regions.collect(),
        }
    }
}

impl Sweep {
    /// The JSON of a sweep.
    pub fn new(points: &sweep::Points) -> Self {
        let point = |(value, result): &(u32, Result<planned::Planned, String>)| Point {
            value: *value,
            plan: result.as_ref().ok().map(Planned::new),
            error: result.as_ref().err().cloned(),
        };
        Self { sweep: points.over.name(), points: points.points.iter().map(point).collect() }
    }
}
