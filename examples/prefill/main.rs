//! An MoE layer of a prefill: rows by expert, in FP8 and aligned, as a grouped GEMM reads them.
//!
//! ```text
//! cargo run --release --example prefill         # on GPU 0 if there is one, else on the simulated GPU
//! cargo run --release --example prefill -- -h   # everything else
//! ```
//!
//! [`step`] is what to copy from, and is the same on both. What comes out is compared with plain code bit for bit.
#[path = "../by_hand.rs"]
mod by_hand;
#[path = "../output.rs"]
mod output;
#[path = "../ranks_on_gpus.rs"]
mod ranks_on_gpus;
mod step;
#[path = "../verified.rs"]
mod verified;

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

use clap::{Parser, ValueEnum};
use epoxide::bf16;

use crate::by_hand::{EXPERTS, HIDDEN, TOP_K, Tokens, element};
use crate::verified::{AFTER_HELP, Ranks};

/// Where rows become FP8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Quantised {
    /// In dispatch, from BF16.
    Inside,
    /// Before it: dispatch takes codes and scales.
    Before,
}

/// A layer whose experts read their rows one after another, compared with plain code bit for bit.
#[derive(Clone, Debug, Parser)]
#[command(name = "prefill", after_help = AFTER_HELP)]
struct Options {
    #[command(flatten)]
    ranks: Ranks,
    /// Rows to whose multiples an expert's rows are padded, 1 to 1024
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1024))]
    alignment: u32,
    /// Where rows become FP8
    #[arg(long, value_enum, default_value_t = Quantised::Before)]
    quantised: Quantised,
}

/// What is prefilled.
struct Prompt {
    all: Tokens,
    alignment: u32,
    quantised: Quantised,
}

/// An element of what an expert makes of a row, `x` of a column, by its gate weight: a product with a matrix of two diagonals.
fn expert(number: u32, weight: f32, column: u32, x: impl Fn(u32) -> f32) -> bf16 {
    bf16::from_f32(weight * (x(column) * (1.0 + number as f32 / 8.0) - x((column + number + 1) % HIDDEN)))
}

fn main() -> ExitCode {
    program(std::env::args_os()).into()
}

/// The program; its exit code.
fn program(args: impl IntoIterator<Item = OsString>) -> u8 {
    let Options { ranks, alignment, quantised } = match output::options(args) {
        Ok(options) => options,
        Err(code) => return code,
    };
    let all = Tokens { ranks: ranks.ranks, tokens: ranks.tokens };
    let prompt = Prompt { all, alignment, quantised };
    let way = if quantised == Quantised::Inside { "by" } else { "before" };
    let head = format!(
        "{HIDDEN} elements in FP8, quantised {way} dispatch, top-{TOP_K} of {EXPERTS} experts, aligned to {alignment} rows"
    );
    ranks.run(
        &head,
        |comm| step::run(comm, &prompt),
        |rank, y| {
            all.check(rank, y, |token, column, number, weight| {
                expert(number, weight, column, |column| element(rank, token, column).to_f32())
            })
        },
    )
}
