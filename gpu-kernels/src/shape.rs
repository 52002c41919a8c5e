//! The numbers that every layout follows from, and the rules that they keep.
use crate::placement::Placement;
use crate::scale::{GROUP, MX_GROUP};

/// Most selections of a token: one lane each.
pub const MAX_TOP_K: u32 = 32;
/// Most experts.
pub const MAX_EXPERTS: u32 = 2048;
/// Most ranks.
pub const MAX_RANKS: u32 = 64;
/// Most elements of a row.
pub const MAX_HIDDEN: u32 = 1 << 20;
/// Most tokens that a rank dispatches at once: a bad selection's key has 24 bits for the token.
pub const MAX_TOKENS: u32 = (1 << 24) - 1;
/// Most blocks of an operation.
pub const MAX_BLOCKS: u32 = 1024;
/// Most rows of a rank: 32 bits count them.
pub const MAX_ROWS: u64 = u32::MAX as u64;
/// Largest multiple to which an expert's rows are padded.
pub const MAX_ALIGNMENT: u32 = 1024;
/// Most bytes of an opaque row: those of the longest row in BF16.
pub const MAX_ROW_BYTES: u32 = 2 * MAX_HIDDEN;
/// Most routings that a buffer keeps: entry words have 8 bits for the slot.
pub const MAX_ROUTING_SLOTS: u32 = 256;
/// Most row slots of a buffer.
pub const MAX_ROW_SLOTS: u32 = 64;
/// Most words of scales of an opaque row: one for every 16 elements of the longest.
pub const MAX_SCALE_WORDS: u32 = MAX_HIDDEN / 16;

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
        /// Bytes of a row: a multiple of 16, 16 to [`MAX_ROW_BYTES`].
        row_bytes: u32,
        /// 32-bit words of scales that go with a row: 0 to [`MAX_SCALE_WORDS`].
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
        /// Rows to whose multiples an expert's rows are padded: 1 to [`MAX_ALIGNMENT`].
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
        /// Entries to whose multiples an expert's part of the index is padded: 1 to [`MAX_ALIGNMENT`].
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

/// The numbers that the layout follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Ranks in the NVLink domain.
    pub ranks: u32,
    /// Experts in all.
    pub experts: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// Elements of an expert output, and of a row whose format has elements.
    pub hidden: u32,
    /// Most tokens that a rank dispatches at once.
    pub max_tokens: u32,
    /// Rows that a rank has room for: those of the worst case, [`Self::worst_rows`], or fewer, and then it is [bounded](Self::is_bounded).
    pub rows: u64,
    /// Blocks of a dispatch or combine.
    pub blocks: u32,
    /// How rows travel in dispatch.
    pub format: WireFormat,
    /// How rows lie where they are received.
    pub layout: Layout,
    /// Routings that are kept at once.
    pub routing_slots: u32,
    /// Dispatches whose rows may be there at once: each has a routing of its own, so no more than those.
    pub row_slots: u32,
    /// Whether combines may bring weights back, which takes a region for them.
    pub returned_weights: bool,
    /// How scales lie for who reads them, which may take a region for them.
    pub scale_layout: ScaleLayout,
    /// Whether combines may send what crosses between ranks in FP8, which takes a region where rows are compact.
    pub fp8_combine: bool,
    /// How rows of fixed places are laid for experts.
    pub packing: Packing,
    /// To what an expert's part of the index is padded that compact rows have; 0 where they have none.
    pub expert_index: u32,
}

