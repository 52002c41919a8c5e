//! A plan on one page.
use std::fmt::Write;

use epoxide::plan::simulate::{PhaseReport, Report};
use epoxide::plan::{Bandwidth, Basis, Phase, Plan, Protocol, Resource, Routing, RowLayout, Step, number};
use epoxide::{ScaleLayout, WireFormat};

use crate::planned::Planned;
use crate::request::Request;
use crate::simulation::Setting;
use crate::table::Table;
use crate::units;

/// Said of a plan whose buffers are larger than the GPU's memory.
pub(crate) const DOES_NOT_FIT: &str = "DOES NOT FIT into the GPU's memory; dispatch fewer tokens at once";

/// The page.
pub(crate) fn text(planned: &Planned) -> String {
    let Planned { request, plan, simulation } = planned;
    let mut out = heading(request, plan);
    out += &phase("DISPATCH", &plan.dispatch);
    out += &phase("COMBINE", &plan.combine);
    if let Some((setting, report)) = simulation {
        out += &simulated(setting, report);
    }
    out += &bytes(planned);
    out
}

/// "H200 + CX7, 64 ranks in 8 NVLink domains of 8".
pub(crate) fn machine(request: &Request) -> String {
    let topology = &request.topology;
    let nic = request.hardware.nic.as_ref().filter(|_| topology.domains() > 1);
    let nic = nic.map_or(String::new(), |nic| format!(" + {}", nic.name));
    let ranks = match (topology.domains(), topology.is_uniform()) {
        (1, _) => format!("{} ranks in 1 NVLink domain", topology.ranks()),
        (n, true) => format!("{} ranks in {n} NVLink domains of {}", topology.ranks(), topology.largest()),
        (n, false) => format!("{} ranks in {n} NVLink domains: {}", topology.ranks(), topology.summary()),
    };
    let shared = topology.ranks_per_gpu();
    let shared = if shared > 1 { format!(", {shared} ranks on a GPU") } else { String::new() };
    format!("{}{nic}, {ranks}{shared}", request.hardware.gpu.name)
}

/// What was read from this machine, and what to know of it and of a NIC that has no part; empty if there is nothing.
pub(crate) fn found(request: &Request) -> String {
    let mut out = String::new();
    for line in request.found.lines() {
        let _ = writeln!(out, "  machine      {line}");
    }
    for note in request.found.notes() {
        let _ = writeln!(out, "  note         {note}");
    }
    if let (Some(nic), 1) = (&request.hardware.nic, request.topology.domains()) {
        let each = match request.topology.nics_per_gpu() {
            1 => String::new(),
            n => format!(" ({n} for each GPU)"),
        };
        let _ = writeln!(out, "  note         {}{each} has no part: one NVLink domain needs no network", nic.name);
    }
    out
}

/// "4096 tokens a rank, hidden 7168, ...".
pub(crate) fn workload(request: &Request) -> String {
    let w = &request.workload;
    let format = match w.format {
        WireFormat::Fp8 => "FP8",
        WireFormat::Fp8Ue8m0 => "FP8 (UE8M0 scales)",
        WireFormat::Mxfp8 => "MXFP8",
        _ => "BF16",
    };
    let layout = match w.layout {
        RowLayout::Compact => String::new(),
        RowLayout::Expand { alignment } => format!(", expanded rows padded to {alignment}"),
        _ => ", a slab of rows for each expert".into(),
    };
    let scales = if w.scale_layout == ScaleLayout::RowMajor { "" } else { ", scales by column" };
    let imbalance = if w.imbalance > 1.0 {
        format!(", busiest rank {} times the mean", number(w.imbalance))
    } else {
        String::new()
    };
    format!(
        "{} tokens a rank, hidden {}, top-{} of {} experts, {format} dispatch, BF16 combine{layout}{scales}{imbalance}",
        w.tokens, w.hidden, w.top_k, w.experts
    )
}

/// The protocol's name.
pub(crate) fn protocol(plan: &Plan) -> &'static str {
    match plan.protocol {
        Protocol::DeepEpV2 => "DeepEP V2",
        _ => "Epoxide",
    }
}

fn heading(request: &Request, plan: &Plan) -> String {
    let topology = &request.topology;
    let routing = match &request.workload.routing {
        Routing::Uniform => "uniform".into(),
        Routing::GroupLimited { groups, limit } => format!("{limit} of {groups} groups"),
        _ => "measured".into(),
    };
    let domains = match topology.domains() {
        1 => String::new(),
        n => format!(" in {:.2} of {n} domains", plan.expected.domains),
    };
    let mut out = format!("{} on {}\n\n{}", protocol(plan), machine(request), found(request));
    let _ = writeln!(out, "  workload     {}", workload(request));
    let _ = writeln!(
        out,
        "  routing      {routing}: a token goes to {:.2} of {} ranks{domains}",
        plan.expected.ranks,
        topology.ranks()
    );
    let of_ranks = match topology.ranks_per_gpu() {
        1 => String::new(),
        ranks => format!(" of each of a GPU's {ranks} ranks"),
    };
    let sms = request.hardware.gpu.sms.value;
    let _ = writeln!(out, "  SMs          {} of {sms} for each operation{of_ranks}", plan.num_sms);
    if topology.domains() > 1 {
        let _ = writeln!(out, "  queue pairs  {} a rank", plan.num_qps);
        let _ = writeln!(out, "  channels     {} a rank", plan.channels);
    } else {
        let _ = writeln!(out, "  queue pairs  none: one NVLink domain needs no network");
        let _ = writeln!(out, "  channels     none");
    }
    if plan.projection {
        let _ = writeln!(out, "  note         a projection: {}", unbuilt(request));
    }
    out
}

