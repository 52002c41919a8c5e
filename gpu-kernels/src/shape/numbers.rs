//! A shape: the numbers, and what follows from them.
use super::choices::{Layout, Packing, ScaleLayout, WireFormat};
use crate::placement::Placement;
use crate::scale::GROUP;

/// So many selections a dispatch packs itself.
pub(crate) const MOST_PACKED_SELECTIONS: u32 = 2048;

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
    /// Whether a whole dispatch packs its rows itself: not where so many selections can come that a kernel behind it is faster. The receiving block alone finds their
    /// places, four for each of its threads; of 8192 that took longer than a launch behind it, whose warps find them: `docs/performance/ways.md` has both.
    pub const fn packs_itself(&self) -> bool {
        self.is_packed() && self.rows * self.top_k as u64 <= MOST_PACKED_SELECTIONS as u64
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
    pub(super) const fn worst_selections(&self, experts: u32) -> u64 {
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
}
