//! Combine: enqueues one, with what the host can see checked before.
use epoxide_dsl::memory::Global;
use epoxide_dsl::window::Region;
use epoxide_kernels::combine::{CombineArgs, CombineByExpertArgs, UNKNOWN_OUTPUTS};
use epoxide_kernels::entries::{combine, combine_by_expert, lend};
use epoxide_kernels::layout::Span;
use epoxide_kernels::lend::LendArgs;
use epoxide_kernels::words::{BlockFlags, Kind};
use half::bf16;

use crate::buffer::{Dispatched, ElasticBuffer, State};
use crate::error::{Error, Result};
use crate::slice::{DeviceSlice, DeviceSliceMut, check_address, check_len, check_rank};
use crate::tensor::{DeviceTensor, as_bytes};

/// Where the experts' outputs are: one BF16 row for each received row, in the same order.
///
/// They come there in one of four ways:
///
/// | way | from | rows | what is checked | cost |
/// |---|---|---|---|---|
/// | [`write_expert_outputs`](ElasticBuffer::write_expert_outputs), then [`InPlace`](Self::InPlace) | a host slice | exactly the received ones | by the call | waits for the dispatch and for the copy |
/// | [`stage_expert_outputs`](ElasticBuffer::stage_expert_outputs), then [`InPlace`](Self::InPlace) | a tensor, or a part of one | at least the received ones: it may be as large as the region, `[max_rows, hidden]` | by the call, and by the combine on the device | a copy on the device, enqueued |
/// | [`Tensor`](Self::Tensor) | the same | the same | by the combine | the same, within the combine |
/// | kernels of the caller's own at [`RecvView::expert_outputs`](crate::RecvView::expert_outputs), then [`InPlace`](Self::InPlace) | the kernels | every received one | nothing; [`Config::with_poisoned_expert_outputs`](crate::Config::with_poisoned_expert_outputs) makes a missing row NaN | none |
///
/// The first is for experts on the host, the second and third for experts that write memory of their own, the fourth saves the
/// copy. A host slice's length says how many rows there are; a tensor is often made before that is known, so it may have more, and what is
/// beyond is not read.
///
/// Outputs that do not depend on the dispatch may be there before it: [`lend_expert_outputs`](ElasticBuffer::lend_expert_outputs) gives
/// the region early, to the caller's own kernels or to
/// [`stage_lent_expert_outputs`](ElasticBuffer::stage_lent_expert_outputs). The combine is then [`InPlace`](Self::InPlace).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum ExpertOutputs<'a> {
    /// In the region that the buffer lends ([`RecvView::expert_outputs`](crate::RecvView::expert_outputs)). What the caller's own work
    /// wrote there cannot be counted: see [`ElasticBuffer::combine`].
    InPlace,
    /// In a tensor of the caller's or a part of one, BF16 `[rows, hidden]` at an address that is a multiple of 16, which is copied to that
    /// region first. `(&tensor).into()` makes one.
    Tensor(DeviceSlice<'a, bf16>),
}

impl<'a> From<DeviceSlice<'a, bf16>> for ExpertOutputs<'a> {
    fn from(rows: DeviceSlice<'a, bf16>) -> Self {
        Self::Tensor(rows)
    }
}

impl<'a> From<&'a DeviceTensor<bf16>> for ExpertOutputs<'a> {
    fn from(rows: &'a DeviceTensor<bf16>) -> Self {
        Self::Tensor(rows.into())
    }
}

/// What a rank combines.
#[derive(Debug)]
#[non_exhaustive]
pub struct CombineInput<'a> {
    /// Where the experts' outputs are.
    pub outputs: ExpertOutputs<'a>,
    /// Written: BF16 `[tokens, hidden]`, at an address that is a multiple of 16.
    pub y: DeviceSliceMut<'a, bf16>,
}

impl<'a> CombineInput<'a> {
    /// Sums `outputs` ([`ExpertOutputs::InPlace`], a tensor or a part of one) into `y`, a tensor (`&mut y`) or a part of one.
    pub fn new(outputs: impl Into<ExpertOutputs<'a>>, y: impl Into<DeviceSliceMut<'a, bf16>>) -> Self {
        Self { outputs: outputs.into(), y: y.into() }
    }
}

/// [`CombineInput`] as device addresses, for callers with memory of their own. The expert outputs are in the lent region.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RawCombineInput {
    /// BF16 `[tokens, hidden]`, at an address that is a multiple of 16.
    pub y: u64,
}

impl RawCombineInput {
    /// Sums into `y`.
    pub fn new(y: u64) -> Self {
        Self { y }
    }
}

