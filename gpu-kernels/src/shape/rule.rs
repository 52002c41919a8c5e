//! What a shape's numbers must be, in words.
use super::choices::WireFormat;
use super::limits::{
    MAX_ALIGNMENT, MAX_BLOCKS, MAX_EXPERTS, MAX_HIDDEN, MAX_RANKS, MAX_ROUTING_SLOTS, MAX_ROW_BYTES, MAX_ROW_SLOTS,
    MAX_ROWS, MAX_SCALE_WORDS, MAX_TOKENS, MAX_TOP_K,
};

/// A rule that a shape breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The argument, by the name that it has where users give it.
    pub argument: &'static str,
    /// Its value.
    pub value: u32,
    /// The rule; `Display` says it in words.
    pub rule: Rule,
}

/// What a shape's numbers must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// 1 to [`MAX_RANKS`].
    Ranks,
    /// 1 to [`MAX_EXPERTS`].
    Experts,
    /// 1 to [`MAX_TOP_K`].
    TopK,
    /// At most the experts.
    TopKOfExperts {
        /// The experts.
        experts: u32,
    },
    /// 1 to [`MAX_HIDDEN`].
    Hidden,
    /// A row is a multiple of 16 bytes, in BF16 and on the wire; an opaque one has 16 to [`MAX_ROW_BYTES`].
    RowBytes {
        /// How rows travel.
        format: WireFormat,
    },
    /// 0 to [`MAX_SCALE_WORDS`].
    ScaleWords,
    /// 1 to [`MAX_TOKENS`].
    Tokens,
    /// Of the worst case there are such as 32 bits count.
    Rows,
    /// At least 1, and no more than are linked or can come.
    Capacity {
        /// Rows of the worst case.
        worst: u64,
    },
    /// At least 1, and all slabs of a rank together at most [`MAX_ROWS`].
    Slab {
        /// Most experts of a rank.
        experts: u32,
    },
    /// 1 to [`MAX_BLOCKS`].
    Blocks,
    /// 1 to [`MAX_ALIGNMENT`].
    Alignment,
    /// An index beside the rows is of compact ones.
    CompactIndex,
    /// 1 to [`MAX_ROUTING_SLOTS`].
    RoutingSlots,
    /// 1 to [`MAX_ROW_SLOTS`].
    RowSlots,
    /// Rows of fixed places have room for all of them.
    FixedPlaces,
    /// Where rows have fixed places, scales lie by row.
    ScalesByRow,
    /// 1 to the most tokens of a rank.
    PackedSlab {
        /// Those.
        max_tokens: u32,
    },
    /// Where rows have fixed places, as many as row slots.
    OneSlot {
        /// The row slots.
        row_slots: u32,
    },
    /// At least the row slots.
    RoutingOfRows {
        /// The row slots.
        row_slots: u32,
    },
}

impl core::fmt::Display for Rule {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Ranks => write!(f, "a buffer has 1 to {MAX_RANKS} ranks in one NVLink domain"),
            Self::Experts => write!(f, "there are 1 to {MAX_EXPERTS} experts"),
            Self::TopK => write!(f, "a token selects 1 to {MAX_TOP_K} experts"),
            Self::TopKOfExperts { experts } => write!(f, "a token cannot select more than the {experts} experts"),
            Self::Hidden => write!(f, "a row has 1 to {MAX_HIDDEN} elements"),
            Self::RowBytes { format: WireFormat::Bf16 } => {
                write!(f, "a row is a multiple of 16 bytes: hidden is a multiple of 8")
            }
            Self::RowBytes { format: WireFormat::Fp8 | WireFormat::Fp8Ue8m0 | WireFormat::Mxfp8 } => {
                write!(f, "a row is a multiple of 16 bytes on the wire: hidden is a multiple of 16 in FP8")
            }
            Self::RowBytes { format: WireFormat::Opaque { .. } } => {
                write!(f, "an opaque row is a multiple of 16 bytes, 16 to {MAX_ROW_BYTES}")
            }
            Self::ScaleWords => write!(f, "an opaque row has 0 to {MAX_SCALE_WORDS} words of scales"),
            Self::Tokens => write!(f, "1 to {MAX_TOKENS} tokens"),
            Self::Rows => write!(f, "32 bits count the rows of the worst case"),
            Self::Capacity { worst } => {
                let most = if *worst < MAX_ROWS { *worst } else { MAX_ROWS };
                write!(f, "a rank has room for 1 to {most} rows")
            }
            Self::Slab { experts } => {
                write!(
                    f,
                    "an expert's slab has at least 1 row, and those of a rank's {experts} experts, with all selections that can come, at most {MAX_ROWS}"
                )
            }
            Self::Blocks => write!(f, "an operation has 1 to {MAX_BLOCKS} blocks"),
            Self::Alignment => write!(f, "an expert's rows are padded to a multiple of 1 to {MAX_ALIGNMENT}"),
            Self::CompactIndex => write!(
                f,
                "compact rows have an index beside them: rank-major ones have one by themselves, and the others lie by expert"
            ),
            Self::RoutingSlots => write!(f, "a buffer has 1 to {MAX_ROUTING_SLOTS} routing slots"),
            Self::RowSlots => write!(f, "a buffer has 1 to {MAX_ROW_SLOTS} row slots"),
            Self::FixedPlaces => write!(f, "rows of fixed places (rank-major) have room for every token of every rank"),
            Self::ScalesByRow => {
                write!(f, "rows of fixed places (rank-major) have their scales by row (0, ScaleLayout::RowMajor)")
            }
            Self::PackedSlab { max_tokens } => {
                write!(
                    f,
                    "of a source rank's rows an expert's slab has room for 1 to max_tokens_per_rank = {max_tokens}"
                )
            }
            Self::OneSlot { row_slots } => write!(
                f,
                "where rows have fixed places (rank-major) a row slot is a routing slot too: as many as the {row_slots} row slots"
            ),
            Self::RoutingOfRows { row_slots } => {
                write!(
                    f,
                    "a routing slot for each of the {row_slots} row slots: every dispatch in flight has one of its own"
                )
            }
        }
    }
}
