//! What is printed: lines at the end of a text.
use std::collections::BTreeSet;
use std::fmt::{Display, Write};
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use epoxide::{Config, Layout, bf16};

use crate::input::Input;
use crate::layer::{Clock, Outcome};
use crate::options::{Format, Options};
use crate::plan::Plan;
use crate::reference::Accuracy;
use crate::tolerance::{Rounded, SLOPE, TAU};

/// Adds a line.
fn line(out: &mut String, text: impl Display) {
    // A String takes everything.
    let _ = writeln!(out, "{text}");
}

/// Prints what is about to run.
pub fn shape(out: &mut String, options: &Options, input: &Input, config: &Config) {
    let format = match options.format {
        Format::Bf16 => "BF16",
        Format::Fp8 => "FP8 (e4m3, one scale for 128 elements)",
        Format::Fp8Ue8m0 => "FP8 (e4m3, one power of two for 128 elements)",
        Format::Mxfp8 => "MXFP8 (e4m3, one power of two for 32 elements)",
    };
    line(out, format_args!("input   {}", input.source));
    line(
        out,
        format_args!(
            "layer   {} tokens on {} ranks, hidden {}, {} experts of width {}, top-{}, {format} on the wire, seed {}",
            input.tokens,
            options.ranks(),
            input.hidden,
            input.experts,
            options.expert_width,
            options.top_k,
            options.seed
        ),
    );
    let layout = config.layout_of_rows(options.ranks());
    let lie = match layout {
        Layout::ExpertContiguous { alignment } => format!("those of an expert from a multiple of {alignment} on"),
        Layout::Slab { capacity } => format!("those of an expert in its slab of {capacity} rows"),
        _ => String::new(),
    };
    if layout.is_by_expert() {
        line(out, format_args!("        a row for each token and expert, {lie}"));
    }
    if let Some(rows) = config.capacity {
        line(out, format_args!("        room for {rows} rows on each rank"));
    }
}

/// Prints where it ran: a line for each device.
pub fn device(out: &mut String, outcomes: &[Outcome]) {
    let Some(first) = outcomes.first() else { return };
    let devices: BTreeSet<&str> = outcomes.iter().map(|outcome| outcome.device.as_str()).collect();
    for device in devices {
        line(out, format_args!("device  {device}"));
    }
    line(
        out,
        format_args!(
            "        {} SMs for an operation on each rank, buffers of {} a rank",
            first.num_sms,
            bytes(first.buffer_bytes as f64)
        ),
    );
}

/// Prints every rank's share.
pub fn ranks(out: &mut String, plan: &Plan, top_k: usize, row_bytes: u64) {
    let mut table =
        table(&["rank", "tokens", "selections", "rows sent", "rows received", "bytes received", "expert rows"]);
    for (rank, received) in plan.received.iter().enumerate() {
        let tokens = plan.tokens[rank].len();
        table.add_row([
            rank.to_string(),
            tokens.to_string(),
            (tokens * top_k).to_string(),
            plan.sent[rank].to_string(),
            received.filled().to_string(),
            bytes((received.filled() as u64 * row_bytes) as f64),
            received.selections().to_string(),
        ]);
    }
    line(out, format_args!("\n{table}"));
    line(
        out,
        format_args!(
            "A row received is {} on the wire; a row a rank sends to itself is counted too. An expert row is one row for one expert.",
            bytes(row_bytes as f64)
        ),
    );
    if plan.by_expert.is_some() {
        let padding = plan.rows() - plan.filled();
        line(
            out,
            format_args!(
                "One row of a token is sent to a rank, which makes those for its other experts; {padding} rows that pad are not counted."
            ),
        );
    }
    let by_expert: Vec<u64> = plan.received.iter().flat_map(|r| r.by_expert.iter().map(|&n| u64::from(n))).collect();
    let rows: Vec<u64> = plan.received.iter().map(|r| r.filled() as u64).collect();
    let selections: Vec<u64> = plan.received.iter().map(|r| r.selections()).collect();
    line(
        out,
        format_args!(
            "imbalance, largest / mean: rows of a rank {:.2}, expert rows of a rank {:.2}, of an expert {:.2}",
            imbalance(&rows),
            imbalance(&selections),
            imbalance(&by_expert)
        ),
    );
}

