//! Measures dispatch and combine of several ranks, over the number of SMs, beside plain copies in the same run.
//!
//! Every row of the table is the median over repetitions of the slowest rank's time, from events around each operation.
//! GB/s count each received row once (its data and scales), as its rank received it. "of copy" compares with a plain kernel
//! that moves the same bytes, read and written, through the memory of an otherwise idle GPU. Several ranks on one GPU share
//! its memory: their figures measure kernels and protocol, not NVLink. With several GPUs "link" counts what came into a GPU from
//! the others, and compares it with a plain kernel that does nothing else while all GPUs do the same.
mod ceiling;
mod measure;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use comfy_table::{Cell, CellAlignment, Table, presets};
use epoxide::WireFormat;

use crate::measure::Operation;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Device {
    /// The simulated GPU: the times are the host's, and say nothing of a GPU.
    Sim,
    /// NVIDIA GPUs.
    Cuda,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Bf16,
    Fp8,
}

impl From<Format> for WireFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Bf16 => Self::Bf16,
            Format::Fp8 => Self::Fp8,
        }
    }
}

/// Measures dispatch and combine over the number of SMs, beside plain copies in the same run.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Where to run.
    #[arg(long, value_enum, default_value_t = Device::Cuda)]
    device: Device,
    /// NVIDIA GPUs by number, for `--device cuda`; ranks are dealt out to them in turn, and those of one GPU share it.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [0])]
    gpus: Vec<u32>,
    /// Ranks in all.
    #[arg(long, default_value_t = 8)]
    ranks: u32,
    /// Tokens of every rank; a list is a sweep.
    #[arg(long, value_delimiter = ',', default_values_t = [4096])]
    tokens: Vec<u32>,
    /// Elements of a row.
    #[arg(long, default_value_t = 7168)]
    hidden: u32,
    /// Experts in all.
    #[arg(long, default_value_t = 256)]
    experts: u32,
    /// Experts of a token, drawn uniformly without repetition.
    #[arg(long, default_value_t = 8)]
    top_k: u32,
    /// Blocks of an operation on every rank; a list is a sweep.
    #[arg(long, value_delimiter = ',', default_values_t = [2, 4, 8, 16])]
    sms: Vec<u32>,
    /// Formats on the wire; a list is a sweep.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Format::Bf16, Format::Fp8])]
    format: Vec<Format>,
    /// Repetitions that are timed, after three that are not.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repeat: u32,
    /// Seed of the routing.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Options {
    /// The GPU of every rank. A simulated rank has one of its own.
    fn gpu_of_ranks(&self) -> Vec<u32> {
        match self.device {
            Device::Sim => (0..self.ranks).collect(),
            Device::Cuda => self.gpus.iter().copied().cycle().take(self.ranks as usize).collect(),
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let gpus = options.gpu_of_ranks();
    let linked = options.device == Device::Cuda && gpus.iter().any(|gpu| *gpu != gpus[0]);
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(header(linked));
    let mut last = None;
    for &tokens in &options.tokens {
        for &format in &options.format {
            for &sms in &options.sms {
                let measured = measure::run(&options, tokens, format.into(), sms)?;
                let start = [tokens.to_string(), format!("{format:?}").to_lowercase(), sms.to_string()];
                let cells = start.into_iter().chain(cells(&measured.dispatch, sms, linked));
                let cells = cells.chain(self::cells(&measured.combine, sms, linked));
                table.add_row(cells.map(|text| Cell::new(text).set_alignment(CellAlignment::Right)));
                last = Some(measured);
            }
        }
    }
    let Some(last) = last else { return Ok(()) };
    let spread = if linked { format!(" on GPUs {:?}", options.gpus) } else { String::new() };
    println!(
        "{}; {} ranks{spread}, hidden {}, top-{} of {}",
        last.device, options.ranks, options.hidden, options.top_k, options.experts
    );
    println!("{table}");
    println!(
        "of copy: time of a copy of the same bytes through one GPU's memory ({:.0} GB/s, read and written) / time of the operation",
        last.copy / 1e9
    );
    if linked {
        println!(
            "link: GB/s into a GPU from the others; of link: that over what a plain kernel moves while all GPUs do so: {:.1} GB/s written to a peer (dispatch), {:.1} GB/s read from one (combine)",
            last.dispatch.link_copy / 1e9,
            last.combine.link_copy / 1e9
        );
    }
    Ok(())
}

fn header(linked: bool) -> Vec<&'static str> {
    let mut header = vec!["tokens", "format", "SMs"];
    for operation in ["dispatch us", "combine us"] {
        header.extend([operation, "GB/s/rank", "GB/s/SM", "of copy"]);
        if linked {
            header.extend(["link", "of link"]);
        }
    }
    header
}

fn cells(operation: &Operation, sms: u32, linked: bool) -> Vec<String> {
    let rate = operation.received / operation.seconds / 1e9;
    let mut cells = vec![
        format!("{:.1}", operation.seconds * 1e6),
        format!("{rate:.1}"),
        format!("{:.1}", rate / f64::from(sms)),
        format!("{:.2}", operation.copy_seconds / operation.seconds),
    ];
    if linked {
        let link = operation.linked / operation.seconds;
        cells.extend([format!("{:.1}", link / 1e9), format!("{:.2}", link / operation.link_copy)]);
    }
    cells
}
