//! The scales of received rows by column, behind each dispatch of a buffer that was asked for them.
use epoxide_dsl::memory::Global;
use epoxide_kernels::entries::lay_scale_columns;
use epoxide_kernels::scale_columns::ScaleColumnsArgs;

use crate::buffer::{ElasticBuffer, Slots};
use crate::config::Layout;
use crate::error::Result;

impl ElasticBuffer {
    /// Lays the scales that a dispatch in these slots brings, which has just been enqueued, by column. Nothing where they lie by row.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`](crate::Error::Cuda) or [`Error::Simulator`](crate::Error::Simulator) when the device failed.
    pub(crate) fn lay_scale_columns(&self, slots: Slots) -> Result<()> {
        let (w, p, shape) = (&self.layouts.window, &self.layouts.private, &self.layouts.shape);
        if shape.scale_columns() == 0 {
            return Ok(());
        }
        let received = w.received.slot(shape, slots.row, slots.routing);
        let experts = if shape.layout.is_by_expert() { self.window_span(received.topk) } else { 0 };
        // SAFETY: the buffer's own memory, laid out for its shape; where no row pads, an absent address that is not read.
        let args = unsafe {
            ScaleColumnsArgs {
                scales: Global::from_raw(self.window_span(received.scales)),
                experts: Global::from_raw(experts),
                received: Global::from_raw(self.private_slot(p.recv_counts, slots.routing)),
                columns: Global::from_raw(self.private_row(p.scale_columns, slots.row)),
                column_stride: shape.scale_column_stride(),
                slab_rows: match shape.layout {
                    Layout::Slab { capacity } => capacity,
                    _ => 0,
                },
                words: shape.scale_words(),
                scale_stride: shape.scale_stride(),
                zero_padding: self.config.zero_padding.into(),
            }
        };
        let inner = self.comm.inner();
        // SAFETY: the kernel's launch contract: rows of a dispatch that is before it on the stream, and which peers overwrite only when this
        // rank is in its next operation, behind it; columns for as many rows as the layout has room for.
        unsafe { inner.runtime.launch(&lay_scale_columns, self.blocks, 0, &args, inner.stream) }
    }
}
