//! What is measured where the command line does not say: of a table, of a report, and of one on the simulated GPU.
use clap::Args;
use epoxide::LocalGroup;

use crate::buffer_layout::BufferLayout;
use crate::options::{Device, Format, Options};
use crate::report::Routing;

/// What the command line says of sizes.
#[derive(Clone, Debug, Args)]
pub struct Asked {
    /// Tokens of every rank; a list is a sweep. [default: 4096; of a report 1 to 8192]
    #[arg(long = "tokens", value_name = "TOKENS", value_delimiter = ',')]
    tokens: Option<Vec<u32>>,
    /// Elements of a row. [default: 7168]
    #[arg(long = "hidden", value_name = "HIDDEN")]
    hidden: Option<u32>,
    /// Experts in all. [default: 256]
    #[arg(long = "experts", value_name = "EXPERTS")]
    experts: Option<u32>,
    /// Experts of a token, without repetition. [default: 8]
    #[arg(long = "top-k", value_name = "TOP_K")]
    top_k: Option<u32>,
    /// Blocks of an operation on every rank; a list is a sweep. [default: 2,4,8,16; of a report 4 to 64]
    #[arg(long = "sms", value_name = "SMS", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    sms: Option<Vec<u32>>,
    /// Formats on the wire; a list is a sweep. [default: bf16,fp8]
    #[arg(long = "format", value_name = "FORMAT", value_enum, value_delimiter = ',')]
    format: Option<Vec<Format>>,
    /// How rows lie where they are received; a list is a sweep. [default: compact; of a report compact,rank-major,expand]
    #[arg(long = "layout", value_name = "LAYOUT", value_enum, value_delimiter = ',')]
    layout: Option<Vec<BufferLayout>>,
    /// How a report's tokens select experts; a list is a sweep. [default: uniform,zipf]
    #[arg(long = "routing", value_name = "ROUTING", value_enum, value_delimiter = ',', requires = "report")]
    routing: Option<Vec<Routing>>,
    /// Repetitions that are timed, after some that are not. [default: 15; of a report 1000 up to 512 tokens, 200 above]
    #[arg(long = "repeat", value_name = "REPEAT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repeat: Option<u32>,
}

/// What is measured where the command line does not say.
struct Usual {
    ranks: u32,
    tokens: &'static [u32],
    hidden: u32,
    experts: u32,
    top_k: u32,
    sms: &'static [u32],
    layout: &'static [BufferLayout],
    routing: &'static [Routing],
    /// Up to [`FEW`] tokens, and above.
    repeat: [u32; 2],
}

/// Most tokens of a small batch.
pub const FEW: u32 = 512;

/// Whether a layout is meant for so many tokens: rank-major rows are for few, and take room for all of every rank.
pub fn is_for(layout: BufferLayout, tokens: u32) -> bool {
    !layout.is_for_few() || tokens <= FEW
}

const TABLE: Usual = Usual {
    ranks: 8,
    tokens: &[4096],
    hidden: 7168,
    experts: 256,
    top_k: 8,
    sms: &[2, 4, 8, 16],
    layout: &[BufferLayout::Compact],
    routing: &[Routing::Uniform],
    repeat: [15; 2],
};
const REPORT: Usual = Usual {
    tokens: &[1, 8, 32, 128, 512, 2048, 4096, 8192],
    sms: &[4, 8, 16, 24, 32, 64],
    layout: &[BufferLayout::Compact, BufferLayout::RankMajor, BufferLayout::Expand],
    routing: &[Routing::Uniform, Routing::Zipf],
    repeat: [1000, 200],
    ..TABLE
};
const QUICK: Usual = Usual {
    tokens: &[1, 128, 4096],
    sms: &[8, 16, 64],
    layout: &[BufferLayout::Compact, BufferLayout::RankMajor],
    routing: &[Routing::Uniform],
    repeat: [300, 60],
    ..REPORT
};
/// The simulated GPU says nothing of times: only that the report can be made.
const SIMULATED: Usual =
    Usual { ranks: 2, tokens: &[1, 6], hidden: 128, experts: 8, top_k: 2, sms: &[1, 2], repeat: [3; 2], ..REPORT };

impl Options {
    /// Takes what the command line says, and the usual where it says nothing. `processes` are the ranks that a launcher has made.
    ///
    /// # Errors
    ///
    /// That there is no driver which says how many GPUs there are.
    pub fn settle(&mut self, processes: Option<u32>) -> epoxide::Result<()> {
        let usual = match (&self.report, self.device) {
            (None, _) => TABLE,
            (Some(_), Device::Sim) => SIMULATED,
            (Some(_), Device::Cuda) => {
                if self.quick {
                    QUICK
                } else {
                    REPORT
                }
            }
        };
        let Asked { tokens, hidden, experts, top_k, sms, format, layout, routing, repeat } = self.asked.clone();
        self.fewer_sms = sms.is_none();
        self.tokens = tokens.unwrap_or_else(|| usual.tokens.to_vec());
        self.hidden = hidden.unwrap_or(usual.hidden);
        self.experts = experts.unwrap_or(usual.experts);
        self.top_k = top_k.unwrap_or(usual.top_k);
        self.sms = sms.unwrap_or_else(|| usual.sms.to_vec());
        self.format = format.unwrap_or_else(|| vec![Format::Bf16, Format::Fp8]);
        self.layout = layout.unwrap_or_else(|| usual.layout.to_vec());
        self.routing = routing.unwrap_or_else(|| usual.routing.to_vec());
        self.repeat = repeat.map_or(usual.repeat, |repeat| [repeat; 2]);
        self.ranks = usual.ranks;
        if self.report.is_some() && self.device == Device::Cuda {
            if self.named_gpus().is_none() {
                self.found_gpus = Some((0..LocalGroup::gpus()?).collect());
            }
            self.ranks = self.gpus().len() as u32;
        }
        self.ranks = processes.or(self.asked_ranks).unwrap_or(self.ranks);
        Ok(())
    }

    /// Repetitions of a batch of so many tokens.
    pub fn repetitions(&self, tokens: u32) -> u32 {
        self.repeat[usize::from(tokens > FEW)]
    }
}
