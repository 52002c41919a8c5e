//! How rows lie in a buffer, and for how many there is room, as options say it: the same words in the command and in the examples, which
//! take this file too.
use clap::ValueEnum;
use epoxide::{Config, Layout, Packing};

/// The layouts that a buffer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BufferLayout {
    /// One row per token and rank, by source
    Compact,
    /// One row per token and rank, in a place that waits for no count: for few tokens, at low latency
    RankMajor,
    /// The same, laid by the receiver as in expand, each expert's rows from a multiple of --alignment on
    RankMajorExpand,
    /// The same, laid by the receiver in a slab for each expert, with room for all that can come
    RankMajorSlab,
    /// One row per token and expert, contiguous by expert, each expert's rows from a multiple of --alignment on
    #[value(alias = "expert-contiguous")]
    Expand,
    /// One row per token and expert, in a slab of --capacity rows for each expert
    Slab,
}

impl BufferLayout {
    /// Whether an expert's rows, or its part of the index, are padded to a multiple.
    pub fn pads(self) -> bool {
        matches!(self, Self::Expand | Self::RankMajor | Self::RankMajorExpand)
    }

    /// A configuration for `ranks` ranks with this layout: an expert's rows padded to multiples of `alignment`, or not at all; with room
    /// for `capacity` rows on a rank, in slabs for each expert, or for all that can come.
    pub fn of(self, config: Config, ranks: u32, alignment: Option<u32>, capacity: Option<u64>) -> Config {
        let mut config = config;
        (config.layout, config.capacity) = match self {
            Self::Compact => (Layout::Compact, capacity),
            Self::RankMajor | Self::RankMajorExpand | Self::RankMajorSlab => {
                (Layout::RankMajor { alignment: alignment.unwrap_or(1) }, capacity)
            }
            Self::Expand => (Layout::ExpertContiguous { alignment: alignment.unwrap_or(1) }, capacity),
            Self::Slab => {
                let all = u64::from(ranks) * u64::from(config.max_tokens_per_rank);
                // What has no 32 bits is no slab, which the library says.
                (Layout::Slab { capacity: u32::try_from(capacity.unwrap_or(all)).unwrap_or(u32::MAX) }, None)
            }
        };
        config.packing = match self {
            Self::RankMajorExpand => Packing::ExpertContiguous,
            Self::RankMajorSlab => Packing::Slab { capacity_per_source: config.max_tokens_per_rank },
            _ => Packing::None,
        };
        config
    }

    /// Whether it is for few tokens.
    #[allow(dead_code, reason = "not every program asks")]
    pub fn is_for_few(self) -> bool {
        matches!(self, Self::RankMajor | Self::RankMajorExpand | Self::RankMajorSlab)
    }
}

/// Refuses an alignment with which nothing would be aligned.
///
/// # Errors
///
/// That there is one, and no layout that has it.
pub fn check_alignment(alignment: Option<u32>, pads: bool) -> Result<(), &'static str> {
    if alignment.is_some() && !pads {
        return Err(
            "--alignment: only expanded layouts pad an expert's rows, and the rank-major one its index (--layout expand, rank-major-expand, or rank-major)",
        );
    }
    Ok(())
}
