//! Combine: enqueues one, with what the host can see checked before.
use epoxide_dsl::memory::{Global, Optional};
use epoxide_dsl::window::Region;
use epoxide_kernels::combine::{
    CombineArgs, CombineByExpertArgs, CombineByExpertWithArgs, CombineFp8Args, CombineOptions, CombineWithArgs,
    UNKNOWN_OUTPUTS,
};
use epoxide_kernels::entries::{
    combine, combine_by_expert, combine_by_expert_fp8, combine_by_expert_fp8_gated, combine_by_expert_gated,
    combine_by_expert_with, combine_fp8, combine_with, lend,
};
use epoxide_kernels::entries_rank_major::combine_rank_major;
use epoxide_kernels::layout::Span;
use epoxide_kernels::lend::LendArgs;
use epoxide_kernels::words::{BlockFlags, Kind};
use half::bf16;

use crate::buffer::{Dispatched, ElasticBuffer, RowSlot, Slots, State};
use crate::combine_input::{Checked, CombineInput, RawCombineInput};
use crate::error::{Error, Result};
use crate::expert_outputs::ExpertOutputs;
use crate::slice::{DeviceSlice, check_address, check_rank};
use crate::tensor::as_bytes;

impl ElasticBuffer {
    /// Lends the expert output region back after a combine, before the next dispatch has completed: for outputs that do not
    /// depend on it. Enqueues a wait until every peer has read the combine's rows; returns the address of BF16
    /// `[max_rows, hidden]`, which work on the rank's stream may write from there on. Not collective.
    ///
    /// With several [row slots](crate::Config::with_row_slots) it is the region of the next free one in turn, which the next dispatch takes if it names
    /// none and no other has become free until then, by a combine or a release.
    ///
    /// # Errors
    ///
    /// [`Error::WrongOrder`] between a dispatch and its combine, when the region is lent already, or every slot's is; the fault of an earlier
    /// operation, or [`Error::Poisoned`].
    pub fn lend_expert_outputs(&mut self) -> Result<u64> {
        self.begin()?;
        if self.config.layout.is_rank_major() {
            let rule = "in Layout::RankMajor no word says that a combine's rows were read: the next dispatch into the slot lends the region";
            return Err(Error::WrongOrder { call: "lend_expert_outputs", state: self.rows.to_string(), rule });
        }
        let Some(row) = self.rows.next_idle() else {
            let rule = "the dispatch has lent the region; see RecvView::expert_outputs";
            return Err(Error::WrongOrder { call: "lend_expert_outputs", state: self.rows.to_string(), rule });
        };
        let args = LendArgs { op: self.operation(Kind::Lend, Slots { row, routing: 0, keeps: false }) };
        let inner = self.comm.inner();
        self.take_turn()?;
        // SAFETY: the kernel's launch contract: the buffer's own windows and flags; before the first combine both epochs are 0.
        unsafe { inner.runtime.launch(&lend, 1, 0, &args, inner.stream)? };
        if self.config.poison_expert_outputs {
            self.poison_expert_outputs(row)?;
        }
        // Not before: where something was not enqueued, the caller asks again, which the device takes as the first time.
        let slot = self.rows.of_mut(row);
        slot.lent_early = true;
        slot.outputs = None;
        Ok(self.window_row(self.layouts.window.expert_out, row))
    }