impl Shape {
    /// Bytes of a row on the wire, without scales.
    pub const fn wire_row_bytes(&self) -> u64 {
        match self.format {
            WireFormat::Bf16 => self.hidden as u64 * 2,
            WireFormat::Fp8 | WireFormat::Fp8Ue8m0 | WireFormat::Mxfp8 => self.hidden as u64,
            WireFormat::Opaque { row_bytes, .. } => row_bytes as u64,
        }
    }
    /// Bytes of a BF16 row.
    pub const fn bf16_row_bytes(&self) -> u64 {
        self.hidden as u64 * 2
    }
    /// Bytes from one compact row to the next of those that a combine sends in FP8: e4m3, and an f32 scale for every 128; none where there are no such.
    pub const fn crossing_row_bytes(&self) -> u64 {
        match (self.layout, self.fp8_combine) {
            (Layout::Compact, true) => {
                let scales = self.hidden.div_ceil(GROUP) as u64 * 4;
                (self.hidden as u64 + scales).next_multiple_of(16)
            }
            _ => 0,
        }
    }
    /// Scales of a row, 32 bits each; none in BF16.
    pub const fn scale_words(&self) -> u32 {
        self.format.scale_words(self.hidden)
    }
    /// Words from one received row's scales to the next's: a multiple of 16 bytes.
    pub const fn scale_stride(&self) -> u32 {
        self.scale_words().div_ceil(4).saturating_mul(4)
    }
    /// The shape of rows as experts see them: that of a layout by expert where they are packed, and else this one.
    pub const fn seen(&self) -> Self {
        if !self.is_packed() {
            return *self;
        }
        let mut seen = *self;
        (seen.layout, seen.packing) = (self.layout.packed(self.packing, self.ranks), Packing::None);
        seen.rows = seen.worst_rows();
        seen
    }
    /// Whether rows of fixed places are packed.
    pub const fn is_packed(&self) -> bool {
        self.layout.is_rank_major() && !matches!(self.packing, Packing::None)
    }
    /// Rows of one matrix of scales by column: those that there is room for, or those of a slab, where each slab has a matrix.
    pub const fn scale_matrix_rows(&self) -> u64 {
        match self.layout {
            Layout::Slab { capacity } => capacity as u64,
            _ => self.rows,
        }
    }
    /// Words from one column of scales to the next: a multiple of 16 bytes.
    pub const fn scale_column_stride(&self) -> u64 {
        self.scale_matrix_rows().saturating_add(3) / 4 * 4
    }
    /// Columns of scales, of all matrices; none where scales lie by row.
    pub const fn scale_columns(&self) -> u64 {
        match (self.scale_layout, self.layout) {
            (ScaleLayout::RowMajor, _) => 0,
            (ScaleLayout::ColumnMajor, Layout::Slab { .. }) => {
                self.max_local_experts() as u64 * self.scale_words() as u64
            }
            (ScaleLayout::ColumnMajor, _) => self.scale_words() as u64,
        }
    }
    /// Words from one received row's selections (or gate weights) to the next's: a multiple of 16 bytes where a row has those of a token,
    /// 1 where it is of one selection.
    pub const fn top_k_stride(&self) -> u32 {
        if self.layout.is_by_expert() { 1 } else { self.top_k.next_multiple_of(4) }
    }
    /// Bytes of a row's weights that travel back: a word for each of its selections.
    pub const fn returned_row_bytes(&self) -> u64 {
        if self.returned_weights { self.top_k_stride() as u64 * 4 } else { 0 }
    }
    /// Tokens that a rank may hear of at once: every one of every rank.
    pub const fn worst_tokens(ranks: u32, max_tokens: u32) -> u64 {
        ranks as u64 * max_tokens as u64
    }
    /// The rows of the worst case: one for every token of every rank; or one for each of as many selections as a token can have on one rank,
    /// and what pads the rows of every expert but for one whole. Of slabs, what they hold.
    pub const fn worst_rows(&self) -> u64 {
        // Nothing overflows: of a shape that is not checked yet the numbers may be any.
        let experts = match self.experts.checked_div(self.ranks) {
            Some(all) => all + !self.experts.is_multiple_of(self.ranks) as u32,
            None => 0,
        };
        match self.layout {
            Layout::Compact | Layout::RankMajor { .. } => Self::worst_tokens(self.ranks, self.max_tokens),
            Layout::Slab { capacity } => experts as u64 * capacity as u64,
            Layout::ExpertContiguous { alignment } => {
                let padding = experts as u64 * (alignment.saturating_sub(1)) as u64;
                let rows = self.worst_selections(experts).saturating_add(padding);
                // Every expert's rows are a multiple, so all are.
                match rows.checked_div(alignment as u64) {
                    Some(multiples) => multiples * alignment as u64,
                    None => rows,
                }
            }
        }
    }
    /// Entries of the index by expert, where there is one: one for each selection of this rank's experts that rows may have, and what pads each expert's.
    pub const fn index_entries(&self) -> u64 {
        let (experts, alignment) = (self.max_local_experts(), self.index_alignment());
        if alignment == 0 {
            return 0;
        }
        let padding = experts as u64 * (alignment - 1) as u64;
        let of_row = if self.top_k < experts { self.top_k } else { experts };
        let (of_all, of_rows) = (self.worst_selections(experts), self.rows.saturating_mul(of_row as u64));
        (if of_rows < of_all { of_rows } else { of_all }).saturating_add(padding)
    }
    /// To what an expert's part of the index is padded; 0 where there is no index.
    const fn index_alignment(&self) -> u32 {
        match self.layout {
            Layout::RankMajor { alignment } => alignment,
            Layout::Compact => self.expert_index,
            _ => 0,
        }
    }
    /// Offsets of the index where they lie apart from the counts: those of compact rows.
    pub const fn index_offsets(&self) -> u64 {
        match (self.layout, self.expert_index) {
            (Layout::Compact, 1..) => self.max_local_experts() as u64 + 1,
            _ => 0,
        }
    }
    /// Most selections of so many experts of one rank.
    const fn worst_selections(&self, experts: u32) -> u64 {
        let of_token = if self.top_k < experts { self.top_k } else { experts };
        Self::worst_tokens(self.ranks, self.max_tokens).saturating_mul(of_token as u64)
    }
    /// Whether more rows may be sent to a rank, or an expert, than there is room for.
    pub const fn is_bounded(&self) -> bool {
        matches!(self.layout, Layout::Slab { .. }) || self.rows < self.worst_rows()
    }
    /// Counts that a rank with so many experts receives: rows in all, by source, by local expert; where rows lie by expert, where each
    /// expert's begin, and the end; where there is a bound, what became of it ([`crate::bound`]).
    pub const fn received_counts(&self, local_experts: u32) -> u32 {
        let bound = if self.is_bounded() { crate::bound::WORDS } else { 0 };
        self.told_counts(local_experts) + bound
    }

