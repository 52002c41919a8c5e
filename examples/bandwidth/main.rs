//! Measures dispatch and combine of several ranks, over the number of SMs, beside plain copies in the same run.
//!
//! Every row of the table is the median over repetitions of the slowest rank's time, from events around each operation.
//! GB/s count each received row once (its data and scales), as its rank received it: one for each token and rank, or with `--layout expand`
//! and `--layout slab` one for each token and expert, as with `rank-major-expand` and `rank-major-slab`, which lay rows of fixed places so where they came. "of copy" compares with a plain kernel that moves the same bytes, read and written, through the memory of
//! an otherwise idle GPU. Several ranks on one GPU share
//! its memory: their figures measure kernels and protocol, not NVLink. With several GPUs "link" counts what came into a GPU from
//! the others (one row for each token and rank, in every layout), and compares it with a plain kernel that does nothing else while all GPUs
//! do the same.
//!
//! Every case is verified before and after it is measured: its experts give back what they are given, and what is combined must be that
//! many times each row, bit for bit.
//!
//! `--report DIR` measures much more, and writes it to files ([`report`]).
#[path = "../../cli/src/buffer_layout.rs"]
mod buffer_layout;
mod ceiling;
mod counts;
mod halves;
mod identity;
mod measure;
mod measuring;
mod options;
#[path = "../output.rs"]
mod output;
mod percentiles;
mod processes;
#[path = "../../cli/src/progress.rs"]
mod progress;
#[path = "../ranks_on_gpus.rs"]
mod ranks_on_gpus;
mod report;
mod routes;
mod sizes;
mod start;

#[cfg(test)]
#[path = "../../tests/support/command_line.rs"]
mod command_line;
#[cfg(test)]
mod report_runs;
#[cfg(test)]
mod runs;
#[cfg(test)]
#[path = "../../tests/support/small.rs"]
mod small;

use std::ffi::OsString;
use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, Table, presets};
use epoxide::processes::Place;

use crate::buffer_layout::BufferLayout;
use crate::measure::{Operation, Ranks, Work};
use crate::options::{Case, Device, Options};
use crate::progress::Progress;

fn main() -> ExitCode {
    program(std::env::args_os()).into()
}

/// The program; its exit code.
fn program(args: impl IntoIterator<Item = OsString>) -> u8 {
    let mut options = match output::options::<Options>(args) {
        Ok(options) => options,
        Err(code) => return code,
    };
    if let Some(folder) = &options.render {
        return report::render(folder);
    }
    let place = match processes::place(&options) {
        Ok(place) => place,
        Err(error) => return output::fail(error, output::BAD_INPUT),
    };
    if let Err(error) = options.settle(place.as_ref().map(Place::size)) {
        return output::fail(&error, output::code_of(&error));
    }
    if let Err(error) = options.check() {
        return output::fail(format_args!("{error:#}"), output::BAD_INPUT);
    }
    if let Some(folder) = &options.report {
        return match place {
            None => report::make(&options, folder),
            Some(_) => {
                output::fail("--report: its ranks are threads, so it is no process of a launcher's", output::BAD_INPUT)
            }
        };
    }
    let ran = processes::ranks(place.as_ref(), &mut options).and_then(|ranks| Ok((run(&options, &ranks)?, ranks)));
    match ran {
        // The first rank has said it.
        Ok((_, ranks)) if ranks.process().is_some_and(|rank| rank > 0) => 0,
        Ok((text, _)) => output::end(&text, 0),
        Err(error) => {
            let code = error.downcast_ref().map_or(output::FAILED, output::code_of);
            output::fail(format_args!("{error:#}"), code)
        }
    }
}

