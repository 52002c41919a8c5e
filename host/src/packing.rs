//! Rows of fixed places that are laid by expert in each dispatch or behind it, and whose outputs are summed in each combine or in front of it.
use epoxide_dsl::memory::Global;
use epoxide_kernels::combine::CombineArgs;
use epoxide_kernels::combine::reduce::ReduceArgs;
use epoxide_kernels::entries_packed::{
    combine_rank_major_packed, combine_rank_major_packed_gated, pack_rows, pack_rows_dropping, reduce_rows,
};
use epoxide_kernels::rank_major::lay::{PackArgs, Packed};
use epoxide_kernels::rank_major::packed::CombinePackedArgs;
use epoxide_kernels::rank_major::packing::DispatchPackedArgs;
use epoxide_kernels::shape::Shape;

use crate::buffer::{Dispatched, ElasticBuffer, Slots};
use crate::config::{Config, Layout, Packing};
use crate::dispatch::RawDispatchInput;
use crate::error::Result;
use crate::handle::RecvView;
use crate::runtime::Runtime;
use crate::tensor::read;

/// Loads what packs the rows of a buffer, if anything does.
///
/// # Errors
///
/// [`Error::Cuda`](crate::Error::Cuda).
pub(crate) fn prepare_packing(runtime: &Runtime, config: &Config, shape: &Shape) -> Result<()> {
    if !shape.is_packed() {
        return Ok(());
    }
    runtime.prepare(if drops(config, shape).is_some() { &pack_rows_dropping } else { &pack_rows }, 0)?;
    runtime.prepare(&combine_rank_major_packed, 0)?;
    if config.combine_options {
        runtime.prepare(&combine_rank_major_packed_gated, 0)?;
    }
    if config.combine_options || config.halves {
        runtime.prepare(&reduce_rows, 0)?;
    }
    Ok(())
}

/// How many rows of a source an expert keeps, where there may be more.
fn drops(config: &Config, shape: &Shape) -> Option<u32> {
    match config.packing {
        Packing::Slab { capacity_per_source } if capacity_per_source < shape.max_tokens => Some(capacity_per_source),
        _ => None,
    }
}

impl ElasticBuffer {
    /// The shape of rows as experts see them.
    pub(crate) fn seen(&self) -> Shape {
        self.layouts.shape.seen()
    }

    /// How rows lie for experts.
    pub(crate) fn seen_layout(&self) -> Layout {
        self.seen().layout
    }

    /// Where the experts' outputs of the rows in a row slot go.
    pub(crate) fn outputs_row(&self, row_slot: u32) -> u64 {
        match self.layouts.shape.is_packed() {
            true => self.private_row(self.layouts.private.packed.expert_out, row_slot),
            false => self.window_row(self.layouts.window.expert_out, row_slot),
        }
    }

    /// Lays the rows that a dispatch in these slots brings, which has just been enqueued and does not pack them, by expert. Nothing where rows are not packed.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`](crate::Error::Cuda) or [`Error::Simulator`](crate::Error::Simulator) when the device failed.
    pub(crate) fn pack(&self, slots: Slots) -> Result<()> {
        let shape = &self.layouts.shape;
        if !shape.is_packed() {
            return Ok(());
        }
        let (inner, args) = (self.comm.inner(), self.pack_args(slots));
        let kernel = if drops(&self.config, shape).is_some() { &pack_rows_dropping } else { &pack_rows };
        // SAFETY: the kernel's launch contract: rows of a dispatch that is before it on the stream, and which peers overwrite only when this
        // rank is in its combine or its next dispatch, behind it; room for all that can come.
        unsafe { inner.runtime.launch(kernel, self.blocks, 0, &args, inner.stream) }
    }

    /// What a dispatch takes that packs its rows.
    ///
    /// # Safety
    ///
    /// As [`Self::dispatch_raw`].
    pub(crate) unsafe fn dispatch_packed(&self, input: &RawDispatchInput, slots: Slots) -> DispatchPackedArgs {
        // SAFETY: the caller's promise.
        let dispatch = unsafe { self.dispatch_rank_major(input, slots) };
        DispatchPackedArgs { dispatch, pack: self.pack_args(slots) }
    }

    /// Where the rows in these slots are packed from and to.
    fn pack_args(&self, slots: Slots) -> PackArgs {
        let (w, p, shape) = (&self.layouts.window, &self.layouts.private, &self.layouts.shape);
        let (received, to) = (w.received.slot(shape, slots.row, slots.routing), &p.packed);
        // SAFETY: the buffer's own memory, laid out for its shape.
        unsafe {
            PackArgs {
                routing: Global::from_raw(self.private_slot(p.routing, slots.routing)),
                recv_counts: Global::from_raw(self.private_slot(p.recv_counts, slots.routing)),
                index: Global::from_raw(self.private_slot(p.index, slots.routing)),
                x: Global::from_raw(self.window_span(received.x)),
                scales: Global::from_raw(self.window_span(received.scales)),
                topk: Global::from_raw(self.window_span(received.topk)),
                weights: Global::from_raw(self.window_span(received.weights)),
                sources: Global::from_raw(self.window_span(received.source)),
                to: Packed {
                    x: Global::from_raw(self.private_row(to.x, slots.row)),
                    scales: Global::from_raw(self.private_row(to.scales, slots.row)),
                    experts: Global::from_raw(self.private_row(to.topk, slots.row)),
                    weights: Global::from_raw(self.private_row(to.weights, slots.row)),
                    sources: Global::from_raw(self.private_row(to.source, slots.row)),
                    counts: Global::from_raw(self.private_row(to.counts, slots.row)),
                    places: Global::from_raw(self.private_row(to.places, slots.row)),
                },
                // A row has no more than fit in a block's shared memory.
                row_bytes: shape.wire_row_bytes() as u32,
                scale_stride: shape.scale_stride(),
                top_k: shape.top_k,
                top_k_stride: shape.top_k_stride(),
                ranks: shape.ranks,
                max_tokens: shape.max_tokens,
                experts: self.local_experts().1,
                slab_rows: match self.seen_layout() {
                    Layout::Slab { capacity } => capacity,
                    _ => 0,
                },
                capacity_per_source: drops(&self.config, shape).unwrap_or(u32::MAX),
                zero_padding: self.config.zero_padding.into(),
            }
        }
    }