impl ElasticBuffer {
    /// Lends the expert output region back after a combine, before the next dispatch has completed: for outputs that do not
    /// depend on it. Enqueues a wait until every peer has read the combine's rows; returns the address of BF16
    /// `[max_rows, hidden]`, which work on the rank's stream may write from there on. Not collective.
    ///
    /// # Errors
    ///
    /// [`Error::WrongOrder`] between a dispatch and its combine, when the region is lent already; the fault of an earlier
    /// operation, or [`Error::Poisoned`].
    pub fn lend_expert_outputs(&mut self) -> Result<u64> {
        self.check()?;
        if matches!(self.state, State::Dispatched { .. }) {
            let rule = "the dispatch has lent the region; see RecvView::expert_outputs";
            return Err(Error::WrongOrder { call: "lend_expert_outputs", state: self.state.to_string(), rule });
        }
        let args = LendArgs { op: self.operation(Kind::Lend, 0) };
        let inner = self.comm.inner();
        self.take_turn()?;
        // SAFETY: the kernel's launch contract: the buffer's own windows and flags; before the first combine both epochs are 0.
        unsafe { inner.runtime.launch(&lend, 1, 0, &args, inner.stream)? };
        self.lent_early = true;
        self.outputs = None;
        if self.config.poison_expert_outputs {
            self.poison_expert_outputs()?;
        }
        Ok(self.window_span(self.layouts.window.expert_out))
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
        self.check()?;
        self.check_handle("stage_expert_outputs", handle)?;
        self.stage(rows.into())
    }

