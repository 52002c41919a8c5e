//! An MoE layer of a training step: dispatch and combine forward, and backward by the same routing.
//!
//! ```text
//! cargo run --release --example training_step         # on GPU 0 if there is one, else on the simulated GPU
//! cargo run --release --example training_step -- -h   # everything else
//! ```
//!
//! [`step`] is what to copy from, and is the same on both. Sums and gradients are compared with [`backward`], plain code, bit for bit.
mod backward;
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

use clap::Parser;

use crate::by_hand::{EXPERTS, HIDDEN, TOP_K, Tokens};
use crate::verified::{AFTER_HELP, Ranks};

/// A layer with its gradients, compared with plain code bit for bit.
#[derive(Clone, Debug, Parser)]
#[command(name = "training_step", after_help = AFTER_HELP)]
struct Options {
    #[command(flatten)]
    ranks: Ranks,
}

fn main() -> ExitCode {
    program(std::env::args_os()).into()
}

/// The program; its exit code.
fn program(args: impl IntoIterator<Item = OsString>) -> u8 {
    let Options { ranks } = match output::options(args) {
        Ok(options) => options,
        Err(code) => return code,
    };
    let all = Tokens { ranks: ranks.ranks, tokens: ranks.tokens };
    let head = format!("{HIDDEN} elements, top-{TOP_K} of {EXPERTS} experts, forward and backward");
    ranks.run(&head, |comm| step::run(comm, &all), |rank, outcome| all.check_step(rank, outcome))
}
