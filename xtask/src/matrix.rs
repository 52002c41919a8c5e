//! `cargo xtask matrix`: the whole of what `tests/matrix.rs` samples, and the random tests beside it with many more cases than usual.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::kernels::root;

/// Options of `cargo xtask matrix`.
#[derive(clap::Args)]
pub struct Args {
    /// Where: sim, cuda (GPU 0), or GPUs to deal the ranks out to, as in cuda:0,1
    #[arg(long, default_value = "sim")]
    device: String,
    /// Only cells with these values, as in rows=Opaque,ranks=8,ranks=64; a dimension that is not there is said which there are. Leaves the
    /// random tests out.
    #[arg(long, value_name = "DIMENSION=VALUE,..", default_value = "", hide_default_value = true)]
    filter: String,
    /// Only one of so many parts, as in 3/8: each has a mixture, and they take about as long as each other. The last one has the random tests too.
    #[arg(long, value_name = "N/M", value_parser = part)]
    part: Option<Part>,
    /// What sizes and data follow from
    #[arg(long)]
    seed: Option<u64>,
}

/// A part: a number from 1 on, and of how many.
#[derive(Clone, Copy)]
struct Part {
    number: u32,
    of: u32,
}

fn part(text: &str) -> Result<Part, String> {
    let numbers = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
    match numbers {
        Some((number, of)) if (1..=of).contains(&number) => Ok(Part { number, of }),
        _ => Err("a part is a number from 1 on, and of how many, as in 3/8".to_owned()),
    }
}

/// Tests of random cases that the matrix stands beside: in an ordinary run they try few.
const RANDOM: [&str; 16] = [
    "capacity",
    "combine_gradient",
    "combine_options",
    "counts_mirror",
    "dispatch_combine",
    "epochs",
    "expert_contiguous",
    "expert_index",
    "formats",
    "halves",
    "handles",
    "rank_major",
    "row_slots",
    "scale_columns",
    "skew",
    "slabs",
];

/// How many times the cases of an ordinary run those try.
const TIMES: &str = "8";

/// How many hardware queues the driver makes: as many as it can.
const QUEUES: &str = "CUDA_DEVICE_MAX_CONNECTIONS";

/// Runs `cargo xtask matrix`.
pub fn run(args: &Args) -> Result<()> {
    let mut whole = test(args, &["matrix"]);
    whole.env("EPOXIDE_MATRIX", &args.filter).args(["--", "--exact", "the_whole", "--ignored", "--nocapture"]);
    if let Some(seed) = args.seed {
        whole.env("EPOXIDE_TEST_SEED", seed.to_string());
    }
    if let Some(Part { number, of }) = args.part {
        whole.env("EPOXIDE_MATRIX_PART", format!("{number}/{of}"));
    }
    finish(&mut whole)?;
    if args.filter.is_empty() && args.part.is_none_or(|part| part.number == part.of) {
        finish(test(args, &RANDOM).env("EPOXIDE_TEST_TIMES", TIMES))?;
    }
    Ok(())
}

/// Tests of the library, as fast as they can be.
fn test(args: &Args, names: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("EPOXIDE_TEST_DEVICE", &args.device);
    // Of several ranks on a GPU, each with two streams, copies of one wait in a queue behind those of another that waits for it.
    if std::env::var_os(QUEUES).is_none() {
        command.env(QUEUES, "32");
    }
    command.args(["test", "--locked", "--release", "-p", "epoxide"]);
    command.args(names.iter().flat_map(|name| ["--test", name]));
    command
}

fn finish(command: &mut Command) -> Result<()> {
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("a test failed ({status}); above is the line that replays it");
    }
    Ok(())
}
