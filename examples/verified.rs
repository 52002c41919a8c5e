//! Programs whose ranks all do one thing, on GPUs or simulated, and whose outcome is compared with plain code: their options, and how they
//! end.
use std::fmt::Display;

use anyhow::{Error, Result};
use clap::{Args, ValueEnum};
use epoxide::{Comm, LocalGroup, Mode};

use crate::by_hand::EXPERTS;
use crate::{output, ranks_on_gpus};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Device {
    /// The simulated GPU.
    Sim,
    /// NVIDIA GPUs.
    Cuda,
}

/// How such a program ends.
pub const AFTER_HELP: &str = "Exit codes: 0 verified, 1 a run that failed or was not verified, 2 a bad option.";

/// Where the ranks run, and how much they do.
#[derive(Clone, Debug, Args)]
pub struct Ranks {
    /// Where to run [default: cuda if this process has a GPU, else sim]
    #[arg(long, value_enum)]
    device: Option<Device>,
    /// NVIDIA GPUs by number; ranks are dealt out to them in turn, and those of one GPU share it [default: 0]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    gpus: Option<Vec<u32>>,
    /// Ranks in all, 1 to 16
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=i64::from(EXPERTS)))]
    pub ranks: u32,
    /// Tokens of each rank, 1 to 4096
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub tokens: u32,
}

impl Ranks {
    /// Runs `step` on every rank, has `check` look at what comes out of each, and says how that went after `head`; the exit code.
    pub fn run<T: Send, E: Display>(
        &self,
        head: &str,
        step: impl Fn(&Comm) -> epoxide::Result<T> + Sync,
        check: impl Fn(u32, &T) -> Result<(), E>,
    ) -> u8 {
        let on_cuda = self.device.map(|device| device == Device::Cuda);
        let gpus = match ranks_on_gpus::of_ranks(on_cuda, self.gpus.as_deref(), self.ranks) {
            Ok(gpus) => gpus,
            Err(error) => return fail(&error, output::BAD_INPUT),
        };
        let outcomes = match self.outcomes(gpus.as_deref(), step) {
            Ok(outcomes) => outcomes,
            Err(error) => return fail(&error, output::FAILED),
        };
        let mut text = format!("{} ranks, {} tokens each, {head}\n", self.ranks, self.tokens);
        for (rank, (device, _)) in outcomes.iter().enumerate() {
            text += &format!("rank {rank}: {device}\n");
        }
        match (0..).zip(&outcomes).try_for_each(|(rank, (_, outcome))| check(rank, outcome)) {
            Ok(()) => output::end(&(text + "verified\n"), 0),
            Err(wrong) => output::end(&format!("{text}FAILED: {wrong}\n"), output::FAILED),
        }
    }

    /// The device of each rank, and what came out.
    fn outcomes<T: Send>(
        &self,
        gpus: Option<&[u32]>,
        step: impl Fn(&Comm) -> epoxide::Result<T> + Sync,
    ) -> Result<Vec<(String, T)>> {
        let group = match gpus {
            Some(gpus) => LocalGroup::on_gpus(gpus)?,
            None => LocalGroup::simulated(self.ranks, Mode::Fast { workers: 0 })?,
        };
        let results = group.try_run(|comm| Ok::<_, Error>((comm.device(), step(&comm)?)));
        results.map_err(|failed| {
            let (rank, error) = failed.into_first();
            error.context(format!("rank {rank}"))
        })
    }
}

/// Says what is wrong: with the code of the library's error, if it is one.
fn fail(error: &Error, code: u8) -> u8 {
    output::fail(format_args!("{error:#}"), error.downcast_ref().map_or(code, output::code_of))
}
