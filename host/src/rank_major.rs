//! Where rows have fixed places: what its kernels take, and which places hold a row.
use epoxide_dsl::memory::Global;
use epoxide_dsl::window::Region;
use epoxide_kernels::combine::CombineArgs;
use epoxide_kernels::rank_major::{CombineRankMajorArgs, DispatchRankMajorArgs};
use epoxide_kernels::words::{Kind, Landings, SelectionWords};
use half::bf16;

use crate::buffer::{Dispatched, ElasticBuffer, Slots};
use crate::dispatch::{RawDispatchInput, alignment};
use crate::error::{Error, Result};
use crate::places::places;
use crate::tensor::{read, reserve};

impl ElasticBuffer {
    /// What a dispatch takes.
    ///
    /// # Safety
    ///
    /// As [`Self::dispatch_raw`].
    pub(crate) unsafe fn dispatch_rank_major(&self, input: &RawDispatchInput, slots: Slots) -> DispatchRankMajorArgs {
        let (w, p, shape) = (&self.layouts.window, &self.layouts.private, &self.layouts.shape);
        let [send_rank, send_row] = self.handle_slot(slots.routing);
        // SAFETY: the buffer's own memory, laid out for its shape; the inputs are the caller's promise.
        unsafe {
            DispatchRankMajorArgs {
                op: self.operation(Kind::Dispatch, slots),
                recv: w.received.slot(shape, slots.row, slots.routing).regions(),
                dispatches: Global::from_raw(self.private_row(p.dispatches, slots.row)),
                freed: Global::from_raw(self.private_row(p.freed, slots.row)),
                landings: Landings::new(Region::new(self.row_offset(w.landings, slots.row))),
                selections: self.selection_words(slots),
                rows: input.rows.args(shape),
                topk_idx: Global::from_raw(input.topk_idx),
                topk_weights: Global::from_raw(input.topk_weights),
                routing: Global::from_raw(self.private_slot(p.routing, slots.routing)),
                send_rank: Global::from_raw(send_rank),
                send_row: Global::from_raw(send_row),
                recv_counts: Global::from_raw(self.private_slot(p.recv_counts, slots.routing)),
                index: Global::from_raw(self.private_slot(p.index, slots.routing)),
                placement: shape.placement(),
                shared: self.shared,
                tokens: input.tokens,
                max_tokens: shape.max_tokens,
                top_k: shape.top_k,
                index_type: input.index_type.kind(),
                top_k_stride: shape.top_k_stride(),
                alignment: alignment(shape),
                reserved: 0,
            }
        }
    }

    /// The words that say which experts tokens select.
    pub(crate) fn selection_words(&self, slots: Slots) -> SelectionWords {
        let (w, shape) = (&self.layouts.window, &self.layouts.shape);
        let region = |span| Region::new(self.row_offset(span, slots.row));
        SelectionWords::new(region(w.selection_words), region(w.token_words), shape.max_tokens, shape.top_k)
    }

    /// What a combine takes.
    pub(crate) fn rank_major(&self, pull: CombineArgs, slots: Slots) -> CombineRankMajorArgs {
        let freed = self.private_row(self.layouts.private.freed, slots.row);
        // SAFETY: the buffer's own memory, laid out for its shape.
        let freed = unsafe { Global::from_raw(freed) };
        CombineRankMajorArgs { pull, freed, frees: (!slots.keeps).into(), reserved: 0 }
    }

    /// The routing slot that goes with a row slot, where one was `named` or not.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for another.
    pub(crate) fn routing_of_row(&self, row_slot: u32, named: Option<u32>) -> Result<u32> {
        match named.filter(|slot| *slot != row_slot) {
            Some(slot) => {
                let rule = format!("where rows have fixed places (rank-major) that of the row slot, here {row_slot}");
                Err(Error::argument("routing_slot", slot, rule))
            }
            None => Ok(row_slot),
        }
    }

    /// Expert outputs of received rows, in their order, spread to the places of those; what no row has is zero.
    pub(crate) fn spread(&self, handle: &Dispatched, rows: &[bf16]) -> Result<Vec<bf16>> {
        let (hidden, shape) = (self.config.hidden as usize, &self.layouts.shape);
        let view = self.recv_view(handle)?;
        let selections = shape.rows * u64::from(shape.top_k_stride());
        // SAFETY: the region of received selections, with so many words in this slot, which no peer writes now.
        let topk: Vec<i32> = unsafe { read(&self.comm, view.topk_idx, selections)? };
        let mut spread = Vec::new();
        reserve("expert outputs", shape.rows * u64::from(shape.hidden), &mut spread)?;
        spread.resize(shape.rows as usize * hidden, bf16::ZERO);
        let held = places(&topk, shape.top_k_stride() as usize);
        for (place, row) in held.into_iter().zip(rows.chunks_exact(hidden)) {
            spread[place * hidden..(place + 1) * hidden].copy_from_slice(row);
        }
        Ok(spread)
    }
}
