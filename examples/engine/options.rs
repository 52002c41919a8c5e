//! The command line.
use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::model::EXPERTS;
use crate::ranks_on_gpus;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The simulated GPU.
    Sim,
    /// NVIDIA GPUs.
    Cuda,
}

const AFTER_HELP: &str = "Exit codes: 0 verified, 1 a run that failed or was not verified, 2 a bad option.";

/// MoE layers whose experts are a kernel of another crate's, compared with plain code bit for bit.
#[derive(Clone, Debug, Parser)]
#[command(name = "engine", after_help = AFTER_HELP)]
pub struct Options {
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
    /// Layers, one after another, 1 to 64
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub layers: u32,
}

impl Options {
    /// The GPU of every rank; none on the simulated GPU.
    ///
    /// # Errors
    ///
    /// The rule that is broken, or why there is no GPU.
    pub fn gpus(&self) -> Result<Option<Vec<u32>>> {
        let on_cuda = self.device.map(|device| device == Device::Cuda);
        ranks_on_gpus::of_ranks(on_cuda, self.gpus.as_deref(), self.ranks)
    }
}
