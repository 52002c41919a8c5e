//! The command line.
use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use epoxide::LocalGroup;

use crate::model::EXPERTS;

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
        let device = match (self.device, &self.gpus) {
            (Some(device), _) => device,
            (None, Some(_)) => Device::Cuda,
            (None, None) if LocalGroup::gpus().is_ok_and(|gpus| gpus > 0) => Device::Cuda,
            (None, None) => Device::Sim,
        };
        if device == Device::Sim {
            ensure!(self.gpus.is_none(), "--gpus names NVIDIA GPUs, and --device sim has none (--device cuda)");
            return Ok(None);
        }
        let gpus = self.gpus.as_deref().unwrap_or(&[0]);
        ensure!(
            gpus.len() <= self.ranks as usize,
            "--gpus names {} GPUs for {} ranks: a GPU without a rank does nothing",
            gpus.len(),
            self.ranks
        );
        let there = LocalGroup::gpus()?;
        if let Some(gpu) = gpus.iter().find(|gpu| **gpu >= there) {
            anyhow::bail!("--gpus {gpu}: this process may use {there} GPUs, numbered from 0");
        }
        Ok(Some(gpus.iter().copied().cycle().take(self.ranks as usize).collect()))
    }
}
