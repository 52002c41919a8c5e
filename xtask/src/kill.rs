//! `cargo xtask kill`: many more kills than an ordinary test run makes, of ranks that are processes, and of those of seeded machines; and how
//! long survivors take.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::kernels::root;

/// Options of `cargo xtask kill`.
#[derive(clap::Args)]
pub struct Args {
    /// How many ranks are killed, each in a group of its own
    #[arg(long, default_value_t = 200)]
    times: u32,
    /// What is killed when follows from it
    #[arg(long)]
    seed: Option<u64>,
}

/// Seeded schedules in which a rank dies.
const CASES: u32 = 48;

/// Runs `cargo xtask kill`.
pub fn run(args: &Args) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("EPOXIDE_TEST_KILLS", args.times.to_string());
    if let Some(seed) = args.seed {
        command.env("EPOXIDE_TEST_SEED", seed.to_string());
    }
    // 25 deaths a case, each at another step.
    command.env("EPOXIDE_TEST_CASES", CASES.to_string());
    // Optimised enough as it is, and built for the other tests too.
    command.args(["test", "--locked", "-p", "epoxide", "--test", "kills", "--test", "killed_ranks"]);
    // What survivors take is printed.
    command.args(["--test", "survivors", "--", "--nocapture"]);
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("a survivor did not end as it must ({status}); above is which kill it was");
    }
    Ok(())
}
