//! Prints the tables of docs/planning.md, and one of docs/performance/history.md: what the planner predicts beside what was measured or published,
//! our kernels beside DeepEP V2's, and what the simulation at scale says beside the model.
//!
//! `cargo run --release --example plan_vs_published`. Needs no GPU. DeepEP V2's figures are from our own runs of its kernels on one H200
//! and from the README of DeepEP at dd758ca; no constant of the model was chosen to fit them.
#[allow(dead_code, reason = "the other examples tell what the caller gave from what went wrong")]
#[path = "output.rs"]
mod output;
#[path = "../cli/src/progress.rs"]
mod progress;

use std::cell::Cell;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use epoxide::WireFormat::{self, Bf16, Fp8};
use epoxide::plan::simulate::{Draw, Scenario, SendOrder, simulate_watched};
use epoxide::plan::{
    Hardware, LayerSizes, Phase, Plan, PlanOptions, Protocol, Resource, Topology, Workload, plan, plan_with,
};

use crate::progress::Progress;

/// Prints the tables of docs/planning.md and of docs/performance/history.md. There is nothing to choose.
#[derive(Parser)]
struct Options {}

fn main() -> ExitCode {
    if let Err(code) = output::options::<Options>(std::env::args_os()) {
        return code.into();
    }
    let mut text = String::new();
    match tables(&mut text) {
        Ok(()) => output::end(&text, 0).into(),
        Err(error) => output::fail(format_args!("{error:#}"), output::FAILED).into(),
    }
}

fn tables(out: &mut String) -> Result<()> {
    of_an_sm(out)?;
    ours(out)?;
    side_by_side(out);
    one_h200(out)?;
    latency(out)?;
    readme(out)?;
    scale(out)?;
    bytes(out)
}

/// Our own kernels on one H200 and on two, as `examples/bandwidth` printed them (docs/performance/history.md): GPUs, ranks, tokens, SMs of a rank;
/// BF16 dispatch, FP8 dispatch and combine in microseconds.
const OURS: [(u32, u32, u32, u32, [f64; 3]); 17] = [
    (1, 8, 4096, 2, [2756.4, 1596.6, 1902.0]),
    (1, 8, 4096, 4, [1483.9, 894.2, 1096.9]),
    (1, 8, 4096, 8, [1131.3, 630.6, 821.8]),
    (1, 8, 4096, 16, [933.1, 597.2, 805.5]),
    (1, 2, 4096, 4, [586.9, 456.5, 406.9]),
    (1, 2, 4096, 16, [172.2, 144.3, 132.3]),
    (1, 2, 4096, 32, [144.7, 98.7, 109.2]),
    (2, 2, 4096, 4, [632.6, 464.4, 500.7]),
    (2, 2, 4096, 8, [327.5, 248.7, 270.6]),
    (2, 2, 4096, 16, [210.3, 137.3, 192.4]),
    (2, 2, 4096, 32, [208.2, 132.8, 187.9]),
    (2, 8, 4096, 4, [2093.4, 1138.0, 1966.8]),
    (2, 8, 4096, 8, [1973.3, 1077.4, 1896.7]),
    (2, 8, 4096, 16, [1824.2, 987.1, 1885.7]),
    (1, 8, 128, 16, [105.2, 98.3, 100.9]),
    (2, 2, 128, 16, [23.0, 23.4, 19.0]),
    (2, 2, 1, 16, [18.4, 20.2, 13.4]),
];
/// DeepEP V2's main kernels on one H200, 4096 tokens a rank: ranks, SMs of a rank; microseconds in the order of [`OURS`].
const DEEPEP: [(u32, u32, [f64; 3]); 8] = [
    (8, 2, [3379.0, 1757.0, 4092.0]),
    (8, 4, [1718.0, 908.0, 2056.0]),
    (8, 8, [1058.0, 580.0, 1648.0]),
    (8, 12, [936.0, 522.0, 1504.0]),
    (8, 16, [856.0, 482.0, 1417.0]),
    (2, 16, [179.6, 96.8, 200.7]),
    (2, 32, [128.5, 71.6, 167.4]),
    (2, 64, [103.8, 60.2, 138.9]),
];
/// Its epilogues on the whole device, of one rank.
const EPILOGUES: [(u32, [f64; 3]); 2] = [(8, [171.4, 91.3, 103.6]), (2, [64.5, 34.4, 49.7])];
const OPERATIONS: [&str; 3] = ["dispatch BF16", "dispatch FP8", "combine"];

