//! A decode loop: every step is the dispatch and combine of all layers of a model, for a few tokens, in one graph.
//!
//! ```text
//! cargo run --release --example decode         # on GPU 0 if there is one, else on the simulated GPU
//! cargo run --release --example decode -- -h   # everything else
//! ```
//!
//! [`step`] is what to copy from. Each step has another routing, which is changed in place; the sums are compared with plain code bit for bit. Then
//! it is measured what a layer takes, by a graph and by calls, what the pair of operations takes alone (a graph of all layers without experts, over
//! their number), and what a call pair costs the host.
#[path = "../output.rs"]
mod output;
#[path = "../ranks_on_gpus.rs"]
mod ranks_on_gpus;
mod step;
mod times;

#[cfg(test)]
#[path = "../../tests/support/command_line.rs"]
mod command_line;
#[cfg(test)]
mod runs;
#[cfg(test)]
#[path = "../../tests/support/small.rs"]
mod small;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Error, Result};
use clap::{Parser, ValueEnum};
use epoxide::{Layout, LocalGroup, Mode, WireFormat};

use crate::times::Times;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Device {
    /// The simulated GPU: the times are the host's, and say nothing of a GPU.
    Sim,
    /// NVIDIA GPUs.
    Cuda,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Bf16,
    /// e4m3, quantised by dispatch. Sums are not compared: no experts here read e4m3.
    Fp8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Rows {
    /// In fixed places, by source rank and token: the low-latency layout, in which rows leave before anybody has counted them.
    RankMajor,
    /// Behind one another: it takes no more memory than rows come.
    Compact,
}

impl Rows {
    fn layout(self) -> Layout {
        match self {
            Self::RankMajor => Layout::RankMajor { alignment: 1 },
            Self::Compact => Layout::Compact,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Experts {
    /// They give every row back as it is: a kernel that copies.
    Copy,
    /// None: what is summed is what lies there, and is not compared. A layer is then the pair alone.
    None,
}

const AFTER_HELP: &str = "Exit codes: 0 measured, 1 a run that failed or sums that are wrong, 2 a bad option.";

/// Runs a decode loop in graphs, and prints percentiles of what a layer and its pair of dispatch and combine take.
#[derive(Clone, Debug, Parser)]
#[command(name = "decode", after_help = AFTER_HELP)]
struct Options {
    /// Where to run [default: cuda if this process has a GPU, else sim]
    #[arg(long, value_enum)]
    device: Option<Device>,
    /// NVIDIA GPUs by number; ranks are dealt out to them in turn, and those of one GPU share it [default: 0]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    gpus: Option<Vec<u32>>,
    /// Ranks in all, 1 to 64
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    ranks: u32,
    /// Tokens of each rank; a list is a sweep [default: 1,8,32,128; simulated 1,8]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=4096))]
    tokens: Option<Vec<u32>>,
    /// Layers of the model, each a dispatch and a combine, 1 to 1000 [default: 75; simulated 4]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    layers: Option<u32>,
    /// Steps that are timed, after three that are not, 1 to 100000 [default: 100; simulated 5]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: Option<u32>,
    /// Elements of a row
    #[arg(long, default_value_t = 7168)]
    hidden: u32,
    /// Experts in all
    #[arg(long, default_value_t = 256)]
    experts: u32,
    /// Experts of a token
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=32))]
    top_k: u32,
    /// Blocks of an operation on every rank; a list is a sweep
    #[arg(long, value_delimiter = ',', default_values_t = [8], value_parser = clap::value_parser!(u32).range(1..))]
    sms: Vec<u32>,
    /// How received rows lie; a list is a sweep
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Rows::RankMajor])]
    layout: Vec<Rows>,
    /// Formats on the wire; a list is a sweep
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Format::Bf16])]
    format: Vec<Format>,
    /// What experts do
    #[arg(long, value_enum, default_value_t = Experts::Copy)]
    work: Experts,
}

/// What is taken where nothing is said.
struct Usual {
    tokens: &'static [u32],
    layers: u32,
    steps: u32,
}

