//! MoE layers of an engine: dispatch, experts in a kernel of another crate's, and combine, enqueued one behind the other.
//!
//! ```text
//! cargo run --release --example engine         # on GPU 0 if there is one, else on the simulated GPU
//! cargo run --release --example engine -- -h   # everything else
//! ```
//!
//! [`layers`] is what to copy from, and is the same on both: `Comm::load`, `Layout::ExpertContiguous`, `recv_arrays`, `Comm::launch`. The
//! kernel is `gated_experts` of `examples/custom-kernel/kernels`, written in `epoxide-dsl`. [`model`] has the sizes, and the same in plain
//! code.
mod layers;
mod model;
mod options;
#[path = "../output.rs"]
mod output;
#[path = "../ranks_on_gpus.rs"]
mod ranks_on_gpus;

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
use epoxide::{LocalGroup, Mode, bf16};

use crate::model::{EXPERTS, HIDDEN, Model, TOP_K};
use crate::options::Options;

fn main() -> ExitCode {
    program(std::env::args_os()).into()
}

/// The program; its exit code.
fn program(args: impl IntoIterator<Item = OsString>) -> u8 {
    let options = match output::options::<Options>(args) {
        Ok(options) => options,
        Err(code) => return code,
    };
    let gpus = match options.gpus() {
        Ok(gpus) => gpus,
        Err(error) => return fail(&error, output::BAD_INPUT),
    };
    let model = Model { ranks: options.ranks, tokens: options.tokens, layers: options.layers };
    match run(&model, gpus.as_deref()) {
        Ok(ranks) => report(&model, &ranks),
        Err(error) => fail(&error, output::FAILED),
    }
}

/// Runs all ranks; the device of each, and what came out.
fn run(model: &Model, gpus: Option<&[u32]>) -> Result<Vec<(String, Vec<bf16>)>> {
    let group = match gpus {
        Some(gpus) => LocalGroup::on_gpus(gpus)?,
        None => LocalGroup::simulated(model.ranks, Mode::Fast { workers: 0 })?,
    };
    let results = group.try_run(|comm| Ok::<_, Error>((comm.device(), layers::run(&comm, model)?)));
    results.map_err(|failed| {
        let (rank, error) = failed.into_first();
        error.context(format!("rank {rank}"))
    })
}

/// Says what is wrong: with the code of the library's error, if it is one.
fn fail(error: &Error, code: u8) -> u8 {
    output::fail(format_args!("{error:#}"), error.downcast_ref().map_or(code, output::code_of))
}

/// Compares what came out of all ranks with plain code, and says how that went.
fn report(model: &Model, outcomes: &[(String, Vec<bf16>)]) -> u8 {
    let Model { ranks, tokens, layers } = model;
    let mut text = format!(
        "{ranks} ranks, {tokens} tokens each, {layers} layers, {HIDDEN} elements, top-{TOP_K} of {EXPERTS} experts\n"
    );
    for (rank, (device, _)) in outcomes.iter().enumerate() {
        text += &format!("rank {rank}: {device}\n");
    }
    match (0..).zip(outcomes).try_for_each(|(rank, (_, y))| model.check(rank, y)) {
        Ok(()) => output::end(&(text + "verified\n"), 0),
        Err(wrong) => output::end(&format!("{text}FAILED: {wrong}\n"), output::FAILED),
    }
}