    /// [`Self::stage_expert_outputs`] for the next dispatch, to the region that [`Self::lend_expert_outputs`] has lent.
    ///
    /// # Errors
    ///
    /// [`Error::WrongOrder`] when it has not; [`Error::InvalidArgument`] when they are not whole rows at a multiple of 16 bytes, or too
    /// many; the fault of an earlier operation, or [`Error::Poisoned`].
    pub fn stage_lent_expert_outputs<'a>(&mut self, rows: impl Into<DeviceSlice<'a, bf16>>) -> Result<()> {
        self.check()?;
        if !self.lent_early {
            let rule =
                "lend_expert_outputs comes before; for a dispatch that was made, stage_expert_outputs takes its handle";
            return Err(Error::WrongOrder { call: "stage_lent_expert_outputs", state: self.state.to_string(), rule });
        }
        self.stage(rows.into())
    }

    /// Copies expert outputs to the region, which is lent.
    fn stage(&mut self, rows: DeviceSlice<'_, bf16>) -> Result<()> {
        check_rank("expert outputs", rows, &self.comm)?;
        check_address("expert outputs", rows.address())?;
        let outputs = self.check_rows(rows.len())?;
        if let Some(received) = self.received_rows.filter(|&received| outputs < received) {
            return Err(self.too_few_outputs(outputs, received));
        }
        let inner = self.comm.inner();
        let to = self.window_span(self.layouts.window.expert_out);
        // SAFETY: whole rows that the region holds, as just checked, from a tensor, which is memory of its own, to the region, which is
        // lent: until this rank's combine no peer touches it, and that is behind this on the stream.
        unsafe { inner.runtime.copy_on_device(to, rows.address(), rows.len() * 2, inner.stream)? };
        self.outputs = Some(outputs);
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
        self.check_handle("write_expert_outputs", handle)?;
        let outputs = self.check_rows(rows.len() as u64)?;
        // Waits, and finds a fault: behind one peers may still be reading the region.
        let received = match self.received_rows {
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
        let to = self.window_span(self.layouts.window.expert_out);
        // SAFETY: whole rows that the region holds, as just checked; the handle's dispatch has lent it, so until this rank's combine no
        // peer touches it.
        unsafe { inner.runtime.copy_to_device(to, as_bytes(rows), inner.stream)? };
        self.outputs = Some(outputs);
        Ok(())
    }

    /// Fills the region for expert outputs with NaN. Enqueued.
    pub(crate) fn poison_expert_outputs(&self) -> Result<()> {
        let inner = self.comm.inner();
        let region = self.layouts.window.expert_out;
        // BF16 of all ones is a NaN.
        // SAFETY: the whole of a region of this rank's window. The callers have just enqueued the operation that lends it, behind
        // which no peer touches it until this rank's combine.
        unsafe { inner.runtime.fill(self.window_span(region), 0xff, region.bytes, inner.stream) }
    }

    /// Sums, for every token that `handle` dispatched, the rows that its experts' ranks made of it. Collective; returns once
    /// it is enqueued.
    ///
    /// The sum is in f32, from 0, in ascending position of a rank's first selection, rounded once to BF16: bitwise the same
    /// for any number of SMs. Where rows lie by expert, what is summed so are the sums of each rank, its own too: in f32, from 0, in ascending
    /// position, rounded once to BF16. Gate weights are the experts' side to apply.
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
    /// many or too few, and for a part of a tensor at an address that is no multiple of 16, the fault of an earlier operation, or [`Error::Poisoned`].
    pub fn combine(&mut self, handle: &Dispatched, input: CombineInput<'_>) -> Result<()> {
        let CombineInput { outputs, y } = input;
        check_rank("y", y.as_slice(), &self.comm)?;
        check_address("y", y.address())?;
        check_len("y", "output rows", y.as_slice(), u64::from(handle.tokens) * u64::from(self.config.hidden))?;
        self.check()?;
        self.check_handle("combine", handle)?;
        if let ExpertOutputs::Tensor(rows) = outputs {
            self.stage(rows)?;
        }
        // SAFETY: the tensor is this process's device memory, large enough as just checked, and stays allocated until the
        // stream has passed this operation.
        unsafe { self.enqueue_combine(handle, &RawCombineInput::new(y.address())) }
    }

    /// [`Self::combine`] to a device address, of expert outputs in the lent region.
    ///
    /// # Errors
    ///
    /// As [`Self::combine`].
    ///
    /// # Safety
    ///
    /// `input.y` is valid for writes of BF16 `[tokens, hidden]`, and nothing else touches it until the operation is done.
    pub unsafe fn combine_raw(&mut self, handle: &Dispatched, input: &RawCombineInput) -> Result<()> {
        self.check()?;
        self.check_handle("combine", handle)?;
        // SAFETY: `y` has room for the handle's tokens, and nobody else touches it until the operation is done: the caller's promise.
        unsafe { self.enqueue_combine(handle, input) }
    }

    /// Enqueues the kernel for a handle that was checked: the one way to it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for an address that is no multiple of 16, and for too few expert outputs.
    ///
    /// # Safety
    ///
    /// As [`Self::combine_raw`].
    unsafe fn enqueue_combine(&mut self, handle: &Dispatched, input: &RawCombineInput) -> Result<()> {
        let RawCombineInput { y } = *input;
        check_address("y", y)?;
        if let (Some(received), Some(outputs)) = (self.received_rows, self.outputs)
            && outputs < received
        {
            return Err(self.too_few_outputs(outputs, received));
        }
        let inner = self.comm.inner();
        let (p, shape) = (&self.layouts.private, &self.layouts.shape);
        // SAFETY: the buffer's own memory, laid out for its shape; `y` is the caller's promise.
        let args = unsafe {
            CombineArgs {
                op: self.operation(Kind::Combine, handle.slot),
                expert_out: Region::new(self.layouts.window.expert_out.offset),
                routing: Global::from_raw(self.private_slot(p.routing, handle.slot)),
                send_rank: Global::from_raw(self.handle_slot(handle.slot)[0]),
                send_row: Global::from_raw(self.handle_slot(handle.slot)[1]),
                received: Global::from_raw(self.private_slot(p.recv_counts, handle.slot)),
                y: Global::from_raw(y),
                tokens: handle.tokens,
                top_k: shape.top_k,
                hidden: shape.hidden,
                outputs: self.outputs.and_then(|rows| rows.try_into().ok()).unwrap_or(UNKNOWN_OUTPUTS),
                slot: handle.slot,
                reserved: 0,
            }
        };
        self.take_turn()?;
        // SAFETY: the kernel's launch contract: windows, flags and private memory are this buffer's, laid out for its shape on every
        // rank; the grid is that of the layouts, and the handle is the one whose routing the private memory holds.
        unsafe {
            if shape.layout.is_by_expert() {
                let args = self.by_expert(args, handle.slot);
                inner.runtime.launch(&combine_by_expert, self.blocks, 0, &args, inner.stream)?;
            } else {
                inner.runtime.launch(&combine, self.blocks, 0, &args, inner.stream)?;
            }
        }
        self.overflows.went_by(handle.slot);
        self.operations += 1;
        self.state = State::Idle { combined: Some(handle.operation) };
        self.lent_early = false;
        self.received_rows = None;
        self.outputs = None;
        Ok(())
    }

    /// What a combine of rows that lie by expert takes.
    fn by_expert(&self, pull: CombineArgs, slot: u32) -> CombineByExpertArgs {
        let (w, shape) = (&self.layouts.window, &self.layouts.shape);
        let of_slot = |span: Span| span.slot(slot, shape.routing_slots).offset;
        CombineByExpertArgs {
            pull,
            send_rank: Region::new(of_slot(w.send_rank)),
            send_row: Region::new(of_slot(w.send_row)),
            tokens: Region::new(of_slot(w.tokens)),
            sums: Region::new(w.sums.offset),
            reduced: BlockFlags::new(Region::new(w.blocks.offset)),
            max_tokens: shape.max_tokens,
            reserved: 0,
        }
    }

    fn too_few_outputs(&self, outputs: u64, received: u64) -> Error {
        let hidden = self.config.hidden;
        let rule = format!("one row for each of the {received} that the dispatch brought, of {hidden} elements");
        Error::argument("expert outputs", format!("{outputs} rows"), rule)
    }

    /// Checks that `elements` are whole rows that the lent region holds; returns how many.
    fn check_rows(&self, elements: u64) -> Result<u64> {
        let hidden = u64::from(self.config.hidden);
        let max = self.layouts.shape.rows;
        if !elements.is_multiple_of(hidden) || elements / hidden > max {
            let rule = format!("whole rows of {hidden} elements, at most {max} of them");
            return Err(Error::argument("expert outputs", format!("{elements} elements"), rule));
        }
        Ok(elements / hidden)
    }
}
