//! What is enqueued in front of an operation where ranks are masked.
use epoxide_dsl::memory::Global;
use epoxide_dsl::window::Region;
use epoxide_kernels::entries::{stand_in, without_masked};
use epoxide_kernels::stand_in::{StandInArgs, WithoutMaskedArgs};
use epoxide_kernels::words::{BlockFlags, CountMatrix, Flags, Kind, Landings};

use crate::buffer::{ElasticBuffer, MASK, Masked, Slots};
use crate::config::BEFORE_SELECTIONS;
use crate::dispatch::{IndexType, RawDispatchInput};
use crate::error::Result;

impl ElasticBuffer {
    /// The masked ranks, if there is something in front of operations because of them: there are some, or graphs are to be ready for them.
    pub(crate) fn stands_in(&self) -> Option<&Masked> {
        self.masked.as_ref().filter(|masked| masked.ranks != 0 || self.config.graphs_across_masks)
    }

    /// Enqueues what an operation needs in front of it where ranks are masked: their words.
    pub(crate) fn stand_in(&self, kind: Kind, slots: Slots) -> Result<()> {
        let Some(masked) = self.stands_in() else { return Ok(()) };
        let (w, p, shape) = (&self.layouts.window, &self.layouts.private, &self.layouts.shape);
        // SAFETY: the buffer's own memory, laid out for its shape.
        let args = unsafe {
            StandInArgs {
                op: self.operation(kind, slots),
                dispatches: Global::from_raw(self.private_row(p.dispatches, slots.row)),
                routing: Global::from_raw(self.private_slot(p.routing, slots.routing)),
                landed: Flags::new(Region::new(self.row_offset(w.landed, slots.row))),
                counts: CountMatrix::new(Region::new(self.row_offset(w.counts, slots.row)), shape.ranks, shape.experts),
                blocks: BlockFlags::new(Region::new(self.row_offset(w.blocks, slots.row))),
                tokens: Region::new(w.tokens.slot(slots.routing, shape.routing_slots).offset),
                masked: Global::from_raw(masked.memory + MASK),
                kind: kind as u32,
                // Compact rows that cross in FP8 have words of blocks too.
                by_expert: (shape.layout.is_by_expert()
                    || matches!(kind, Kind::CombineFp8 | Kind::CombineFp8Returning))
                .into(),
                landings: Landings::new(Region::new(self.row_offset(w.landings, slots.row))),
                selections: self.selection_words(slots),
                rank_major: shape.layout.is_rank_major().into(),
                reserved: 0,
            }
        };
        let inner = self.comm.inner();
        // SAFETY: the kernel's launch contract: the rank's own windows, laid out for its shape; the operation comes behind it, as it has its
        // turn, with as many blocks; masked ranks' processes have ended, or have other windows.
        unsafe { inner.runtime.launch(&stand_in, self.blocks, 0, &args, inner.stream) }
    }

    /// The input of a dispatch without selections of masked ranks' experts: enqueues what copies them. The dispatch has its turn.
    ///
    /// # Safety
    ///
    /// As [`Self::dispatch_raw`].
    pub(crate) unsafe fn without_masked(&self, input: &RawDispatchInput) -> Result<RawDispatchInput> {
        let Some(masked) = self.stands_in() else { return Ok(*input) };
        let shape = &self.layouts.shape;
        let kept = masked.memory + BEFORE_SELECTIONS;
        // SAFETY: the buffer's own memory, with room for the most tokens; the selections are the caller's promise.
        let args = unsafe {
            WithoutMaskedArgs {
                topk_idx: Global::from_raw(input.topk_idx),
                kept: Global::from_raw(kept),
                dropped: Global::from_raw(masked.memory),
                selections: u64::from(input.tokens) * u64::from(shape.top_k),
                masked: Global::from_raw(masked.memory + MASK),
                placement: shape.placement(),
                index_type: input.index_type.kind(),
                reserved: 0,
            }
        };
        let inner = self.comm.inner();
        // SAFETY: the kernel's launch contract: `tokens` were checked, and of the dispatch before this one is behind in its turn.
        unsafe { inner.runtime.launch(&without_masked, self.blocks, 0, &args, inner.stream)? };
        Ok(RawDispatchInput { topk_idx: kept, index_type: IndexType::I32, ..*input })
    }
}
