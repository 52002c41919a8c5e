//! The command line, and what it may ask for.
use std::path::PathBuf;

use anyhow::{Result, anyhow, ensure};
use clap::{Parser, ValueEnum};
use epoxide::quantize::scale_stride_of;
use epoxide::{Config, ScaleLayout, WireFormat, bf16, bytes_needed};

use crate::buffer_layout::{BufferLayout, check_alignment};
use crate::output::no_value_twice;
use crate::ranks_on_gpus;
use crate::report::Routing;
use crate::sizes::{Asked, FEW, is_for};

/// Shared memory of a block, of the simulated GPU and of Hopper. What a GPU has less is found when the buffers are made.
const SHARED_MEMORY: u32 = 232_448;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The simulated GPU: the times are the host's, and say nothing of a GPU.
    Sim,
    /// NVIDIA GPUs.
    Cuda,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Bf16,
    /// e4m3, quantised by dispatch.
    Fp8,
    /// e4m3, quantised before.
    Fp8Brought,
    /// e4m3 with powers of two for scales, quantised by dispatch.
    Fp8Ue8m0,
    /// The same with a scale for every 32 elements.
    Mxfp8,
}

impl From<Format> for WireFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Bf16 => Self::Bf16,
            Format::Fp8 | Format::Fp8Brought => Self::Fp8,
            Format::Fp8Ue8m0 => Self::Fp8Ue8m0,
            Format::Mxfp8 => Self::Mxfp8,
        }
    }
}

const AFTER_HELP: &str = "Exit codes: 0 measured, 1 a run that failed, 2 a bad option.";

/// Measures dispatch and combine over the number of SMs, beside plain copies in the same run.
#[derive(Clone, Debug, Parser)]
#[command(name = "bandwidth", after_help = AFTER_HELP)]
pub struct Options {
    /// Where to run.
    #[arg(long, value_enum, default_value_t = Device::Cuda)]
    pub device: Device,
    /// NVIDIA GPUs by number, for `--device cuda`; ranks are dealt out to them in turn, and those of one GPU share it. [default: 0, of a report all; or a launcher's ranks in turn on all]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    gpus: Option<Vec<u32>>,
    /// Ranks in all, 1 to 64. [default: 8, of a report one for each GPU; or as many as a launcher has made processes of]
    #[arg(long = "ranks", value_name = "RANKS", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub asked_ranks: Option<u32>,
    /// The GPUs where none are named: of ranks that are processes, and of a report.
    #[arg(skip)]
    pub found_gpus: Option<Vec<u32>>,
    #[command(flatten)]
    pub asked: Asked,
    /// Measures everything that a layer's designer asks for, and writes tables, numbers and curves to this folder: report.md, report.json and *.svg. Numbers are there from the first measurement on: of a report that was ended before its time `--render` makes the rest. Rows in fixed places are measured of at most 512 tokens; on the simulated GPU all is small.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Makes a report of few cells, in less than a minute.
    #[arg(long, requires = "report")]
    pub quick: bool,
    /// Writes a report's tables and curves again, from the numbers that are in this folder. Measures nothing.
    #[arg(long, value_name = "DIR", exclusive = true)]
    pub render: Option<PathBuf>,
    /// Shows how the slowest repetitions were, beside the median one.
    #[arg(long, conflicts_with = "report")]
    pub percentiles: bool,
    /// Rows to which an expert's rows are padded, with `--layout expand` and `rank-major-expand`, or its part of the index, with `--layout rank-major`. [default: 1]
    #[arg(long, value_name = "ROWS")]
    alignment: Option<u32>,
    /// Rows that a rank has room for, in slabs each expert; a routing that brings more is an error. [default: all that can come]
    #[arg(long, value_name = "ROWS")]
    pub capacity: Option<u64>,
    /// Makes buffers for so many tokens of a rank, as an engine makes one for its largest batch; at least as many as are measured. [default: as many as are measured]
    #[arg(long, value_name = "TOKENS", conflicts_with = "report")]
    pub max_tokens: Option<u32>,
    /// Lays the scales of received rows by column. The times of dispatch are with that.
    #[arg(long, conflicts_with = "report")]
    pub scale_columns: bool,
    /// Measures dispatches that replay the first one's routing, in place of whole ones. A report has both.
    #[arg(long, conflicts_with = "report")]
    pub replay: bool,
    /// Lets each dispatch tell the host what it brings, and shows when the host knows it. The times of dispatch are with that.
    #[arg(long, conflicts_with_all = ["replay", "report"])]
    pub counts_mirror: bool,
    /// Shows what send and receive halves take, with `--layout rank-major`, alone and under load, and how much longer kernels take beside operations, whole and by halves.
    #[arg(long, conflicts_with_all = ["replay", "report", "counts_mirror"])]
    pub halves: bool,
    /// Seed of the routing.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Leaves the first expert output of every rank unwritten: for the test that sees that the check can fail.
    #[arg(long, hide = true)]
    pub corrupt: bool,
    // What `settle` makes of all that.
    /// Ranks in all.
    #[arg(skip)]
    pub ranks: u32,
    /// Tokens of every rank.
    #[arg(skip)]
    pub tokens: Vec<u32>,
    /// Elements of a row.
    #[arg(skip)]
    pub hidden: u32,
    /// Experts in all.
    #[arg(skip)]
    pub experts: u32,
    /// Experts of a token.
    #[arg(skip)]
    pub top_k: u32,
    /// Blocks of an operation.
    #[arg(skip)]
    pub sms: Vec<u32>,
    /// Whether a report may leave some of these out where they say little.
    #[arg(skip)]
    pub fewer_sms: bool,
    /// Formats on the wire.
    #[arg(skip)]
    pub format: Vec<Format>,
    /// How rows lie.
    #[arg(skip)]
    pub layout: Vec<BufferLayout>,
    /// How a report's tokens select experts.
    #[arg(skip)]
    pub routing: Vec<Routing>,
    /// Repetitions of few tokens, and of many.
    #[arg(skip)]
    pub repeat: [u32; 2],
}