    /// Sums the outputs of packed rows in front of a combine in these slots that does not by itself, and is about to be enqueued. Nothing where rows are
    /// not packed.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`](crate::Error::Cuda) or [`Error::Simulator`](crate::Error::Simulator) when the device failed.
    pub(crate) fn reduce(&self, slots: Slots) -> Result<()> {
        if !self.layouts.shape.is_packed() {
            return Ok(());
        }
        let (inner, args) = (self.comm.inner(), self.reduce_args(slots));
        // SAFETY: the kernel's launch contract: what the dispatch and its packing left in the slot, both before it on the stream; its dispatch has lent the
        // region that it writes, which peers read behind the combine's entry words.
        unsafe { inner.runtime.launch(&reduce_rows, self.blocks, 0, &args, inner.stream) }
    }

    /// Launches a combine of packed rows in these slots that sums their outputs by itself, weighed if they are `gated`.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`](crate::Error::Cuda) or [`Error::Simulator`](crate::Error::Simulator) when the device failed.
    ///
    /// # Safety
    ///
    /// As [`Self::combine_raw`], of which `pull` is.
    pub(crate) unsafe fn combine_packed(&self, pull: CombineArgs, slots: Slots, gated: bool) -> Result<()> {
        let (inner, max_tokens) = (self.comm.inner(), self.layouts.shape.max_tokens);
        let (combine, reduce) = (self.rank_major(pull, slots), self.reduce_args(slots));
        let args = CombinePackedArgs { combine, reduce, max_tokens, reserved: 0 };
        let kernel = if gated { &combine_rank_major_packed_gated } else { &combine_rank_major_packed };
        // SAFETY: the kernel's launch contract: as of a combine of rows in fixed places, and as in `reduce`.
        unsafe { inner.runtime.launch(kernel, self.blocks, 0, &args, inner.stream) }
    }

    /// What sums the outputs of packed rows.
    fn reduce_args(&self, slots: Slots) -> ReduceArgs {
        let (w, p, shape) = (&self.layouts.window, &self.layouts.private, &self.layouts.shape);
        let received = w.received.slot(shape, slots.row, slots.routing);
        // SAFETY: the buffer's own memory, laid out for its shape.
        unsafe {
            ReduceArgs {
                routing: Global::from_raw(self.private_slot(p.routing, slots.routing)),
                topk: Global::from_raw(self.window_span(received.topk)),
                weights: Global::from_raw(self.window_span(received.weights)),
                places: Global::from_raw(self.private_row(p.packed.places, slots.row)),
                outputs: Global::from_raw(self.outputs_row(slots.row)),
                expert_out: Global::from_raw(self.window_row(w.expert_out, slots.row)),
                // Checked shapes have as many as 32 bits count.
                rows: shape.rows as u32,
                top_k: shape.top_k,
                top_k_stride: shape.top_k_stride(),
                hidden: shape.hidden,
            }
        }
    }

    /// Where the packed rows in a row slot lie: as those of a layout by expert.
    pub(crate) fn packed_view(&self, row_slot: u32) -> RecvView {
        let (of, shape) = (&self.layouts.private.packed, self.seen());
        let row = |span| self.private_row(span, row_slot);
        RecvView {
            x: row(of.x),
            scales: row(of.scales),
            scale_stride: shape.scale_stride(),
            scale_columns: 0,
            scale_column_stride: 0,
            topk_idx: row(of.topk),
            topk_weights: row(of.weights),
            top_k_stride: shape.top_k_stride(),
            sources: row(of.source),
            counts: row(of.counts),
            index: 0,
            index_offsets: 0,
            expert_outputs: row(of.expert_out),
            returned_weights: 0,
            max_rows: shape.rows,
        }
    }

    /// How many selections of this rank's experts were dropped in the packing of a dispatch that is done, of which each expert has `kept` so many.
    pub(crate) fn dropped_by_packing(&self, handle: &Dispatched, kept: &[u32]) -> Result<u32> {
        if drops(&self.config, &self.layouts.shape).is_none() {
            return Ok(0);
        }
        let counts = self.private_slot(self.layouts.private.recv_counts, handle.slot);
        let of_experts = counts + 4 * u64::from(1 + self.comm.size());
        // SAFETY: the buffer's own words, which its layout has room for, and which this rank's dispatch alone writes.
        let came: Vec<u32> = unsafe { read(&self.comm, of_experts, kept.len() as u64)? };
        Ok(came.iter().sum::<u32>().saturating_sub(kept.iter().sum()))
    }
}
