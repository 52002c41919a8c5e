//! Two micro-batches, or more, overlapped by send and receive halves: while a rank's peers are still busy with one of them, its own experts work on another.
//!
//! `cargo run --release --example overlap -- --gpus 0,1`; without a GPU it runs on the simulated one, whose times say nothing. [`step::overlapped`] is
//! what to copy. Experts are a kernel that takes its time, more of it on every other rank, as where routing is uneven; they give rows back as they are, and
//! the sums are compared.
#[path = "../ranks_on_gpus.rs"]
mod ranks_on_gpus;
mod step;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use epoxide::{LocalGroup, Mode};

/// Overlaps micro-batches by send and receive halves, and says how much shorter a step is than with whole operations one after the other.
#[derive(Debug, Parser)]
#[command(name = "overlap")]
struct Options {
    /// NVIDIA GPUs by number; ranks are dealt out to them in turn [default: 0 if there is one]
    #[arg(long, value_delimiter = ',')]
    gpus: Option<Vec<u32>>,
    /// Ranks in all
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    ranks: u32,
    /// Micro-batches of a step, each in a row slot of its own
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    batches: u32,
    /// Tokens of a micro-batch on each rank
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=512))]
    tokens: u32,
    /// Microseconds that experts take: half of it, or once and a half
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(..=100_000))]
    work: u64,
    /// Steps that are timed
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps: u32,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(o: &Options) -> Result<()> {
    let gpus = ranks_on_gpus::of_ranks(None, o.gpus.as_deref(), o.ranks)?;
    let simulated = || LocalGroup::simulated(o.ranks, Mode::Fast { workers: 0 });
    let times =
        gpus.map_or_else(simulated, |gpus| LocalGroup::on_gpus(&gpus))?.run(|comm| step::both_ways(&comm, o))?;
    let slowest = |which: usize| times.iter().map(|of_rank| of_rank.0[which]).fold(0.0, f64::max);
    let (whole, halves) = (slowest(0), slowest(1));
    ensure!(times.iter().all(|of_rank| of_rank.1), "the sums are wrong");
    println!("one after the other {whole:.1} us, overlapped by halves {halves:.1} us: gained {:.1} us", whole - halves);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_sum_the_same() {
        for batches in [2, 3] {
            let options = Options { gpus: None, ranks: 3, batches, tokens: 2, work: 1, steps: 2 };
            let group = LocalGroup::simulated(3, Mode::Fast { workers: 0 }).unwrap();
            let ran = group.run(|comm| step::both_ways(&comm, &options)).unwrap();
            assert!(ran.iter().all(|(times, right)| *right && times.iter().all(|time| *time > 0.0)), "{ran:?}");
        }
    }
}