/// A row of the sweep's table.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub tokens: u32,
    pub format: Format,
    pub layout: BufferLayout,
    pub sms: u32,
}

impl Options {
    /// Checks every cell of the sweep before the first is measured.
    ///
    /// # Errors
    ///
    /// The first rule that is broken.
    pub fn check(&self) -> Result<()> {
        ranks_on_gpus::check_named(self.gpus.as_deref(), self.ranks, self.device == Device::Cuda)?;
        let once = |option: &str, twice: Result<(), String>| twice.map_err(|error| anyhow!("{option}: {error}"));
        once("--tokens", no_value_twice(&self.tokens))?;
        once("--sms", no_value_twice(&self.sms))?;
        once("--format", no_value_twice(&self.format))?;
        once("--layout", no_value_twice(&self.layout))?;
        once("--routing", no_value_twice(&self.routing))?;
        check_alignment(self.alignment, self.layout.iter().any(|layout| layout.pads()))
            .map_err(|error| anyhow!(error))?;
        for case in self.cases() {
            let config = self.config(case);
            bytes_needed(&config, self.ranks, case.sms)?;
            config.check_row(self.ranks, SHARED_MEMORY)?;
        }
        let is_measured = |tokens| self.report.is_none() || self.layout.iter().any(|layout| is_for(*layout, tokens));
        for &tokens in &self.tokens {
            ensure!(
                is_measured(tokens),
                "--tokens {tokens}: a report has rows in fixed places of at most {FEW} tokens, and no other is asked for"
            );
            if let Some(most) = self.max_tokens {
                ensure!(
                    most >= tokens,
                    "--max-tokens {most}: a buffer is for at least as many as are measured (--tokens {tokens})"
                );
            }
            // The rows of all ranks are made on the host.
            let rows = u64::from(self.ranks) * u64::from(tokens);
            let bytes = u128::from(rows) * u128::from(self.hidden) * size_of::<bf16>() as u128;
            let fits = usize::try_from(bytes).is_ok_and(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok());
            ensure!(
                fits,
                "--tokens {tokens}: {rows} rows of {} elements are {:.1} GB, more than the host's memory",
                self.hidden,
                bytes as f64 / 1e9
            );
        }
        Ok(())
    }

    /// The rows of the sweep's table.
    pub fn cases(&self) -> impl Iterator<Item = Case> {
        let formats = |&tokens: &u32| self.format.iter().map(move |&format| (tokens, format));
        let layouts = |(tokens, format)| self.layout.iter().map(move |&layout| (tokens, format, layout));
        let cases = self.tokens.iter().flat_map(formats).flat_map(layouts);
        // A report leaves out what a layout is not meant for.
        let cases = cases.filter(|(tokens, _, layout)| self.report.is_none() || is_for(*layout, *tokens));
        cases.flat_map(|(tokens, format, layout)| self.sms.iter().map(move |&sms| Case { tokens, format, layout, sms }))
    }

    /// Whether rows lie so anywhere in the sweep.
    pub fn has(&self, layout: BufferLayout) -> bool {
        self.layout.contains(&layout)
    }

    /// Rows to whose multiples an expert's rows are padded.
    pub fn alignment(&self) -> u32 {
        self.alignment.unwrap_or(1)
    }

    /// The buffers' configuration.
    pub fn config(&self, case: Case) -> Config {
        let Case { tokens, format, layout, sms } = case;
        let most = self.max_tokens.unwrap_or(tokens);
        let config = Config::new(self.experts, self.top_k, self.hidden, most);
        let config = config.with_format(format.into()).with_num_sms(sms);
        let config = layout.of(config, self.ranks, self.alignment, self.capacity);
        let config = match self.scale_columns {
            true => config.with_scale_layout(ScaleLayout::ColumnMajor),
            false => config,
        };
        let config = if self.halves { config.with_halves() } else { config };
        if self.counts_mirror { config.with_counts_mirror() } else { config }
    }

    /// Bytes of a row in BF16, as experts give it back.
    pub fn bf16_row(&self) -> f64 {
        f64::from(self.hidden) * 2.0
    }

    /// Bytes of a row in a format, with its scales, as it is dispatched.
    pub fn wire_row(&self, format: WireFormat) -> f64 {
        match format {
            WireFormat::Bf16 => self.bf16_row(),
            format => f64::from(self.hidden) + f64::from(scale_stride_of(format, self.hidden)) * 4.0,
        }
    }

    /// The GPUs.
    pub fn gpus(&self) -> &[u32] {
        self.gpus.as_deref().or(self.found_gpus.as_deref()).unwrap_or(&[0])
    }

    /// The GPUs that are named.
    pub fn named_gpus(&self) -> Option<&[u32]> {
        self.gpus.as_deref()
    }

    /// The GPU of every rank. A simulated rank has one of its own.
    pub fn gpu_of_ranks(&self) -> Vec<u32> {
        match self.device {
            Device::Sim => (0..self.ranks).collect(),
            Device::Cuda => ranks_on_gpus::deal(Some(self.gpus()), self.ranks),
        }
    }
}