fn table(out: &mut String, title: &str, header: &[&str], rows: Vec<Vec<String>>) {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    *out += &format!("### {title}\n\n{table}\n\n");
}

fn error(predicted: f64, published: f64) -> String {
    format!("{:+.0} %", (predicted / published - 1.0) * 100.0)
}

fn deepep(
    topology: &Topology,
    hardware: &Hardware,
    workload: &Workload,
    sms: Option<u32>,
) -> epoxide::plan::Result<Plan> {
    let options = PlanOptions::new().with_protocol(Protocol::DeepEpV2);
    let options = match sms {
        Some(sms) => options.with_num_sms(sms),
        None => options,
    };
    plan_with(topology, hardware, workload, &options)
}

fn main_us(phase: &Phase) -> f64 {
    phase.steps[0].seconds * 1e6
}

/// What the planner says of our own kernels.
fn ours(out: &mut String) -> Result<()> {
    let hardware = Hardware::named("h200", None)?;
    let mut rows = Vec::new();
    for (gpus, ranks, tokens, sms, measured) in OURS {
        let topology = Topology::new(ranks, ranks)?.with_ranks_per_gpu(ranks / gpus)?;
        let of = |format| {
            let workload =
                Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens }).with_format(format);
            plan_with(&topology, &hardware, &workload, &PlanOptions::new().with_num_sms(sms))
        };
        let (bf16, fp8) = (of(Bf16)?, of(Fp8)?);
        let phases = [&bf16.dispatch, &fp8.dispatch, &bf16.combine];
        for ((name, phase), measured) in OPERATIONS.into_iter().zip(phases).zip(measured) {
            rows.push(vec![
                name.into(),
                gpus.to_string(),
                ranks.to_string(),
                tokens.to_string(),
                sms.to_string(),
                phase.binding().resource.name().into(),
                format!("{:.0}", phase.seconds * 1e6),
                format!("{measured:.0}"),
                error(phase.seconds * 1e6, measured),
            ]);
        }
    }
    let header = ["ours", "GPUs", "ranks", "tokens", "SMs/rank", "binds", "predicted us", "measured us", "error"];
    table(out, "Our kernels on H200", &header, rows);
    Ok(())
}

/// The model's figures of an SM, from the measured times of [`OURS`] with 4 SMs a rank: bytes over the time that is not latency. Half of
/// what two GPUs with a rank each move stays where it is, which leaves the rest of the time for the link.
fn of_an_sm(out: &mut String) -> Result<()> {
    let hardware = Hardware::named("h200", None)?;
    // Bytes of an SM's loads or stores, and the seconds that they took.
    let of = |gpus: u32, ranks: u32, operation: usize, resource: Resource| -> Result<[f64; 2]> {
        let row = OURS.into_iter().find(|row| (row.0, row.1, row.2, row.3) == (gpus, ranks, 4096, 4));
        let measured = row.context("a row with 4 SMs")?.4[operation] * 1e-6;
        let topology = Topology::new(ranks, ranks)?.with_ranks_per_gpu(ranks / gpus)?;
        let workload = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 4096 })
            .with_format(if operation == 1 { Fp8 } else { Bf16 });
        let plan = plan_with(&topology, &hardware, &workload, &PlanOptions::new().with_num_sms(4))?;
        let step = &if operation == 2 { plan.combine } else { plan.dispatch }.steps[0];
        Ok([step.traffic.mean.of(resource) / 4.0, measured - step.latency])
    };
    let rate = |[bytes, seconds]: [f64; 2]| bytes / seconds;
    let linked = |local: f64, [bytes, seconds]: [f64; 2]| bytes / 2.0 / (seconds - bytes / 2.0 / local);
    let (read, write) = (rate(of(1, 8, 2, Resource::SmRead)?), rate(of(1, 8, 0, Resource::SmWrite)?));
    let rows = [
        ("gpu.sm_read", read, &hardware.gpu.sm_read, "combine, 8 ranks on one GPU"),
        (
            "gpu.sm_read_link",
            linked(read, of(2, 2, 2, Resource::SmRead)?),
            &hardware.gpu.sm_read_link,
            "combine, a rank on each of two GPUs",
        ),
        (
            "gpu.sm_quantize",
            rate(of(1, 2, 1, Resource::SmRead)?),
            &hardware.gpu.sm_quantize,
            "FP8 dispatch, 2 ranks on one GPU",
        ),
        ("gpu.sm_write", write, &hardware.gpu.sm_write, "BF16 dispatch, 8 ranks on one GPU"),
        (
            "gpu.sm_write_link",
            linked(write, of(2, 2, 0, Resource::SmWrite)?),
            &hardware.gpu.sm_write_link,
            "BF16 dispatch, a rank on each of two GPUs",
        ),
    ];
    let rows = rows.map(|(key, derived, figure, from)| {
        let gb = |rate: f64| format!("{:.1}", rate / 1e9);
        vec![key.into(), gb(derived), gb(figure.value), from.into()]
    });
    table(out, "What an SM does, with 4 SMs a rank", &["figure", "derived GB/s", "H200 GB/s", "from"], rows.into());
    Ok(())
}