/// Prints where the time went: what came before the ranks, what the ranks did (the slowest counts), and what came after.
pub fn times(out: &mut String, before: &Clock, outcomes: &[Outcome], after: &Clock) {
    let slowest = outcomes.first().map_or(&[][..], |o| &o.clock.steps).iter().enumerate().map(|(i, (step, _))| {
        let times = outcomes.iter().filter_map(|o| o.clock.steps.get(i)).map(|(_, time)| *time);
        (*step, times.max().unwrap_or_default())
    });
    let mut steps: Vec<(&str, Duration)> = Vec::new();
    for (step, time) in before.steps.iter().copied().chain(slowest).chain(after.steps.iter().copied()) {
        match steps.iter_mut().find(|(name, _)| *name == step) {
            Some((_, total)) => *total += time,
            None => steps.push((step, time)),
        }
    }
    let total: Duration = steps.iter().map(|(_, time)| *time).sum();
    let mut table = table(&["step", "time", "share"]);
    for (step, time) in steps.iter().chain([&("all", total)]) {
        let share = 100.0 * time.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        table.add_row([(*step).to_owned(), seconds(*time), format!("{share:.0} %")]);
    }
    line(out, format_args!("\n{table}"));
}

/// Prints bandwidths, for a GPU.
pub fn bandwidths(
    out: &mut String,
    options: &Options,
    outcomes: &[Outcome],
    plan: &Plan,
    wire_row_bytes: u64,
    bf16_row_bytes: u64,
) {
    let Some(copy) = outcomes.iter().find_map(|o| o.copy) else { return };
    let gpus = options.gpu_of_ranks().into_iter().collect::<BTreeSet<_>>().len();
    let (ranks, num_sms) = (outcomes.len() as f64, outcomes.first().map_or(1, |o| o.num_sms));
    let mut table = table(&[
        "operation",
        "time",
        "bytes a rank",
        "GB/s a rank",
        "GB/s an SM",
        "GB/s all ranks",
        "memory GB/s a GPU",
        "of a copy",
    ]);
    let dispatched = slowest(outcomes, |pass| pass.0);
    let combined = slowest(outcomes, |pass| pass.1);
    // What is in the memory once whatever the kernels do: a token's row that dispatch reads or combine writes.
    let tokens: usize = plan.tokens.iter().map(|tokens| tokens.len()).sum();
    let once = tokens as f64 * bf16_row_bytes as f64;
    // The row that came to a rank with several experts of its token is read again, and their sum is written and read.
    let (again, sums) =
        (plan.several as f64 * wire_row_bytes as f64, 2.0 * plan.several as f64 * bf16_row_bytes as f64);
    for (name, ms, row_bytes, more) in
        [("dispatch", dispatched, wire_row_bytes, again), ("combine", combined, bf16_row_bytes, sums)]
    {
        let moved = plan.filled() as f64 * row_bytes as f64;
        let (rate, memory) = (moved / (ms / 1e3), (moved + once + more) / gpus as f64 / (ms / 1e3));
        table.add_row([
            name.to_owned(),
            format!("{ms:.3} ms"),
            bytes(moved / ranks),
            format!("{:.1}", rate / ranks / 1e9),
            format!("{:.1}", rate / ranks / f64::from(num_sms) / 1e9),
            format!("{:.0}", rate / 1e9),
            format!("{:.0}", memory / 1e9),
            format!("{:.0} %", 100.0 * memory / copy),
        ]);
    }
    line(out, format_args!("\n{table}"));
    line(
        out,
        format_args!(
            "bytes: rows received (dispatch) or summed (combine) times a row's bytes; memory: those and each token's own row."
        ),
    );
    if plan.by_expert.is_some() {
        line(
            out,
            format_args!(
                "memory counts besides, for each token with several rows on another rank, the one that came, read again, and their sum, written and read."
            ),
        );
    }
    line(
        out,
        format_args!("A device copy in this run, on all SMs of one GPU: {:.0} GB/s read and written.", copy / 1e9),
    );
    line(out, format_args!("times: the slowest rank of a pass, the median of {} passes", passes(outcomes)));
    if gpus == 1 {
        line(
            out,
            format_args!(
                "Several ranks on one GPU measure the efficiency of the kernels and not NVLink, which these rows never crossed."
            ),
        );
    }
}