/// Why a plan is a projection.
fn unbuilt(request: &Request) -> String {
    let mut parts = Vec::new();
    if request.topology.domains() > 1 {
        parts.push("several NVLink domains");
    }
    if parts.is_empty() {
        parts.push("so many ranks");
    }
    format!("{} are designed, not built yet", parts.join(" and "))
}

fn phase(name: &str, phase: &Phase) -> String {
    let mut out = format!("\n{name:<13}{}\n", units::time(phase.seconds));
    for step in &phase.steps {
        if phase.steps.len() > 1 {
            let _ = writeln!(out, "  {}  {}", step.name, units::time(step.seconds));
        }
        out += &resources(step);
    }
    out + &bandwidth(&phase.bandwidth, phase.steps.len() > 1)
}

fn resources(step: &Step) -> String {
    let mut table = Table::new(&["", "resource", "moves", "at", "takes", ""], &[0, 1, 5]);
    for (i, used) in step.resources.iter().enumerate() {
        let (amount, rate) = match used.resource {
            Resource::Messages => (units::decimal(used.bytes, ""), units::decimal(used.rate, "/s")),
            _ => (units::traffic(used.bytes), units::rate(used.rate)),
        };
        let (mark, note) = if i == 0 { (">", "binds") } else { ("", "") };
        let name = used.resource.name();
        table.row([mark.into(), name.into(), amount, rate, units::time(used.seconds), note.into()]);
    }
    table.row(["".into(), "latency".into(), "".into(), "".into(), units::time(step.latency), "".into()]);
    table.lines("  ")
}

fn bandwidth(b: &Bandwidth, several: bool) -> String {
    let of = if several { " (of the first step)" } else { "" };
    let gb = |rate: f64| format!("{} GB/s", units::digits(rate / 1e9));
    let mut out = format!("  as DeepEP's tables count{of}   scale-up {}", gb(b.scale_up));
    if b.scale_out > 0.0 {
        let _ = write!(out, ", scale-out {}", gb(b.scale_out));
    }
    let _ = write!(out, "\n  physical, per direction{of}    NVLink {}", gb(b.nvlink));
    if b.rdma > 0.0 {
        let _ = write!(out, ", RDMA {}", gb(b.rdma));
    }
    out + "\n"
}

fn simulated(setting: &Setting, report: &Report) -> String {
    let mut out = format!("\nSIMULATED    routing {}, seed {}", setting.draw(), setting.seed());
    let disturbance = setting.disturbance();
    if !disturbance.is_empty() {
        let _ = write!(out, "; {disturbance}");
    }
    let _ = writeln!(
        out,
        "\n  a token goes to {:.2} ranks in {:.2} domains; the busiest rank receives {:.2} times the mean",
        report.ranks_per_token, report.domains_per_token, report.row_imbalance
    );
    let headings = ["", "model", "simulated", "ratio", "uneven routing", "queueing", "late or slow", "busiest queue"];
    let mut table = Table::new(&headings, &[0, 7]);
    for (name, phase) in [("dispatch", &report.dispatch), ("combine", &report.combine)] {
        table.row(simulated_row(name, phase));
    }
    out + &table.lines("  ")
}

fn simulated_row(name: &str, phase: &PhaseReport) -> [String; 8] {
    let signed = |seconds: f64| format!("{}{}", if seconds < 0.0 { "-" } else { "+" }, units::time(seconds.abs()));
    [
        name.into(),
        units::time(phase.model),
        units::time(phase.seconds),
        format!("{:.2}", phase.seconds / phase.model),
        signed(phase.imbalance),
        signed(phase.queueing),
        signed(phase.disturbance),
        format!("{} of rank {}", phase.resource.name(), phase.rank),
    ]
}

fn bytes(planned: &Planned) -> String {
    let bytes = &planned.plan.bytes;
    let basis = match bytes.basis {
        Basis::Exact => "exactly what a buffer allocates",
        Basis::Projection => "a projection",
        Basis::DeepEpV2 => "by DeepEP V2's formulas; dispatch and combine lie over each other",
        _ => "",
    };
    let mut out = format!("\nBYTES        {} on the rank that needs most ({basis})\n", units::memory(bytes.total()));
    let mut table = Table::new(&["region", "memory", "bytes", ""], &[0, 1]);
    for region in &bytes.regions {
        let kind = if region.symmetric { "window" } else { "private" };
        table.row([region.name.into(), kind.into(), units::thousands(region.bytes), units::memory(region.bytes)]);
    }
    for (name, kind, total) in
        [("total", "window", bytes.window), ("", "private", bytes.private), ("", "both", bytes.total())]
    {
        table.row([name.into(), kind.into(), units::thousands(total), units::memory(total)]);
    }
    out += &table.lines("  ");
    let memory = planned.request.hardware.gpu.memory.value;
    let _ = writeln!(out, "  {:.1}% of the GPU's {}", 100.0 * planned.of_gpu() / memory, units::memory(memory as u64));
    if !planned.fits() {
        let _ = writeln!(out, "  {DOES_NOT_FIT}");
    }
    out
}