/// Our kernels beside DeepEP V2's, as measured on one H200 each, not in the same run.
fn side_by_side(out: &mut String) {
    let mut rows = Vec::new();
    for (_, ranks, tokens, sms, ours) in OURS.into_iter().filter(|row| row.0 == 1) {
        let Some((.., main)) = DEEPEP.into_iter().find(|row| tokens == 4096 && (row.0, row.1) == (ranks, sms)) else {
            continue;
        };
        let Some((_, epilogue)) = EPILOGUES.into_iter().find(|row| row.0 == ranks) else { continue };
        for (operation, name) in OPERATIONS.into_iter().enumerate() {
            let all = main[operation] + f64::from(ranks) * epilogue[operation];
            rows.push(vec![
                name.into(),
                ranks.to_string(),
                sms.to_string(),
                format!("{:.0}", main[operation]),
                format!("{all:.0}"),
                format!("{:.0}", ours[operation]),
                format!("{:.2}", ours[operation] / main[operation]),
                format!("{:.2}", ours[operation] / all),
            ]);
        }
    }
    let header = [
        "4096 tokens a rank",
        "ranks",
        "SMs/rank",
        "DeepEP V2 main us",
        "with epilogues us",
        "ours us",
        "of main",
        "of all",
    ];
    table(out, "Our kernels beside DeepEP V2's on one H200", &header, rows);
}

/// DeepEP V2 on one H200, several ranks on it: memory binds, not NVLink.
fn one_h200(out: &mut String) -> Result<()> {
    let hardware = Hardware::named("h200", None)?;
    let mut rows = Vec::new();
    for (ranks, sms, measured) in DEEPEP {
        let topology = Topology::new(ranks, ranks)?.with_ranks_per_gpu(ranks)?;
        let of = |format| {
            deepep(
                &topology,
                &hardware,
                &Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 4096 }).with_format(format),
                Some(sms),
            )
        };
        let (bf16, fp8) = (of(Bf16)?, of(Fp8)?);
        let phases = [&bf16.dispatch, &fp8.dispatch, &bf16.combine];
        for ((name, phase), measured) in OPERATIONS.into_iter().zip(phases).zip(measured) {
            rows.push(vec![
                name.into(),
                ranks.to_string(),
                sms.to_string(),
                phase.binding().resource.name().into(),
                format!("{:.0}", main_us(phase)),
                format!("{measured:.0}"),
                error(main_us(phase), measured),
            ]);
        }
    }
    let header = ["main kernel", "ranks", "SMs/rank", "binds", "predicted us", "measured us", "error"];
    table(out, "DeepEP V2, ranks on one H200, 4096 tokens each", &header, rows);

    let mut rows = Vec::new();
    for (ranks, measured) in EPILOGUES {
        let topology = Topology::new(ranks, ranks)?.with_ranks_per_gpu(ranks)?;
        let of = |format| {
            deepep(
                &topology,
                &hardware,
                &Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 4096 }).with_format(format),
                Some(2),
            )
        };
        let (bf16, fp8) = (of(Bf16)?, of(Fp8)?);
        for (name, phase, measured) in [
            ("copy epilogue BF16", &bf16.dispatch, measured[0]),
            ("copy epilogue FP8", &fp8.dispatch, measured[1]),
            ("reduce epilogue", &bf16.combine, measured[2]),
        ] {
            // All ranks' epilogues share the device: the wall time of all over their number.
            let us = phase.steps[1].seconds * 1e6 / f64::from(ranks);
            let binds = phase.steps[1].resources[0].resource.name();
            rows.push(vec![
                name.into(),
                ranks.to_string(),
                binds.into(),
                format!("{us:.1}"),
                format!("{measured:.1}"),
                error(us, measured),
            ]);
        }
    }
    let header = ["epilogue", "ranks", "binds", "predicted us/rank", "measured us/rank", "error"];
    table(out, "DeepEP V2's epilogues, same runs", &header, rows);
    Ok(())
}