const ON_GPUS: Usual = Usual { tokens: &[1, 8, 32, 128], layers: 75, steps: 100 };
/// A step of many layers takes a simulated GPU seconds, and the times say nothing.
const SIMULATED: Usual = Usual { tokens: &[1, 8], layers: 4, steps: 5 };

/// A row of the table.
#[derive(Clone, Copy, Debug)]
struct Case {
    ranks: u32,
    tokens: u32,
    layers: u32,
    steps: u32,
    hidden: u32,
    experts: u32,
    top_k: u32,
    sms: u32,
    layout: Layout,
    format: WireFormat,
    copies: bool,
}

fn main() -> ExitCode {
    program(std::env::args_os()).into()
}

/// The program; its exit code.
fn program(args: impl IntoIterator<Item = OsString>) -> u8 {
    let options: Options = match output::options(args) {
        Ok(options) => options,
        Err(code) => return code,
    };
    let on_cuda = options.device.map(|device| device == Device::Cuda);
    let gpus = match ranks_on_gpus::of_ranks(on_cuda, options.gpus.as_deref(), options.ranks) {
        Ok(gpus) => gpus,
        Err(error) => return fail(&error, output::BAD_INPUT),
    };
    let usual = if gpus.is_some() { &ON_GPUS } else { &SIMULATED };
    let layers = options.layers.unwrap_or(usual.layers);
    let mut text = times::head(options.ranks, layers, options.hidden, options.top_k, options.experts);
    let mut code = 0;
    for case in options.cases(usual) {
        match run(&case, gpus.as_deref()) {
            Ok((times, wrong)) => {
                text += &times.line(&case);
                if let Some(wrong) = wrong {
                    text += &format!("FAILED: {wrong}\n");
                    code = output::FAILED;
                }
            }
            Err(error) => return fail(&error, output::FAILED),
        }
    }
    output::end(&text, code)
}

impl Options {
    fn cases(&self, usual: &Usual) -> Vec<Case> {
        let ways = self.layout.iter().flat_map(|&layout| self.format.iter().map(move |&format| (layout, format)));
        let tokens = self.tokens.as_deref().unwrap_or(usual.tokens);
        let sizes = tokens.iter().flat_map(|&tokens| self.sms.iter().map(move |&sms| (tokens, sms)));
        let case = |(layout, format): (Rows, Format), (tokens, sms)| Case {
            ranks: self.ranks,
            tokens,
            layers: self.layers.unwrap_or(usual.layers),
            steps: self.steps.unwrap_or(usual.steps),
            hidden: self.hidden,
            experts: self.experts,
            top_k: self.top_k,
            sms,
            layout: layout.layout(),
            format: if format == Format::Bf16 { WireFormat::Bf16 } else { WireFormat::Fp8 },
            copies: self.work == Experts::Copy && format == Format::Bf16,
        };
        ways.flat_map(|way| sizes.clone().map(move |size| case(way, size))).collect()
    }
}

/// Measures one row on all ranks: of all times the slowest rank's, and what is wrong with the sums.
fn run(case: &Case, gpus: Option<&[u32]>) -> Result<(Times, Option<String>)> {
    let group = match gpus {
        Some(gpus) => LocalGroup::on_gpus(gpus)?,
        None => LocalGroup::simulated(case.ranks, Mode::Fast { workers: 0 })?,
    };
    let results = group.try_run(|comm| Ok::<_, Error>(step::run(&comm, case)?));
    let ranks = results.map_err(|failed| {
        let (rank, error) = failed.into_first();
        error.context(format!("rank {rank}"))
    })?;
    let (times, wrong): (Vec<Times>, Vec<Option<String>>) = ranks.into_iter().unzip();
    Ok((Times::slowest(times), wrong.into_iter().flatten().next()))
}

/// Says what is wrong: with the code of the library's error, if it is one.
fn fail(error: &Error, code: u8) -> u8 {
    output::fail(format_args!("{error:#}"), error.downcast_ref().map_or(code, output::code_of))
}
