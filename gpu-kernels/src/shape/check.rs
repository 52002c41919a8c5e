//! Which shapes there are layouts and kernels for.
use super::choices::{Layout, Packing, ScaleLayout, WireFormat};
use super::limits::{
    MAX_ALIGNMENT, MAX_BLOCKS, MAX_EXPERTS, MAX_HIDDEN, MAX_RANKS, MAX_ROUTING_SLOTS, MAX_ROW_BYTES, MAX_ROW_SLOTS,
    MAX_ROWS, MAX_SCALE_WORDS, MAX_TOKENS, MAX_TOP_K,
};
use super::numbers::Shape;
use super::rule::{Broken, Rule};

impl Shape {
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
