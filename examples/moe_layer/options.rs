//! The command line.
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use epoxide::{Config, Layout, WireFormat, bytes_needed};

use crate::buffer_layout::{BufferLayout, check_alignment};
use crate::e4m3::Scaling;
use crate::input::Input;
use crate::memory;
use crate::progress::Progress;
use crate::ranks_on_gpus;

/// Shared memory of a block, of the simulated GPU and of Hopper. What a GPU has less is found when the buffers are made.
const SHARED_MEMORY: u32 = 232_448;
/// Ranks where nobody says.
const RANKS: u32 = 8;
/// Tokens of a rank, elements of a row and experts where neither the command line nor a file says.
const TOKENS: usize = 128;
const HIDDEN: usize = 1024;
const EXPERTS: usize = 64;

const EXAMPLES: &str = "\
Examples:
  cargo run --release --example moe_layer
      8 simulated ranks, 128 tokens of the README each; needs no GPU
  cargo run --release --example moe_layer -- --text novel.txt --ranks 4 --format bf16
      another text, BF16 on the wire
  cargo run --release --example moe_layer -- --input layer.safetensors --top-k 6
      a real model's hidden states and router logits
  cargo run --release --example moe_layer -- --device cuda --tokens 4096 --hidden 7168 --experts 256
      8 ranks that share one NVIDIA GPU (sm_90 or newer), with bandwidths
  cargo run --release --example moe_layer -- --device cuda --gpus 0,1 --ranks 2 --tokens 4096 --hidden 7168
      one rank on each of two NVIDIA GPUs

Exit codes: 0 verified, 1 a run that failed or was not verified, 2 a bad option or input file.";

/// One mixture-of-experts layer, expert-parallel: router, dispatch, experts, combine, on simulated GPUs or real ones.
///
/// Tokens are dealt to the ranks in contiguous parts, every rank owns a contiguous range of the experts, and Epoxide moves
/// rows between them. What was communicated is compared bit for bit with a plain computation, and every output row with a
/// dense reference; the last line is `verified`, or says what is not.
#[derive(Debug, Parser)]
#[command(name = "moe_layer", after_help = EXAMPLES)]
pub struct Options {
    /// A text whose byte trigrams are the tokens, each with a fixed embedding [default: the repository's README.md]
    #[arg(long, value_name = "FILE", conflicts_with = "input", help_heading = "Input")]
    text: Option<PathBuf>,
    /// A safetensors file with hidden_states (BF16 [T, H]) and router_logits (F32 [T, E])
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    input: Option<PathBuf>,
    /// Ranks, 1 to 64 [default: 8, or as many as a launcher has made processes of]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    ranks: Option<u32>,
    /// Ranks that are processes.
    #[arg(skip)]
    pub found_ranks: Option<u32>,
    /// Tokens of each rank [default: 128, or what the input file has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    tokens: Option<u32>,
    /// Elements of a row: a multiple of 8, in FP8 of 16 [default: 1024, or what the input file has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    hidden: Option<u32>,
    /// Experts in all, 1 to 2048 [default: 64, or what the input file has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2048))]
    experts: Option<u32>,
    /// Experts that a token selects, 1 to 32
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub top_k: u32,
    /// Elements between an expert's two matrices
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub expert_width: u32,
    /// How rows travel in dispatch; combine is always BF16
    #[arg(long, value_enum, default_value_t = Format::Bf16)]
    pub format: Format,
    /// How rows lie where they are received
    #[arg(long, value_enum, default_value_t = BufferLayout::Compact)]
    layout: BufferLayout,
    /// Rows to which an expert's rows are padded, with `--layout expand` and `rank-major-expand`, or its part of the index, with `--layout rank-major` [default: 1]
    #[arg(long, value_name = "ROWS")]
    alignment: Option<u32>,
    /// Rows that a rank has room for, in slabs each expert; a routing that brings more is an error [default: all that can come]
    #[arg(long, value_name = "ROWS")]
    capacity: Option<u64>,
    /// What the kernels run on: simulated GPUs, one a rank, or NVIDIA GPUs
    #[arg(long, value_enum, default_value_t = Device::Sim)]
    pub device: Device,
    /// NVIDIA GPUs by number; ranks are dealt out to them in turn, and those of one GPU share it [default: 0, or a launcher's ranks in turn on all]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    gpus: Option<Vec<u32>>,
    /// Names the weights of the router and of the experts
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// SMs of an operation on each rank; 0 lets the device decide
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub num_sms: u32,
    /// How often to dispatch and combine: once with everything checked, then timed, results compared [default: 1, on cuda 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeat: Option<u32>,
    /// Flips one bit of one received row before it is checked: for the test that sees that this check can fail.
    #[arg(long, hide = true)]
    pub corrupt: bool,
}

/// The text that is read where none is named. The manifest is in `host/`, a folder of the repository.
fn readme() -> PathBuf {
    let host = Path::new(env!("CARGO_MANIFEST_DIR"));
    host.parent().unwrap_or(host).join("README.md")
}

/// [`WireFormat`] as an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// 16 bits an element
    Bf16,
    /// e4m3 with one f32 scale for every 128 elements, quantised while dispatching
    Fp8,
    /// e4m3 with one power of two for every 128 elements, quantised while dispatching
    Fp8Ue8m0,
    /// e4m3 with one power of two for every 32 elements, quantised while dispatching
    Mxfp8,
}