    /// Copies expert outputs from a tensor of the caller's or a part of one, BF16 `[rows, hidden]`, to the region that `handle`'s
    /// dispatch has lent. Enqueued. ([`ExpertOutputs`] compares the ways.)
    ///
    /// There is one for every received row, in their order; rows beyond those are not read. Where the host does not know yet how many
    /// there are, the combine sees on the device that they are too few.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when they are not whole rows at a multiple of 16 bytes, too many, or fewer than the received ones, if the
    /// host has read their number; [`Error::StaleHandle`], [`Error::WrongOrder`] after the combine; the fault of an earlier operation, or
    /// [`Error::Poisoned`].
    pub fn stage_expert_outputs<'a>(
        &mut self,
        handle: &Dispatched,
        rows: impl Into<DeviceSlice<'a, bf16>>,
    ) -> Result<()> {
        self.begin()?;
        self.check_handle("stage_expert_outputs", handle)?;
        self.stage(handle.row_slot, rows.into())
    }

    /// [`Self::stage_expert_outputs`] for the next dispatch, to the region that [`Self::lend_expert_outputs`] has lent.
    ///
    /// # Errors
    ///
    /// [`Error::WrongOrder`] when it has not; [`Error::InvalidArgument`] when they are not whole rows at a multiple of 16 bytes, or too
    /// many; the fault of an earlier operation, or [`Error::Poisoned`].
    pub fn stage_lent_expert_outputs<'a>(&mut self, rows: impl Into<DeviceSlice<'a, bf16>>) -> Result<()> {
        self.begin()?;
        let Some(row) = self.rows.next_lent() else {
            let rule =
                "lend_expert_outputs comes before; for a dispatch that was made, stage_expert_outputs takes its handle";
            return Err(Error::WrongOrder { call: "stage_lent_expert_outputs", state: self.rows.to_string(), rule });
        };
        self.stage(row, rows.into())
    }

    /// Copies expert outputs to the region of a row slot, which is lent.
    pub(crate) fn stage(&mut self, row: u32, rows: DeviceSlice<'_, bf16>) -> Result<()> {
        check_rank("expert outputs", rows, &self.comm)?;
        check_address("expert outputs", rows.address())?;
        let outputs = self.check_rows(rows.len())?;
        if let Some(received) = self.rows_to_be_covered(row).filter(|&received| outputs < received) {
            return Err(self.too_few_outputs(row, outputs, received));
        }
        let inner = self.comm.inner();
        let to = self.outputs_row(row);
        // SAFETY: whole rows that the region holds, as just checked, from a tensor, which is memory of its own, to the region, which is
        // lent: until this rank's combine no peer touches it, and that is behind this on the stream.
        unsafe { inner.runtime.copy_on_device(to, rows.address(), rows.len() * 2, inner.stream)? };
        self.rows.of_mut(row).outputs = Some(outputs);
        Ok(())
    }

    /// Copies expert outputs from the host, BF16 `[rows, hidden]`, to the region that `handle`'s dispatch has lent: one row for every
    /// received row, in their order. Waits for the dispatch and for the copy. ([`ExpertOutputs`] compares the ways.)
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when they are not whole rows, or not as many as the dispatch brought; [`Error::StaleHandle`],
    /// [`Error::WrongOrder`] after the combine; the fault of an operation, or [`Error::Poisoned`].
    pub fn write_expert_outputs(&mut self, handle: &Dispatched, rows: &[bf16]) -> Result<()> {
        self.catch_up()?;
        self.check_handle("write_expert_outputs", handle)?;
        let outputs = self.check_rows(rows.len() as u64)?;
        // Waits, and finds a fault: behind one peers may still be reading the region.
        let received = match self.rows.of(handle.row_slot).received_rows {
            Some(received) => self.settle().map(|()| received)?,
            None => self.recv_counts(handle)?.rows.into(),
        };
        if outputs != received {
            let rule = format!(
                "exactly the {received} rows that the dispatch brought, {} elements",
                received * u64::from(self.config.hidden)
            );
            return Err(Error::argument("expert outputs", format!("{outputs} rows"), rule));
        }
        let inner = self.comm.inner();
        let to = self.outputs_row(handle.row_slot);
        let spread = self.seen_layout().is_rank_major().then(|| self.spread(handle, rows)).transpose()?;
        let (rows, outputs) = match &spread {
            Some(spread) => (&spread[..], self.layouts.shape.rows),
            None => (rows, outputs),
        };
        // SAFETY: whole rows that the region holds, as just checked; the handle's dispatch has lent it, so until this rank's combine no
        // peer touches it.
        unsafe { inner.runtime.copy_to_device(to, as_bytes(rows), inner.stream)? };
        self.rows.of_mut(handle.row_slot).outputs = Some(outputs);
        Ok(())
    }

    /// Copies weights to return to the region for them; returns of how many rows they are.
    fn stage_weights(&mut self, row: u32, weights: DeviceSlice<'_, f32>) -> Result<u64> {
        let shape = &self.layouts.shape;
        let (stride, max) = (u64::from(shape.top_k_stride()), shape.rows);
        let (elements, rows) = (weights.len(), weights.len() / stride);
        let rule = if !elements.is_multiple_of(stride) || rows > max {
            format!("whole rows of {stride} words, at most {max} of them")
        } else {
            match self.rows_to_be_covered(row).filter(|&received| rows < received) {
                Some(received) => format!("{stride} words for each of the {received} rows that the dispatch brought"),
                None => {
                    let inner = self.comm.inner();
                    let to = self.window_row(self.layouts.window.returned, row);
                    // SAFETY: whole rows that the region holds, as just checked, from a tensor, which is memory of its own, to the region,
                    // which is lent: until this rank's combine no peer touches it, and that is behind this on the stream.
                    unsafe { inner.runtime.copy_words_on_device(to, weights.address(), elements, inner.stream)? };
                    return Ok(rows);
                }
            }
        };
        Err(Error::argument("weights to return", format!("{elements} elements"), rule))
    }

    /// Fills the regions of a row slot for expert outputs and for weights to return with NaN. Enqueued.
    pub(crate) fn poison_expert_outputs(&self, row: u32) -> Result<()> {
        let (inner, slots) = (self.comm.inner(), self.layouts.shape.row_slots);
        let packed = self.layouts.private.packed.expert_out.slot(row, slots).bytes;
        if packed > 0 {
            // SAFETY: the whole of a region that no peer touches, behind what the rank has enqueued.
            unsafe { inner.runtime.fill(self.outputs_row(row), 0xff, packed, inner.stream)? };
        }
        let regions = [self.layouts.window.expert_out, self.layouts.window.returned];
        for region in regions.map(|region| region.slot(row, slots)) {
            if region.bytes > 0 {
                // BF16 or f32 of all ones is a NaN.
                // SAFETY: the whole of a region of this rank's window. The callers have just enqueued the operation that lends it, behind
                // which no peer touches it until this rank's combine.
                unsafe { inner.runtime.fill(self.window_span(region), 0xff, region.bytes, inner.stream)? };
            }
        }
        Ok(())
    }

    /// Sums, for every token that `handle` dispatched, the rows that its experts' ranks made of it. Collective; returns once
    /// it is enqueued.
    ///
    /// The sum is in f32, from 0, in ascending position of a rank's first selection, rounded once to BF16: bitwise the same
    /// for any number of SMs. Where rows lie by expert, what is summed so are the sums of each rank, its own too: in f32, from 0, in ascending
    /// position, rounded once to BF16. Gate weights are the experts' side to apply, or the combine's, where [`CombineInput`] says so: that has
    /// the options, which a buffer is [made for](crate::Config::with_combine_options).
    ///
    /// Of what [`Self::write_expert_outputs`], [`Self::stage_expert_outputs`] or a tensor handed over for this dispatch ([`ExpertOutputs`]
    /// compares them), the last one's
    /// number of rows counts: fewer than the received ones are an error here, where the host has read that number, or else
    /// [`Error::TooFewExpertOutputs`] of the operation. Where nothing was handed over, the caller's own kernels wrote the outputs in
    /// place, and they are theirs to complete: a row that nobody wrote is summed as it is. See
    /// [`Config::with_poisoned_expert_outputs`](crate::Config::with_poisoned_expert_outputs).
    ///
    /// # Errors
    ///
    /// [`Error::StaleHandle`] or [`Error::WrongOrder`] for a handle that is not current or already combined,
    /// [`Error::BufferTooSmall`] for a `y` with too few elements, [`Error::InvalidArgument`] for expert outputs that are no whole rows, too
    /// many or too few, for a part of a tensor at an address that is no multiple of 16, and for options that the buffer is not made for or
    /// its layout does not have; the fault of an earlier operation, or [`Error::Poisoned`]. Ranks that differ in whether rows are gate-weighted or
    /// weights brought back get [`Error::OutOfStep`] of the operation.
    pub fn combine(&mut self, handle: &Dispatched, input: CombineInput<'_>) -> Result<()> {
        let Checked { outputs, weights, raw } = input.check(handle.tokens, &self.comm, &self.config)?;
        self.begin()?;
        self.check_handle("combine", handle)?;
        if let ExpertOutputs::Tensor(rows) = outputs {
            self.stage(handle.row_slot, rows)?;
        }
        let weights = weights.map(|weights| self.stage_weights(handle.row_slot, weights)).transpose()?;
        // SAFETY: the tensors are this process's device memory, large enough as just checked, and stay allocated until the
        // stream has passed this operation.
        unsafe { self.enqueue_combine(handle, &raw, weights) }
    }

    /// [`Self::combine`] to a device address, of expert outputs in the lent region.
    ///
    /// # Errors
    ///
    /// As [`Self::combine`].
    ///
    /// # Safety
    ///
    /// `input.y` is valid for writes of `[tokens, hidden]`, and for reads of what was written there if the combine accumulates, and
    /// `input.returned_weights` for writes of f32 `[tokens, top_k]`; nothing else touches them until the operation is done. Biases are valid for
    /// reads of BF16 `[tokens, hidden]`, and nothing writes them until then; they do not overlap with what is written.
    pub unsafe fn combine_raw(&mut self, handle: &Dispatched, input: &RawCombineInput) -> Result<()> {
        self.begin()?;
        self.check_handle("combine", handle)?;
        input.check(handle.tokens, &self.config)?;
        // SAFETY: all have room for the handle's tokens, and nobody else touches them until the operation is done: the caller's promise.
        unsafe { self.enqueue_combine(handle, input, None) }
    }

    /// Enqueues the kernel for a handle and an input that were checked, with so many rows of `weights` staged: the one way to it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for too few expert outputs.
    ///
    /// # Safety
    ///
    /// As [`Self::combine_raw`].
    unsafe fn enqueue_combine(
        &mut self,
        handle: &Dispatched,
        input: &RawCombineInput,
        weights: Option<u64>,
    ) -> Result<()> {
        let outputs = self.covering_outputs(handle)?;
        let slots = self.slots_of_combine(handle);
        // What was handed over of both must be for all rows.
        let outputs = [outputs, weights].into_iter().flatten().min();
        // SAFETY: `y` is the caller's promise.
        let args = unsafe { self.combine_args(handle, input, slots, outputs) };
        self.take_turn()?;
        self.stand_in(input.kind(), slots)?;
        // SAFETY: the caller's promise.
        unsafe { self.launch_combine(input, args, slots)? };
        self.operations += 1;
        self.combined(handle);
        Ok(())
    }

    /// How many expert outputs were handed over for a handle, if that is known.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for too few.
    pub(crate) fn covering_outputs(&self, handle: &Dispatched) -> Result<Option<u64>> {
        let RowSlot { outputs, .. } = *self.rows.of(handle.row_slot);
        match (self.rows_to_be_covered(handle.row_slot), outputs) {
            (Some(received), Some(outputs)) if outputs < received => {
                Err(self.too_few_outputs(handle.row_slot, outputs, received))
            }
            _ => Ok(outputs),
        }
    }

    /// Where the combine of a handle is, and whether rows stay behind it.
    pub(crate) fn slots_of_combine(&self, handle: &Dispatched) -> Slots {
        let state = self.rows.of(handle.row_slot).state;
        let keeps = matches!(state, State::Dispatched { kept: true, .. } | State::CombineSent { kept: true, .. });
        Slots { keeps, ..handle.slots() }
    }

    /// What every combine takes.
    ///
    /// # Safety
    ///
    /// As [`Self::combine_raw`].
    pub(crate) unsafe fn combine_args(
        &self,
        handle: &Dispatched,
        input: &RawCombineInput,
        slots: Slots,
        outputs: Option<u64>,
    ) -> CombineArgs {
        let (p, shape) = (&self.layouts.private, &self.layouts.shape);
        // Of packed rows there are other ones than came, and the host has compared those: the kernel would compare with what came.
        let outputs = outputs.filter(|_| !shape.is_packed());
        // SAFETY: the buffer's own memory, laid out for its shape; `y` is the caller's promise.
        unsafe {
            CombineArgs {
                op: self.operation(input.kind(), slots),
                expert_out: Region::new(self.row_offset(self.layouts.window.expert_out, handle.row_slot)),
                routing: Global::from_raw(self.private_slot(p.routing, handle.slot)),
                send_rank: Global::from_raw(self.handle_slot(handle.slot)[0]),
                send_row: Global::from_raw(self.handle_slot(handle.slot)[1]),
                received: Global::from_raw(self.private_slot(p.recv_counts, handle.slot)),
                y: Global::from_raw(input.y),
                tokens: handle.tokens,
                top_k: shape.top_k,
                hidden: shape.hidden,
                outputs: outputs.and_then(|rows| rows.try_into().ok()).unwrap_or(UNKNOWN_OUTPUTS),
                slot: handle.slot,
                reserved: 0,
            }
        }
    }

    /// Launches the kernel; of packed rows with options behind the one that sums their outputs.
    ///
    /// # Safety
    ///
    /// As [`Self::combine_raw`], of which `args` are.
    unsafe fn launch_combine(&self, input: &RawCombineInput, args: CombineArgs, slots: Slots) -> Result<()> {
        let (inner, shape) = (self.comm.inner(), &self.layouts.shape);
        // SAFETY: the kernel's launch contract: windows, flags and private memory are this buffer's, laid out for its shape on every
        // rank; the grid is that of the layouts, and the handle is the one whose routing the private memory holds.
        unsafe {
            let (runtime, blocks, stream, pull) = (&inner.runtime, self.blocks, inner.stream, args);
            let plain = input.is_plain();
            if shape.is_packed() && (plain || input.gate_weighted) {
                return self.combine_packed(pull, slots, input.gate_weighted);
            }
            self.reduce(slots)?;
            if shape.layout.is_by_expert() {
                let (sums, options) = (self.by_expert(pull, slots), self.options(input, slots));
                let with = CombineByExpertWithArgs { sums, options };
                if plain {
                    runtime.launch(&combine_by_expert, blocks, 0, &sums, stream)?;
                } else {
                    let kernel = match (input.fp8_wire, input.gate_weighted) {
                        (false, false) => &combine_by_expert_with,
                        (false, true) => &combine_by_expert_gated,
                        (true, false) => &combine_by_expert_fp8,
                        (true, true) => &combine_by_expert_fp8_gated,
                    };
                    runtime.launch(kernel, blocks, 0, &with, stream)?;
                }
            } else if plain && shape.layout.is_rank_major() {
                runtime.launch(&combine_rank_major, blocks, 0, &self.rank_major(pull, slots), stream)?;
            } else if plain {
                runtime.launch(&combine, blocks, 0, &pull, stream)?;
            } else {
                let with = CombineWithArgs { pull, options: self.options(input, slots) };
                if input.fp8_wire {
                    runtime.launch(&combine_fp8, blocks, 0, &self.in_fp8(with, slots), stream)?;
                } else {
                    runtime.launch(&combine_with, blocks, 0, &with, stream)?;
                }
            }
        }
        Ok(())
    }

    /// Notes that the combine of a handle was enqueued.
    pub(crate) fn combined(&mut self, handle: &Dispatched) {
        self.overflows.went_by(handle.slot);
        let row_slot = self.rows.of_mut(handle.row_slot);
        row_slot.ends(match row_slot.state {
            State::Dispatched { operation, slot, kept: true } | State::CombineSent { operation, slot, kept: true } => {
                State::Kept { operation, slot }
            }
            _ => State::Idle { combined: Some(handle.operation) },
        });
        self.noted();
    }

    /// What a combine of rows that lie by expert takes.
    fn by_expert(&self, pull: CombineArgs, slots: Slots) -> CombineByExpertArgs {
        let (w, shape) = (&self.layouts.window, &self.layouts.shape);
        let of_slot = |span: Span| span.slot(slots.routing, shape.routing_slots).offset;
        CombineByExpertArgs {
            pull,
            send_rank: Region::new(of_slot(w.send_rank)),
            send_row: Region::new(of_slot(w.send_row)),
            tokens: Region::new(of_slot(w.tokens)),
            sums: Region::new(self.row_offset(w.sums, slots.row)),
            reduced: BlockFlags::new(Region::new(self.row_offset(w.blocks, slots.row))),
            of_token: shape.ranks_of_token(),
            reserved: 0,
        }
    }

    /// What a combine of compact rows takes that cross in FP8.
    fn in_fp8(&self, with: CombineWithArgs, slots: Slots) -> CombineFp8Args {
        let (w, shape) = (&self.layouts.window, &self.layouts.shape);
        CombineFp8Args {
            with,
            crossing: Region::new(self.row_offset(w.crossing, slots.row)),
            reduced: BlockFlags::new(Region::new(self.row_offset(w.blocks, slots.row))),
            row_bytes: shape.crossing_row_bytes() as u32,
            reserved: 0,
        }
    }

    /// What a combine with options takes beside.
    fn options(&self, input: &RawCombineInput, slots: Slots) -> CombineOptions {
        let (w, shape) = (&self.layouts.window, &self.layouts.shape);
        let regions = w.received.slot(shape, slots.row, slots.routing).regions();
        let [bias, second_bias] = input.biases().map(|address| match address {
            0 => Optional::none(),
            // SAFETY: only made here; whose it is, and that it is there, is the promise to the kernel that takes it.
            address => Optional::some(unsafe { Global::from_raw(address) }),
        });
        CombineOptions {
            bias,
            second_bias,
            // SAFETY: as above.
            weights: unsafe { Global::from_raw(input.returned_weights.unwrap_or(0)) },
            returned: Region::new(self.row_offset(w.returned, slots.row)),
            topk: regions.topk,
            gates: regions.weights,
            top_k_stride: shape.top_k_stride(),
            wide: input.y_is_f32.into(),
            accumulate: input.accumulate.into(),
            returning: input.returned_weights.is_some().into(),
        }
    }

    /// How many rows must be handed over at least, as far as the host knows: where they have fixed places, one for each place; where those are packed, one for
    /// each row that there is room for, if it knows nothing.
    fn rows_to_be_covered(&self, row: u32) -> Option<u64> {
        let received = self.rows.of(row).received_rows;
        match (self.config.layout.is_rank_major(), self.layouts.shape.is_packed()) {
            (true, false) => Some(self.layouts.shape.rows),
            // Nobody compares them on the device.
            (true, true) => Some(received.unwrap_or(self.seen().rows)),
            _ => received,
        }
    }

    fn too_few_outputs(&self, row: u32, outputs: u64, received: u64) -> Error {
        let hidden = self.config.hidden;
        let of = if self.seen_layout().is_rank_major() {
            "places of Layout::RankMajor"
        } else if self.layouts.shape.is_packed() && self.rows.of(row).received_rows.is_none() {
            "that there is room for (of fewer the host must have read the counts)"
        } else {
            "that the dispatch brought"
        };
        let rule = format!("one row for each of the {received} {of}, of {hidden} elements");
        Error::argument("expert outputs", format!("{outputs} rows"), rule)
    }

    /// Checks that `elements` are whole rows that the lent region holds; returns how many.
    pub(crate) fn check_rows(&self, elements: u64) -> Result<u64> {
        let hidden = u64::from(self.config.hidden);
        let max = self.seen().rows;
        if !elements.is_multiple_of(hidden) || elements / hidden > max {
            let rule = format!("whole rows of {hidden} elements, at most {max} of them");
            return Err(Error::argument("expert outputs", format!("{elements} elements"), rule));
        }
        Ok(elements / hidden)
    }
}
