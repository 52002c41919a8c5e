//! One mixture-of-experts layer, expert-parallel over several ranks: router, dispatch, experts, combine.
//!
//! ```text
//! cargo run --release --example moe_layer            # on simulated GPUs, no hardware needed
//! cargo run --release --example moe_layer -- -h      # everything else
//! epoxide run -n 4 -- target/release/examples/moe_layer    # a process for each rank
//! epoxide run -n 8 -- target/release/examples/moe_layer --device cuda    # each on a GPU of its own
//! ```
//!
//! To learn how the library is used, read [`layer`]: it is what each rank does. The rest makes an input that is worth
//! running ([`input`], [`router`], [`experts`]), works out by other means what must come out ([`plan`], [`e4m3`],
//! [`reference`], [`tolerance`]), compares ([`check`]) and prints ([`report`]).
#[path = "../../cli/src/buffer_layout.rs"]
mod buffer_layout;
mod check;
mod e4m3;
mod experts;
mod input;
mod layer;
mod matmul;
mod memory;
mod options;
#[path = "../output.rs"]
mod output;
mod parallel;
mod plan;
mod processes;
#[path = "../../cli/src/progress.rs"]
mod progress;
#[path = "../ranks_on_gpus.rs"]
mod ranks_on_gpus;
mod reference;
mod report;
mod router;
mod seeded;
mod tolerance;

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

use epoxide::processes::Place;
use epoxide::{Comm, Layout, LocalGroup, Mode, bf16};

use crate::experts::Experts;
use crate::layer::{Clock, Layer};
use crate::options::{Device, Options};
use crate::plan::{Padded, Plan};
use crate::progress::Progress;
use crate::router::Routing;
use crate::tolerance::Rounded;

fn main() -> ExitCode {
    program(std::env::args_os()).into()
}

/// The program; its exit code.
fn program(args: impl IntoIterator<Item = OsString>) -> u8 {
    let options = match output::options(args) {
        Ok(options) => options,
        Err(code) => return code,
    };
    let mut text = String::new();
    match run(options, &mut text) {
        Ok(Verdict::Verified) => output::end(&(text + "verified\n"), 0),
        Ok(Verdict::OfRank0) => 0,
        Err(Failure::Unverified(found)) => output::end(&format!("{text}FAILED: {found}\n"), output::FAILED),
        Err(Failure::Run(error)) => output::fail(error, output::FAILED),
        Err(Failure::BadInput(error)) => output::fail(error, output::BAD_INPUT),
    }
}

/// How a run ends well.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// All of the layer is what it must be.
    Verified,
    /// This process is one rank of several, and the first of them says it.
    OfRank0,
}

/// Where the ranks are.
enum Ranks {
    /// In this process.
    Threads(LocalGroup),
    /// This process is one.
    Process(Comm),
}

/// How a run ends otherwise.
#[derive(Debug)]
enum Failure {
    /// An option or a file that cannot be run with.
    BadInput(String),
    /// The device or the library gave up.
    Run(String),
    /// A result is wrong.
    Unverified(String),
}

impl Failure {
    fn bad_input(error: anyhow::Error) -> Self {
        Self::BadInput(format!("{error:#}"))
    }

    /// What the library says: of an option, where only it knows the rule, or of what went wrong.
    fn of_library(what: &str, error: &epoxide::Error) -> Self {
        match output::code_of(error) {
            output::BAD_INPUT => Self::BadInput(error.to_string()),
            _ => Self::Run(format!("{what}: {error}")),
        }
    }
}