impl Format {
    /// How its rows are scaled, if they are.
    pub fn scaling(self) -> Option<Scaling> {
        match self {
            Self::Bf16 => None,
            Self::Fp8 => Some(Scaling::F32),
            Self::Fp8Ue8m0 => Some(Scaling::Ue8m0),
            Self::Mxfp8 => Some(Scaling::Mx),
        }
    }
}

/// What runs the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The simulated GPU, on the CPU
    Sim,
    /// An NVIDIA GPU
    Cuda,
}

impl Options {
    /// Checks what the options' own types do not say.
    ///
    /// # Errors
    ///
    /// For GPUs that no rank would run on, and an alignment of nothing.
    pub fn check(&self) -> Result<()> {
        let aligned = check_alignment(self.alignment, self.layout.pads());
        aligned.map_err(|error| anyhow::anyhow!(error))?;
        ranks_on_gpus::check_named(self.gpus.as_deref(), self.ranks(), self.device == Device::Cuda)
    }

    /// How many ranks the command line asks for.
    pub fn asked_ranks(&self) -> Option<u32> {
        self.ranks
    }

    /// Ranks in all.
    pub fn ranks(&self) -> u32 {
        self.found_ranks.or(self.ranks).unwrap_or(RANKS)
    }

    /// Reads or makes the input, with the shape that the options ask for.
    ///
    /// # Errors
    ///
    /// When the file is bad, contradicts an option, or the shape breaks one of the library's rules.
    pub fn load(&self, progress: &Progress) -> Result<Input> {
        let ranks = self.ranks() as usize;
        let Some(path) = &self.input else {
            let given = |option: Option<u32>, default: usize| option.map_or(default, |value| value as usize);
            let (tokens, hidden) = (given(self.tokens, TOKENS), given(self.hidden, HIDDEN));
            let experts = given(self.experts, EXPERTS);
            // Before gigabytes are made for a shape that cannot run.
            self.config(tokens * ranks, hidden, experts)?;
            self.check_memory(tokens * ranks, hidden, experts)?;
            let text = self.text.clone().unwrap_or_else(readme);
            progress.expect(tokens * ranks);
            return Input::from_text(&text, tokens * ranks, hidden, experts, progress);
        };
        let input = Input::from_safetensors(path)?;
        let options = [
            ("--tokens", self.tokens.map(|tokens| tokens as usize * ranks), input.tokens, "tokens on all ranks"),
            ("--hidden", self.hidden.map(|hidden| hidden as usize), input.hidden, "elements in a row"),
            ("--experts", self.experts.map(|experts| experts as usize), input.experts, "experts"),
        ];
        for (option, asked, found, what) in options {
            ensure!(
                asked.is_none_or(|asked| asked == found),
                "{option} asks for {} {what}, but {} has {found}; leave the option out",
                asked.unwrap_or_default(),
                path.display()
            );
        }
        self.config(input.tokens, input.hidden, input.experts)?;
        self.check_memory(input.tokens, input.hidden, input.experts)?;
        Ok(input)
    }

    /// The buffers' configuration, checked by the library's rules.
    ///
    /// # Errors
    ///
    /// The rule that it breaks.
    pub fn config(&self, tokens: usize, hidden: usize, experts: usize) -> Result<Config> {
        let max_tokens = tokens.div_ceil(self.ranks() as usize);
        let fits = |what: &str, value: usize| {
            u32::try_from(value).map_err(|_| anyhow::anyhow!("{value} {what} are more than 32 bits can count"))
        };
        let config = Config::new(
            fits("experts", experts)?,
            self.top_k,
            fits("elements in a row", hidden)?,
            fits("tokens on a rank", max_tokens)?,
        );
        let config = config.with_format(self.wire_format()).with_num_sms(self.num_sms);
        let config = self.layout.of(config, self.ranks(), self.alignment, self.capacity);
        // The rules do not depend on the number of SMs, which only the device knows when it is left open.
        bytes_needed(&config, self.ranks(), self.num_sms.max(1))?;
        config.check_row(self.ranks(), SHARED_MEMORY)?;
        Ok(config)
    }

    /// The format on the wire.
    pub fn wire_format(&self) -> WireFormat {
        match self.format {
            Format::Bf16 => WireFormat::Bf16,
            Format::Fp8 => WireFormat::Fp8,
            Format::Fp8Ue8m0 => WireFormat::Fp8Ue8m0,
            Format::Mxfp8 => WireFormat::Mxfp8,
        }
    }

    /// Refuses a layer that the host cannot hold.
    fn check_memory(&self, tokens: usize, hidden: usize, experts: usize) -> Result<()> {
        let config = self.config(tokens, hidden, experts)?;
        // Rows where they are received, at least: one of each token if all of its experts are on one rank, one for each of them, or all that
        // slabs hold.
        let rows = match config.layout_of_rows(self.ranks()) {
            Layout::Compact | Layout::RankMajor { .. } => tokens as u128,
            Layout::Slab { capacity } => experts as u128 * u128::from(capacity),
            _ => tokens as u128 * u128::from(self.top_k),
        };
        memory::check(tokens, hidden, experts, self.expert_width as usize, rows)
    }

    /// The GPUs that are named.
    pub fn gpus(&self) -> Option<&[u32]> {
        self.gpus.as_deref()
    }

    /// The GPU of every rank.
    pub fn gpu_of_ranks(&self) -> Vec<u32> {
        ranks_on_gpus::deal(self.gpus.as_deref(), self.ranks())
    }

    /// How often to dispatch and combine.
    pub fn passes(&self) -> usize {
        let default = match self.device {
            Device::Sim => 1,
            Device::Cuda => 10,
        };
        self.repeat.map_or(default, |repeat| repeat as usize)
    }
}