/// Small batches of 2 ranks: latency.
fn latency(out: &mut String) -> Result<()> {
    let hardware = Hardware::named("h200", None)?;
    let topology = Topology::new(2, 2)?.with_ranks_per_gpu(2)?;
    let mut rows = Vec::new();
    // Dispatch in BF16 and in FP8, and combine.
    for (tokens, measured) in
        [(1, [17.4, 17.4, 16.1]), (8, [17.5, 17.7, 16.8]), (32, [17.7, 17.8, 17.8]), (128, [21.6, 18.6, 24.1])]
    {
        let of = |format| {
            deepep(
                &topology,
                &hardware,
                &Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens }).with_format(format),
                Some(16),
            )
        };
        let (bf16, fp8) = (of(Bf16)?, of(Fp8)?);
        let phases = [&bf16.dispatch, &fp8.dispatch, &bf16.combine];
        for ((name, phase), measured) in OPERATIONS.into_iter().zip(phases).zip(measured) {
            let us = phase.seconds * 1e6;
            rows.push(vec![
                name.into(),
                tokens.to_string(),
                format!("{us:.1}"),
                format!("{measured:.1}"),
                error(us, measured),
            ]);
        }
    }
    let header = ["main and epilogue", "tokens", "predicted us", "measured us", "error"];
    table(out, "DeepEP V2, 2 ranks on one H200, 16 SMs each", &header, rows);
    Ok(())
}

/// DeepEP V2's README: 8192 tokens, FP8 dispatch, BF16 combine; logical GB/s.
fn readme(out: &mut String) -> Result<()> {
    let mut rows = Vec::new();
    for (gpu, nic, ranks, sms, published) in [
        ("H100", Some("CX7"), 16, 12, [90.0, 81.0]),
        ("H100", Some("CX7"), 32, 6, [61.0, 61.0]),
        ("H800", Some("CX7"), 16, 12, [90.0, 81.0]),
        ("H800", Some("CX7"), 32, 6, [61.0, 61.0]),
        ("B200", Some("CX7"), 16, 12, [90.0, 91.0]),
        ("B200", None, 8, 64, [726.0, 740.0]),
        ("B200", None, 8, 24, [643.0, 675.0]),
    ] {
        let hardware = Hardware::named(gpu, nic)?;
        let topology = Topology::new(ranks, 8)?;
        let plan = deepep(
            &topology,
            &hardware,
            &Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 8192 }).with_format(Fp8),
            Some(sms),
        )?;
        for (name, phase, published) in
            [("dispatch FP8", &plan.dispatch, published[0]), ("combine", &plan.combine, published[1])]
        {
            let b = &phase.bandwidth;
            let gb = if nic.is_some() { b.scale_out } else { b.scale_up } / 1e9;
            rows.push(vec![
                format!("{gpu} {} {name}", topology.summary()),
                sms.to_string(),
                phase.binding().resource.name().into(),
                format!("{gb:.0}"),
                format!("{published:.0}"),
                error(gb, published),
                format!("{:.0}", if nic.is_some() { b.rdma } else { b.nvlink } / 1e9),
            ]);
        }
    }
    let header = ["", "SMs", "binds", "predicted GB/s", "published GB/s", "error", "of it physical"];
    table(out, "DeepEP V2's README, in its own accounting", &header, rows);
    Ok(())
}

/// Ranks of all simulations together: what takes time.
const SIMULATED_RANKS: usize = 8 + 16 + 64 + 256 + 6 * 64 + 2048;