fn run(mut options: Options, out: &mut String) -> Result<Verdict, Failure> {
    let place = processes::place(&options)?;
    options.found_ranks = place.as_ref().map(Place::size);
    let options = &options;
    options.check().map_err(Failure::bad_input)?;
    let progress = Progress::new();
    let mut before = Clock::new();
    progress.step("input");
    let input = options.load(&progress).map_err(Failure::bad_input)?;
    let config = options.config(input.tokens, input.hidden, input.experts).map_err(Failure::bad_input)?;
    before.lap("input");
    // A missing GPU is better known before the work than after it.
    let ranks = match (place, options.device) {
        (Some(place), _) => place.meet().and_then(|world| processes::rank(&world, options)).map(Ranks::Process),
        (None, Device::Sim) => LocalGroup::simulated(options.ranks(), Mode::Fast { workers: 0 }).map(Ranks::Threads),
        (None, Device::Cuda) => LocalGroup::on_gpus(&options.gpu_of_ranks()).map(Ranks::Threads),
    };
    let ranks = ranks.map_err(|error| Failure::of_library("cannot make the ranks", &error))?;
    before.lap("set up");

    progress.step("router");
    let routing = Routing::new(&input, options.top_k as usize, options.seed, &progress);
    before.lap("router");
    let by_expert = match config.layout_of_rows(options.ranks()) {
        Layout::ExpertContiguous { alignment } => Some(Padded::ToMultipleOf(alignment as usize)),
        Layout::Slab { capacity } => Some(Padded::ToSlab(capacity as usize)),
        _ => None,
    };
    let plan = Plan::new(&routing, options.ranks() as usize, input.experts, by_expert);
    before.lap("check, bit for bit");
    let experts = Experts::new(input.experts, input.hidden, options.expert_width as usize, options.seed)
        .map_err(Failure::bad_input)?;
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
    let failed = |error| Failure::of_library("the run failed", &error);
    let mut outcomes = match ranks {
        Ranks::Threads(group) => group.run(|comm| layer.run(comm)).map_err(failed)?,
        Ranks::Process(comm) => {
            // Who fails says so to the others, which would wait for it.
            let outcome = comm.run(|comm| layer.run(comm.clone())).map_err(failed)?;
            let outcomes = processes::gather(&comm, &outcome)?;
            if comm.rank() > 0 {
                return Ok(Verdict::OfRank0);
            }
            outcomes
        }
    };

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
        return Err(Failure::BadInput(format!(
            "hidden_states reach {largest:.3e}: the experts' outputs or their sums overflow BF16; the layer must stay finite"
        )));
    }
    drop(outputs);
    after.lap("check, bit for bit");
    progress.step("dense reference");
    let rounded = Rounded { scaling: options.format.scaling(), by_expert: plan.by_expert.is_some() };
    let accuracy = reference::compare(&input, &routing, &experts, &y, rounded, &progress);
    after.lap("dense reference");
    drop(progress);

    report::shape(out, options, &input, &config);
    report::device(out, &outcomes);
    let wire_row_bytes = report::wire_row_bytes(options, input.hidden);
    report::ranks(out, &plan, routing.top_k, wire_row_bytes);
    report::times(out, &before, &outcomes, &after);
    report::bandwidths(out, options, &outcomes, &plan, wire_row_bytes, 2 * input.hidden as u64);
    report::accuracy(out, &accuracy, rounded);
    report::digest(out, &y);
    out.push('\n');
    verdict(out, &mismatches, &accuracy)
}

/// What follows from the checks.
fn verdict(out: &mut String, mismatches: &[String], accuracy: &reference::Accuracy) -> Result<Verdict, Failure> {
    match mismatches {
        [] => {
            *out +=
                "communicated bit for bit as planned: rows, order, sources, selections, gate weights, counts, sums\n";
        }
        [only] => return Err(Failure::Unverified(only.clone())),
        [first, others @ ..] => {
            others.iter().for_each(|found| *out += &format!("also wrong: {found}\n"));
            return Err(Failure::Unverified(first.clone()));
        }
    }
    // Written so that a NaN fails.
    if accuracy.worst_ratio() <= 1.0 {
        return Ok(Verdict::Verified);
    }
    let (token, error, tolerance) = accuracy.worst.unwrap_or_default();
    Err(Failure::Unverified(format!("token {token} is off by {error:.2e} of the reference, tolerance {tolerance:.2e}")))
}
