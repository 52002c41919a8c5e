//! What is chosen of a buffer: how rows travel, how they lie, and what becomes of those for which there is no room.
use crate::scale::{GROUP, MX_GROUP};

/// How a row travels in dispatch. Combine is in BF16, whatever this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WireFormat {
    /// BF16, as the caller gave it.
    Bf16,
    /// e4m3 with one f32 scale for every 128 elements: quantised by the kernel from BF16, or brought by the caller.
    Fp8,
    /// e4m3 with one UE8M0 scale, a power of two, for every 128 elements, packed by four into words: quantised by the kernel from BF16, or brought
    /// by the caller.
    Fp8Ue8m0,
    /// MXFP8: e4m3 with one UE8M0 scale for every 32 elements, packed by four into words: quantised by the kernel from BF16, or brought by the
    /// caller.
    Mxfp8,
    /// Bytes and words of scales that the caller brings and nobody here looks into: NVFP4, scales of a kind that no other format has, and so on.
    Opaque {
        /// Bytes of a row: a multiple of 16, 16 to [`MAX_ROW_BYTES`](super::MAX_ROW_BYTES).
        row_bytes: u32,
        /// 32-bit words of scales that go with a row: 0 to [`MAX_SCALE_WORDS`](super::MAX_SCALE_WORDS).
        scale_words: u32,
    },
}

impl WireFormat {
    /// Whether rows are e4m3 with scales that are known here, and so may be quantised by the kernel.
    pub const fn is_e4m3(self) -> bool {
        matches!(self, Self::Fp8 | Self::Fp8Ue8m0 | Self::Mxfp8)
    }

    /// Scales of a row of `hidden` elements, in words of 32 bits: f32, or four UE8M0, or what the caller brings; none in BF16.
    pub const fn scale_words(self, hidden: u32) -> u32 {
        match self {
            Self::Bf16 => 0,
            Self::Fp8 => hidden.div_ceil(GROUP),
            Self::Fp8Ue8m0 => hidden.div_ceil(4 * GROUP),
            Self::Mxfp8 => hidden.div_ceil(4 * MX_GROUP),
            Self::Opaque { scale_words, .. } => scale_words,
        }
    }
}

/// How rows lie where they are received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Layout {
    /// One row for each token and rank, by source rank, then token.
    #[default]
    Compact,
    /// One row for each selection, by expert, then source rank, then token: what a grouped GEMM reads. Every expert's rows begin at a
    /// multiple of `alignment`.
    ExpertContiguous {
        /// Rows to whose multiples an expert's rows are padded: 1 to [`MAX_ALIGNMENT`](super::MAX_ALIGNMENT).
        alignment: u32,
    },
    /// One row for each selection, in a slab for each expert: the rows of a rank's expert number `e` begin at `e * capacity`, by source
    /// rank, then token. What lies behind them in the slab pads.
    Slab {
        /// Rows of a slab: at least 1.
        capacity: u32,
    },
    /// For few tokens, the low-latency one: one row for each token and rank, as in [`Self::Compact`], in a place that waits for no count: that of a
    /// source rank's token is `rank * max_tokens + token`, `[ranks][max_tokens]` of them, of which those hold a row whose token selects an expert
    /// here. An index tells the rows of each expert, whose entries begin at a multiple of `alignment`.
    RankMajor {
        /// Entries to whose multiples an expert's part of the index is padded: 1 to [`MAX_ALIGNMENT`](super::MAX_ALIGNMENT).
        alignment: u32,
    },
}

impl Layout {
    /// Whether a row is of one selection, and rows lie by expert.
    pub const fn is_by_expert(self) -> bool {
        matches!(self, Self::ExpertContiguous { .. } | Self::Slab { .. })
    }

    /// Whether each expert has a slab.
    pub const fn is_slab(self) -> bool {
        matches!(self, Self::Slab { .. })
    }

    /// How rows of this layout lie for the experts of one of `ranks` ranks that packs them so.
    pub const fn packed(self, packing: Packing, ranks: u32) -> Self {
        match (self, packing) {
            (Self::RankMajor { alignment }, Packing::ExpertContiguous) => Self::ExpertContiguous { alignment },
            (Self::RankMajor { .. }, Packing::Slab { capacity_per_source }) => {
                Self::Slab { capacity: ranks.saturating_mul(capacity_per_source) }
            }
            _ => self,
        }
    }

    /// Whether rows have fixed places, by source rank, then token.
    pub const fn is_rank_major(self) -> bool {
        matches!(self, Self::RankMajor { .. })
    }
}

/// How rows that came to fixed places are laid for experts, on the receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Packing {
    /// Not: experts find their rows by the index.
    #[default]
    None,
    /// As in [`Layout::ExpertContiguous`], with the alignment of the [index](Layout::RankMajor).
    ExpertContiguous,
    /// As in [`Layout::Slab`]: a slab of `ranks * capacity_per_source` rows for each expert, filled from its beginning.
    Slab {
        /// Most rows of an expert that are of one source rank: 1 to the most tokens of one.
        capacity_per_source: u32,
    },
}

/// How the scales of received rows lie for who reads them. They travel row by row in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScaleLayout {
    /// As they travelled: a row's scales side by side, rows a multiple of 16 bytes apart.
    #[default]
    RowMajor,
    /// A column of all rows for each scale, columns a multiple of 16 bytes apart: what a GEMM that loads by TMA reads. Columns are as long as the rows
    /// that there is room for. In slabs each expert has such columns of its own.
    ColumnMajor,
}

/// What becomes of rows for which there is no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Overflow {
    /// The dispatch moves no row, and every rank is told the same.
    #[default]
    Error,
    /// An expert's last selections are dropped, by source rank, then token; they are counted, and add nothing in combine.
    Drop,
}
