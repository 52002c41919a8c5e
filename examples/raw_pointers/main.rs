//! Dispatch and combine on memory, streams and kernels of the caller's own, by their addresses.
//!
//! ```text
//! cargo run --release --example raw_pointers         # on GPU 0 if there is one, else on the simulated GPU
//! cargo run --release --example raw_pointers -- -h   # everything else
//! ```
//!
//! [`cuda`] is what to copy from: streams that the caller made ([`LocalGroup::on_streams`](epoxide::LocalGroup::on_streams)), memory that the
//! caller allocated, and a kernel of the caller's as the experts, which reads what arrived and writes its outputs where
//! [`RecvView`](epoxide::RecvView) says. [`round`] is the same for both devices: `dispatch_raw`, `recv_view`, `combine_raw`. The simulated GPU
//! takes no stream and no PTX, so there ([`simulated`]) memory is Epoxide's and the experts are a copy.
mod cuda;
mod options;
#[path = "../output.rs"]
mod output;
mod problem;
#[path = "../ranks_on_gpus.rs"]
mod ranks_on_gpus;
mod round;
mod simulated;

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

use crate::options::Options;
use crate::problem::{EXPERTS, HIDDEN, Problem, TOP_K};
use crate::round::Outcome;

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
    let problem = Problem { ranks: options.ranks, tokens: options.tokens };
    let run = match &gpus {
        Some(gpus) => cuda::run(&problem, gpus),
        None => simulated::run(&problem),
    };
    match run {
        Ok(outcomes) => report(&problem, gpus.is_some(), &outcomes),
        Err(error) => fail(&error, output::FAILED),
    }
}

/// Says what is wrong: with the code of the library's error, if it is one.
fn fail(error: &Error, code: u8) -> u8 {
    output::fail(format_args!("{error:#}"), error.downcast_ref().map_or(code, output::code_of))
}

/// Compares the sums of all ranks with plain code, and says how that went.
fn report(problem: &Problem, weighted: bool, outcomes: &[Outcome]) -> u8 {
    let Problem { ranks, tokens } = problem;
    let mut text =
        format!("{ranks} ranks, {tokens} tokens each, {HIDDEN} elements, top-{TOP_K} of {EXPERTS} experts\n");
    for (rank, Outcome { device, .. }) in outcomes.iter().enumerate() {
        text += &format!("rank {rank}: {device}\n");
    }
    let check = |(rank, outcome): (u32, &Outcome)| problem.check(rank, weighted, &outcome.y);
    match (0..).zip(outcomes).try_for_each(check) {
        Ok(()) => output::end(&(text + "verified\n"), 0),
        Err(wrong) => output::end(&format!("{text}FAILED: {wrong}\n"), output::FAILED),
    }
}

/// The error of the rank that failed first.
fn first_failure<T>(results: Result<Vec<T>, epoxide::RanksFailed<Error>>) -> Result<Vec<T>> {
    results.map_err(|failed| {
        let (rank, error) = failed.into_first();
        error.context(format!("rank {rank}"))
    })
}