/// Measures everything, and says what was found.
fn run(options: &Options, ranks: &Ranks) -> Result<String> {
    let gpus = options.gpu_of_ranks();
    let linked = options.device == Device::Cuda && gpus.iter().any(|gpu| *gpu != gpus[0]);
    // A table of one layout, the usual one, does not say so.
    let layouts = options.layout != [BufferLayout::Compact];
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(header(
        linked,
        layouts,
        options.percentiles,
        options.counts_mirror,
        options.halves,
    ));
    let progress = Progress::new();
    // Rows are made, and then go through each of their measurements.
    let measurements = options.format.len() * options.layout.len() * options.sms.len();
    let rows = |tokens: u32| tokens as usize * options.ranks as usize;
    progress.expect(options.tokens.iter().map(|&tokens| rows(tokens) * (1 + measurements)).sum());
    progress.step("try all buffers");
    measure::rehearse(options, ranks)?;
    let mut work: Option<(u32, Vec<Work>)> = None;
    let mut last = None;
    for case in options.cases() {
        let Case { tokens, format, layout, sms } = case;
        let work = match work.take_if(|(of, _)| *of == tokens) {
            Some(made) => work.insert(made),
            None => {
                progress.step("make rows");
                work.insert((tokens, measure::work(options, ranks, tokens, &progress)?))
            }
        };
        progress.step("measure");
        let measured = measure::run(options, ranks, &work.1, case)?;
        progress.rows(rows(tokens));
        let mut row = vec![tokens.to_string(), name(&format)];
        row.extend(layouts.then(|| name(&layout)));
        row.push(sms.to_string());
        row.extend(cells(&measured.dispatch, sms, linked, options.percentiles));
        row.extend(cells(&measured.combine, sms, linked, options.percentiles));
        row.extend(measured.told.iter().flatten().map(|seconds| format!("{:.1}", seconds * 1e6)));
        row.extend(measured.halves.iter().flat_map(of_halves));
        table.add_row(row.into_iter().map(|text| Cell::new(text).set_alignment(CellAlignment::Right)));
        last = Some(measured);
    }
    drop(progress);
    let mut out = String::new();
    let Some(last) = last else { return Ok(out) };
    let room = options.capacity.map_or(String::new(), |rows| format!(", room for {rows} rows"));
    let spread = if linked { format!(" on GPUs {:?}", options.gpus()) } else { String::new() };
    let apart = if ranks.process().is_some() { ", each a process" } else { "" };
    writeln!(
        out,
        "{}; {} ranks{spread}{apart}, hidden {}, top-{} of {}{room}, routing of seed {}, median of {}",
        last.device, options.ranks, options.hidden, options.top_k, options.experts, options.seed, options.repeat[0]
    )?;
    writeln!(out, "{table}")?;
    writeln!(
        out,
        "of copy: time of a copy of the same bytes through one GPU's memory ({:.0} GB/s, read and written) / time of the operation",
        last.copy / 1e9
    )?;
    if options.percentiles {
        writeln!(out, "p95, p99, max: us that 95 and 99 of 100 repetitions do not take longer than, and the longest")?;
    }
    if options.replay {
        writeln!(out, "dispatch: of new rows by the routing of an old one, with no selections and no counts")?;
    }
    if let Some(most) = options.max_tokens {
        writeln!(out, "buffers have room for {most} tokens of a rank")?;
    }
    if options.scale_columns {
        writeln!(out, "dispatch: with the kernel behind it that lays scales by column")?;
    }
    if options.counts_mirror {
        writeln!(
            out,
            "told: from the call of a dispatch until its host thread knows what it brings; done: until the stream has passed it. Both by the host's clock, each dispatch alone, so with the launch"
        )?;
    }
    if options.halves {
        writeln!(
            out,
            "send, receive: of a dispatch, then of a combine; receiving a dispatch holds one SM, sending a combine too. beside: how many times as long a kernel on all SMs, which quantises rows, takes while such operations follow one another; load: one that multiplies, on the SMs that operations leave; under load: the four halves beside that one"
        )?;
    }
    let padded = [
        (
            BufferLayout::Expand,
            "expand",
            format!("what pads an expert's rows to a multiple of {}", options.alignment()),
        ),
        (BufferLayout::Slab, "slab", "what an expert leaves of its slab".to_owned()),
    ];
    for (_, layout, rest) in padded.iter().filter(|(layout, ..)| options.has(*layout)) {
        writeln!(
            out,
            "{layout}: a row for each token and expert. GB/s count all of them, and nothing of {rest}. Of a token one row crosses to a rank, which reads it again to copy it on, and writes and reads the sum of several: of copy counts that too"
        )?;
    }
    if options.has(BufferLayout::RankMajorExpand) || options.has(BufferLayout::RankMajorSlab) {
        writeln!(
            out,
            "rank-major-expand, rank-major-slab: rows in fixed places, one for each token and rank, that the receiver lays by expert; GB/s count a row for each token and expert. The times of dispatch are with that, and those of combine with the sum of what a token's rows became"
        )?;
    }
    if linked && ranks.process().is_some() {
        writeln!(
            out,
            "link: GB/s into a GPU from the others; what a plain kernel moves, ranks that are processes do not measure"
        )?;
    } else if linked {
        writeln!(
            out,
            "link: GB/s into a GPU from the others; of link: that over what a plain kernel moves while all GPUs do so: {:.1} GB/s written to a peer (dispatch), {:.1} GB/s read from one (combine)",
            last.dispatch.link_copy / 1e9,
            last.combine.link_copy / 1e9
        )?;
    }
    Ok(out)
}

