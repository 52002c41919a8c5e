//! The index by expert of compact rows, behind each dispatch of a buffer that was asked for it.
use epoxide_dsl::memory::Global;
use epoxide_kernels::entries::index_rows;
use epoxide_kernels::expert_index::ExpertIndexArgs;

use crate::buffer::{ElasticBuffer, Slots};
use crate::error::Result;
use crate::handle::RecvCounts;

impl ElasticBuffer {
    /// Makes the index of what a dispatch in these slots brings, which has just been enqueued. It goes with the routing, so a replay has it already. Nothing
    /// where there is no such index.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`](crate::Error::Cuda) or [`Error::Simulator`](crate::Error::Simulator) when the device failed.
    pub(crate) fn index_rows(&self, slots: Slots) -> Result<()> {
        let (w, p, shape) = (&self.layouts.window, &self.layouts.private, &self.layouts.shape);
        if shape.expert_index == 0 {
            return Ok(());
        }
        let experts = self.local_experts().1;
        // SAFETY: the buffer's own memory, laid out for its shape.
        let args = unsafe {
            ExpertIndexArgs {
                topk: Global::from_raw(self.window_span(w.received.slot(shape, slots.row, slots.routing).topk)),
                received: Global::from_raw(self.private_slot(p.recv_counts, slots.routing)),
                offsets: Global::from_raw(self.private_slot(p.index_offsets, slots.routing)),
                index: Global::from_raw(self.private_slot(p.index, slots.routing)),
                ranks: shape.ranks,
                experts,
                top_k: shape.top_k,
                top_k_stride: shape.top_k_stride(),
                alignment: shape.expert_index,
                reserved: 0,
            }
        };
        let (inner, shared) = (self.comm.inner(), ExpertIndexArgs::shared_bytes(experts));
        // SAFETY: the kernel's launch contract: rows of a dispatch that is before it on the stream, and whose selections peers overwrite only when this
        // rank is in its next operation, behind it; an index for as many selections as those rows can have.
        unsafe { inner.runtime.launch(&index_rows, self.blocks, shared, &args, inner.stream) }
    }

    /// Counts with where each expert's part of the index begins, if compact rows have one.
    pub(crate) fn indexed(&self, mut counts: RecvCounts) -> RecvCounts {
        if let Some(alignment) = self.config.expert_index {
            let mut end = 0;
            counts.index_offsets = vec![end];
            counts.index_offsets.extend(counts.by_expert.iter().map(|rows| {
                end += rows.next_multiple_of(alignment);
                end
            }));
        }
        counts
    }
}
