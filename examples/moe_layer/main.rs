//! One mixture-of-experts layer, expert-parallel over several ranks: router, dispatch, experts, combine.
//!
//! ```text
//! cargo run --release --example moe_layer            # on simulated GPUs, no hardware needed
//! cargo run --release --example moe_layer -- -h      # everything else
//! ```
//!
//! To learn how the library is used, read [`layer`]: it is what each rank does. The rest makes an input that is worth
//! running ([`input`], [`router`], [`experts`]), works out by other means what must come out ([`plan`], [`e4m3`],
//! [`reference`], [`tolerance`]), compares ([`check`]) and prints ([`report`]).
mod check;
mod e4m3;
mod experts;
mod input;
mod layer;
mod matmul;
mod options;
mod parallel;
mod plan;
mod progress;
mod reference;
mod report;
mod router;
mod seeded;
mod tolerance;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use epoxide::{LocalGroup, Mode, bf16};

use crate::experts::Experts;
use crate::layer::{Clock, Layer};
use crate::options::{Device, Format, Options};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::router::Routing;

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => {
            println!("verified");
            ExitCode::SUCCESS
        }
        Err(Failure::Unverified(found)) => {
            println!("FAILED: {found}");
            ExitCode::FAILURE
        }
        Err(Failure::Run(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        Err(Failure::BadInput(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// How a run ends otherwise.
enum Failure {
    /// An option or a file that cannot be run with.
    BadInput(anyhow::Error),
    /// The device or the library gave up.
    Run(anyhow::Error),
    /// A result is wrong.
    Unverified(String),
}

fn run(options: &Options) -> Result<(), Failure> {
    let progress = Progress::new();
    let mut before = Clock::new();
    progress.step("input");
    let input = options.load(&progress).map_err(Failure::BadInput)?;
    let config = options.config(input.tokens, input.hidden, input.experts).map_err(Failure::BadInput)?;
    before.lap("input");
    // A missing GPU is better known before the work than after it.
    let group = match options.device {
        Device::Sim => LocalGroup::simulated(options.ranks, Mode::Fast { workers: 0 }),
        Device::Cuda => LocalGroup::on_gpus(&options.gpu_of_ranks()),
    };
    let group = group.context("cannot make the ranks").map_err(Failure::Run)?;
    before.lap("set up");

    progress.step("router");
    let routing = Routing::new(&input, options.top_k as usize, options.seed, &progress);
    before.lap("router");
    let plan = Plan::new(&routing, options.ranks as usize, input.experts);
    before.lap("check, bit for bit");
    let experts = Experts::new(input.experts, input.hidden, options.expert_width as usize, options.seed);
    before.lap("expert weights");
    // Tokens are made, routed and compared with the reference, rows checked and computed.
    progress.expect(3 * input.tokens + 2 * plan.rows());

    progress.step("set up");
    let layer = Layer {
        options,
        config: &config,
        input: &input,
        routing: &routing,
        plan: &plan,
        experts: &experts,
        progress: &progress,
    };
    let mut outcomes = group.run(|comm| layer.run(comm)).context("the run failed").map_err(Failure::Run)?;

    // From here on the ranks and their device memory are gone.
    let mut after = Clock::new();
    progress.step("check, bit for bit");
    let mut mismatches: Vec<String> = outcomes.iter_mut().filter_map(|o| o.mismatch.take()).collect();
    let outputs: Vec<Vec<bf16>> = outcomes.iter_mut().map(|o| std::mem::take(&mut o.outputs)).collect();
    let mut y = Vec::with_capacity(input.tokens * input.hidden);
    for outcome in &mut outcomes {
        y.append(&mut std::mem::take(&mut outcome.y));
    }
    mismatches.extend(check::combined(&y, &outputs, &plan, &routing, input.hidden));
    // Whatever was combined is what it must be, so it is the layer that overflows.
    if mismatches.is_empty() && y.iter().any(|value| !value.is_finite()) {
        let largest = input.largest();
        return Err(Failure::BadInput(anyhow::anyhow!(
            "hidden_states reach {largest:.3e}: the experts' outputs or their sums overflow BF16; the layer must stay finite"
        )));
    }
    drop(outputs);
    after.lap("check, bit for bit");
    progress.step("dense reference");
    let fp8 = options.format == Format::Fp8;
    let accuracy = reference::compare(&input, &routing, &experts, &y, fp8, &progress);
    after.lap("dense reference");
    drop(progress);

    report::shape(options, &input);
    report::device(&outcomes);
    let wire_row_bytes = report::wire_row_bytes(options, input.hidden);
    report::ranks(&plan, routing.top_k, wire_row_bytes);
    report::times(&before, &outcomes, &after);
    report::bandwidths(options, &outcomes, &plan, wire_row_bytes, 2 * input.hidden as u64);
    report::accuracy(&accuracy, fp8);
    println!();
    verdict(&mismatches, &accuracy)
}

/// What follows from the checks.
fn verdict(mismatches: &[String], accuracy: &reference::Accuracy) -> Result<(), Failure> {
    match mismatches {
        [] => println!(
            "communicated bit for bit as planned: rows, order, sources, selections, gate weights, counts, sums"
        ),
        [only] => return Err(Failure::Unverified(only.clone())),
        [first, others @ ..] => {
            others.iter().for_each(|found| println!("also wrong: {found}"));
            return Err(Failure::Unverified(first.clone()));
        }
    }
    // Written so that a NaN fails.
    if accuracy.worst_ratio() <= 1.0 {
        return Ok(());
    }
    let (token, error, tolerance) = accuracy.worst.unwrap_or_default();
    Err(Failure::Unverified(format!("token {token} is off by {error:.2e} of the reference, tolerance {tolerance:.2e}")))
}