    /// Those of them that are known before the rows have landed.
    pub const fn told_counts(&self, local_experts: u32) -> u32 {
        let has_offsets = self.layout.is_by_expert() || self.layout.is_rank_major();
        let offsets = if has_offsets { local_experts + 1 } else { 0 };
        1 + self.ranks + local_experts + offsets
    }
    /// What a place is counted for: ranks, or experts where a row is of one selection.
    pub const fn keys(&self) -> u32 {
        if self.layout.is_by_expert() { self.experts } else { self.ranks }
    }
    /// Which rank owns which expert.
    pub const fn placement(&self) -> Placement {
        Placement::new(self.experts, self.ranks)
    }
    /// Most ranks that a token goes to.
    pub const fn ranks_of_token(&self) -> u32 {
        if self.ranks < self.top_k { self.ranks } else { self.top_k }
    }
    /// Most experts of one rank.
    pub const fn max_local_experts(&self) -> u32 {
        self.experts.div_ceil(self.ranks)
    }

    /// Checks that every number is in the range that the kernels can work with; the layouts are for such shapes.
    ///
    /// # Errors
    ///
    /// The first rule that is broken.
    pub const fn check(&self) -> Result<(), Broken> {
        const fn broken(argument: &'static str, value: u32, rule: Rule) -> Result<(), Broken> {
            Err(Broken { argument, value, rule })
        }
        if self.ranks == 0 || self.ranks > MAX_RANKS {
            return broken("ranks", self.ranks, Rule::Ranks);
        }
        if self.experts == 0 || self.experts > MAX_EXPERTS {
            return broken("experts", self.experts, Rule::Experts);
        }
        if self.top_k == 0 || self.top_k > MAX_TOP_K {
            return broken("top_k", self.top_k, Rule::TopK);
        }
        if self.top_k > self.experts {
            return broken("top_k", self.top_k, Rule::TopKOfExperts { experts: self.experts });
        }
        if self.hidden == 0 || self.hidden > MAX_HIDDEN {
            return broken("hidden", self.hidden, Rule::Hidden);
        }
        if let WireFormat::Opaque { row_bytes, scale_words } = self.format {
            // The expert outputs are in BF16 all the same.
            if !self.bf16_row_bytes().is_multiple_of(16) {
                return broken("hidden", self.hidden, Rule::RowBytes { format: WireFormat::Bf16 });
            }
            if row_bytes == 0 || row_bytes > MAX_ROW_BYTES || !row_bytes.is_multiple_of(16) {
                return broken("row_bytes", row_bytes, Rule::RowBytes { format: self.format });
            }
            if scale_words > MAX_SCALE_WORDS {
                return broken("scale_words", scale_words, Rule::ScaleWords);
            }
        }
        if !self.bf16_row_bytes().is_multiple_of(16) || !self.wire_row_bytes().is_multiple_of(16) {
            return broken("hidden", self.hidden, Rule::RowBytes { format: self.format });
        }
        if self.max_tokens == 0 || self.max_tokens > MAX_TOKENS {
            return broken("max_tokens_per_rank", self.max_tokens, Rule::Tokens);
        }
        if let Layout::ExpertContiguous { alignment } = self.layout
            && (alignment == 0 || alignment > MAX_ALIGNMENT)
        {
            return broken("alignment", alignment, Rule::Alignment);
        }
        if let Layout::RankMajor { alignment } = self.layout {
            if alignment == 0 || alignment > MAX_ALIGNMENT {
                return broken("alignment", alignment, Rule::Alignment);
            }
            if self.rows != self.worst_rows() {
                return broken("capacity", self.rows as u32, Rule::FixedPlaces);
            }
            if self.index_entries() > u32::MAX as u64 {
                return broken("max_tokens_per_rank", self.max_tokens, Rule::Rows);
            }
            if self.routing_slots != self.row_slots {
                return broken("routing_slots", self.routing_slots, Rule::OneSlot { row_slots: self.row_slots });
            }
            if !matches!(self.scale_layout, ScaleLayout::RowMajor) {
                return broken("scale_layout", 0, Rule::ScalesByRow);
            }
        }
        if let Packing::Slab { capacity_per_source } = self.packing
            && (capacity_per_source == 0 || capacity_per_source > self.max_tokens)
        {
            return broken(
                "capacity_per_source",
                capacity_per_source,
                Rule::PackedSlab { max_tokens: self.max_tokens },
            );
        }
        if self.is_packed() && self.seen().rows > MAX_ROWS {
            return broken("max_tokens_per_rank", self.max_tokens, Rule::Rows);
        }
        if let Layout::Slab { capacity } = self.layout
            && (capacity == 0
                || self.rows != self.worst_rows()
                // A place in a slab is counted beyond its end, where selections are dropped.
                || self.rows.saturating_add(self.worst_selections(self.max_local_experts())) > MAX_ROWS)
        {
            return broken("capacity", capacity, Rule::Slab { experts: self.max_local_experts() });
        }
        if self.expert_index > 0 {
            if !matches!(self.layout, Layout::Compact) {
                return broken("expert_index", self.expert_index, Rule::CompactIndex);
            }
            if self.expert_index > MAX_ALIGNMENT {
                return broken("expert_index", self.expert_index, Rule::Alignment);
            }
            if self.index_entries() > u32::MAX as u64 {
                return broken("max_tokens_per_rank", self.max_tokens, Rule::Rows);
            }
        }
        // Counts of what is sent are 32 bits wide too, whatever there is room for.
        let most = match self.layout {
            Layout::Compact | Layout::ExpertContiguous { .. } | Layout::RankMajor { .. } => self.worst_rows(),
            Layout::Slab { .. } => self.worst_selections(self.max_local_experts()),
        };
        if most > u32::MAX as u64 {
            return broken("max_tokens_per_rank", self.max_tokens, Rule::Rows);
        }
        if self.rows == 0 || self.rows > self.worst_rows() || self.rows > MAX_ROWS {
            let rows = if self.rows < u32::MAX as u64 { self.rows as u32 } else { u32::MAX };
            return broken("capacity", rows, Rule::Capacity { worst: self.worst_rows() });
        }
        if self.blocks == 0 || self.blocks > MAX_BLOCKS {
            return broken("num_sms", self.blocks, Rule::Blocks);
        }
        if self.routing_slots == 0 || self.routing_slots > MAX_ROUTING_SLOTS {
            return broken("routing_slots", self.routing_slots, Rule::RoutingSlots);
        }
        if self.row_slots == 0 || self.row_slots > MAX_ROW_SLOTS {
            return broken("row_slots", self.row_slots, Rule::RowSlots);
        }
        if self.routing_slots < self.row_slots {
            return broken("routing_slots", self.routing_slots, Rule::RoutingOfRows { row_slots: self.row_slots });
        }
        Ok(())
    }

    /// Whether [`Self::check`] finds nothing.
    pub const fn is_valid(&self) -> bool {
        self.check().is_ok()
    }
}

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