/// Prints how far the outputs are from the reference, and how far they may be.
pub fn accuracy(out: &mut String, accuracy: &Accuracy, Rounded { scaling, by_expert }: Rounded) {
    let mut table = table(&["|y - reference| / |reference| of a row", "mean", "largest"]);
    let number = |value: f64| format!("{value:.2e}");
    table.add_row(["error".to_owned(), number(accuracy.mean_error), number(accuracy.max_error)]);
    table.add_row([
        "tolerance".to_owned(),
        number(accuracy.mean_tolerance),
        format!("{} (smallest)", number(accuracy.min_tolerance)),
    ]);
    line(out, format_args!("\n{table}"));
    if let Some((token, error, tolerance)) = accuracy.worst {
        line(
            out,
            format_args!(
                "{} rows compared; worst: token {token}, error {error:.2e}, {:.0} % of its tolerance {tolerance:.2e}",
                accuracy.rows,
                100.0 * accuracy.worst_ratio()
            ),
        );
    }
    if accuracy.unresolved > 0 {
        line(
            out,
            format_args!(
                "{} rows are so small that their tolerance is as large as they are: of these the reference says nothing",
                accuracy.unresolved
            ),
        );
    }
    let quantised = if scaling.is_some() { "at most (2^-4 + 2^-8) |x| + 2^-10 |scales|, or |x|, + " } else { "" };
    line(out, format_args!(
        "\
tolerance of a row = (1 + 4u) (D (L U |dx| + u |h|) + u ({}sum of g|o| + |y|)) and terms of f32 and of the smallest steps; |.| is the 2-norm of a row
  u = 2^-8    BF16's unit roundoff: the activations h, {}, the result y
  |dx|        {quantised}2H 2^-24 |x|: {}the f32 sums
  U, D        what random weights make of it: sigma_u sqrt(W sum g^2 + 2 sqrt(W s sum g^4) + 2 s max g^2) and
              sigma_d (sqrt H + {TAU}), with s = {}, exceeded with a probability of about 1e-14; L = {SLOPE}, the slope of silu
  derived in examples/moe_layer/tolerance.rs",
        if by_expert { "2 " } else { "" },
        if by_expert { "each row for combine, each rank's sum of them" } else { "each rank's row for combine" },
        if scaling.is_some() { "e4m3's unit roundoff 2^-4 and BF16's after it, " } else { "" },
        TAU * TAU / 2.0,
    ));
}

/// Prints a number that two runs share if their outputs are the same bits: FNV-1a of them.
pub fn digest(out: &mut String, y: &[bf16]) {
    let bytes = y.iter().flat_map(|value| value.to_bits().to_le_bytes());
    let digest =
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    line(out, format_args!("outputs' digest {digest:016x}: another run of this layer with the same bits has the same"));
}

/// Bytes of a row in dispatch: its elements, and in FP8 its scales.
pub fn wire_row_bytes(options: &Options, hidden: usize) -> u64 {
    let bytes = match options.format {
        Format::Bf16 => 2 * hidden,
        Format::Fp8 => hidden + 4 * hidden.div_ceil(128),
        Format::Fp8Ue8m0 => hidden + 4 * hidden.div_ceil(512),
        Format::Mxfp8 => hidden + 4 * hidden.div_ceil(128),
    };
    bytes as u64
}

/// The median over passes of the slowest rank's time.
fn slowest(outcomes: &[Outcome], time: impl Fn(&(f64, f64)) -> f64) -> f64 {
    let of_pass = |i: usize| outcomes.iter().filter_map(|o| o.passes.get(i)).map(&time).fold(0.0, f64::max);
    let mut times: Vec<f64> = (0..passes(outcomes)).map(of_pass).collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// How many passes were timed.
fn passes(outcomes: &[Outcome]) -> usize {
    outcomes.iter().map(|o| o.passes.len()).min().unwrap_or(0)
}

fn imbalance(values: &[u64]) -> f64 {
    let (largest, sum) = (values.iter().max().copied().unwrap_or(0), values.iter().sum::<u64>());
    if sum == 0 { 1.0 } else { largest as f64 * values.len() as f64 / sum as f64 }
}

/// An empty table with right-aligned columns but for the first.
fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn bytes(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{:.2} GB", v / 1e9),
        v if v >= 1e6 => format!("{:.2} MB", v / 1e6),
        v if v >= 1e4 => format!("{:.1} kB", v / 1e3),
        v => format!("{v:.0} B"),
    }
}

fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s >= 10.0 => format!("{s:.1} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s => format!("{:.1} ms", s * 1e3),
    }
}