/// The simulation at scale beside the model of our protocol.
fn scale(out: &mut String) -> Result<()> {
    let hardware = Hardware::named("h100", Some("cx7"))?;
    let calm = Scenario::new(1);
    let mut rows = Vec::new();
    let progress = Progress::new();
    progress.expect(SIMULATED_RANKS);
    let mut run = |ranks: u32, tokens: u32, what: &str, scenario: &Scenario| -> Result<()> {
        let topology = Topology::new(ranks, 8)?;
        let workload =
            Workload::new(LayerSizes { experts: if ranks > 256 { 2048 } else { 256 }, top_k: 8, hidden: 7168, tokens })
                .with_format(Fp8);
        let start = Instant::now();
        let shown = Cell::new(0);
        let report = simulate_watched(&topology, &hardware, &workload, scenario, &|what, share| {
            progress.step(what);
            let ranks = (share * f64::from(ranks)) as usize;
            progress.rows(ranks.saturating_sub(shown.replace(ranks)));
        })?;
        let host = start.elapsed().as_secs_f64();
        for (name, phase) in [("dispatch", report.dispatch), ("combine", report.combine)] {
            rows.push(vec![
                format!("{ranks} ranks x {tokens}, {what}, {name}"),
                format!("{:.0}", phase.model * 1e6),
                format!("{:.0}", phase.seconds * 1e6),
                error(phase.model, phase.seconds),
                format!("{:+.0}", phase.imbalance * 1e6),
                format!("{:+.0}", phase.queueing * 1e6),
                format!("{:+.0}", phase.disturbance * 1e6),
                format!("{} of {}", phase.resource.name(), phase.rank),
                format!("{host:.1}"),
            ]);
        }
        Ok(())
    };
    for ranks in [8, 16, 64, 256] {
        run(ranks, 4096, "uniform", &calm)?;
    }
    run(64, 128, "uniform", &calm)?;
    run(64, 4096, "all to rank 0 first", &calm.clone().with_order(SendOrder::InTurn))?;
    run(64, 4096, "Zipf 0.8", &calm.clone().with_draw(Draw::Zipf { exponent: 0.8 }))?;
    run(64, 4096, "one hot expert", &calm.clone().with_draw(Draw::OneHot { expert: 0 }))?;
    run(64, 4096, "entries within 200 us", &calm.clone().with_skew(200e-6))?;
    run(64, 4096, "rank 5 at half speed", &calm.clone().with_straggler(5, 2.0))?;
    run(2048, 4096, "uniform", &calm)?;
    let header = [
        "H100, CX7, FP8, top-8",
        "model us",
        "simulated us",
        "model's error",
        "uneven us",
        "queueing us",
        "late us",
        "busiest",
        "host s",
    ];
    table(out, "The simulation at scale beside the model, our protocol", &header, rows);
    Ok(())
}

/// A buffer of ours beside DeepEP V2's.
fn bytes(out: &mut String) -> Result<()> {
    let hardware = Hardware::named("h100", Some("cx7"))?;
    let mut rows = Vec::new();
    for (tokens, format, ranks) in
        [(4096, Bf16, 8), (8192, Fp8, 8), (8192, Fp8, 16), (8192, Fp8, 32), (8192, Fp8, 64), (128, Fp8, 8)]
    {
        let topology = Topology::new(ranks, 8)?;
        let workload = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens }).with_format(format);
        let ours = plan(&topology, &hardware, &workload)?.bytes;
        let theirs = deepep(&topology, &hardware, &workload, None)?.bytes;
        let mib = |bytes: u64| format!("{:.0}", bytes as f64 / f64::from(1 << 20));
        let name = if format == WireFormat::Fp8 { "FP8" } else { "BF16" };
        rows.push(vec![
            format!("{tokens} tokens, {name}, {}", topology.summary()),
            mib(theirs.total()),
            mib(ours.total()),
            format!("{:?}", ours.basis),
        ]);
    }
    table(
        out,
        "Bytes of a buffer, MiB (DeepEP V2 with its 14 MiB of workspace)",
        &["hidden 7168, top-8, 256 experts", "DeepEP V2", "ours", "ours is"],
        rows,
    );
    Ok(())
}