/// What the options call it.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn header(linked: bool, layouts: bool, percentiles: bool, told: bool, halves: bool) -> Vec<&'static str> {
    let mut header = vec!["tokens", "format"];
    header.extend(layouts.then_some("layout"));
    header.push("SMs");
    for operation in ["dispatch us", "combine us"] {
        header.push(operation);
        if percentiles {
            header.extend(["p95", "p99", "max"]);
        }
        header.extend(["GB/s/rank", "GB/s/SM", "of copy"]);
        if linked {
            header.extend(["link", "of link"]);
        }
    }
    if told {
        header.extend(["told us", "done us"]);
    }
    if halves {
        header.extend(["send us", "receive us", "combine send us", "receive us", "halves under load us"]);
        header.extend(["beside whole", "beside halves", "load whole", "load halves"]);
    }
    header
}

/// The times of halves, and how much longer the kernels beside took than alone.
fn of_halves(seconds: &[f64; 14]) -> impl Iterator<Item = String> {
    let us: Vec<String> = seconds[..8].iter().map(|seconds| format!("{:.1}", seconds * 1e6)).collect();
    let (alone, loaded) = us.split_at(4);
    let longer = |&[alone, whole, halves]: &[f64; 3]| [whole, halves].map(|beside| format!("{:.2}", beside / alone));
    let longer: Vec<String> = seconds[8..].as_chunks::<3>().0.iter().flat_map(longer).collect();
    alone.iter().cloned().chain([loaded.join(" / ")]).chain(longer).collect::<Vec<_>>().into_iter()
}

fn cells(operation: &Operation, sms: u32, linked: bool, percentiles: bool) -> Vec<String> {
    let seconds = operation.seconds.median;
    let rate = operation.received / seconds / 1e9;
    let us = |seconds: f64| format!("{:.1}", seconds * 1e6);
    let mut cells = vec![us(seconds)];
    if percentiles {
        cells.extend([operation.seconds.p95, operation.seconds.p99, operation.seconds.max].map(us));
    }
    cells.extend([
        format!("{rate:.1}"),
        format!("{:.1}", rate / f64::from(sms)),
        format!("{:.2}", operation.copy_seconds / seconds),
    ]);
    if linked {
        let link = operation.linked / seconds;
        let of_link = link / operation.link_copy;
        let of_link = if of_link.is_finite() { format!("{of_link:.2}") } else { "-".to_owned() };
        cells.extend([format!("{:.1}", link / 1e9), of_link]);
    }
    cells
}
