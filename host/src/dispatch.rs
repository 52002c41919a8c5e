//! Dispatch: enqueues one, with what the host can see checked before.
use epoxide_dsl::memory::Global;
use epoxide_dsl::window::Region;
use epoxide_kernels::dispatch::DispatchArgs;
use epoxide_kernels::layout::Span;
use epoxide_kernels::shape::{Layout, Shape};
use epoxide_kernels::words::{BlockFlags, CountMatrix, Kind, Landings, PlaceWords};

use crate::buffer::{Dispatched, ElasticBuffer, Slots, State};
use crate::error::{Error, Result};
use crate::rows::{RawRows, Rows, Whole};
use crate::slice::{DeviceSlice, check_len, check_rank};
use crate::tensor::{DeviceTensor, Index};

/// What a rank dispatches.
#[derive(Debug)]
#[non_exhaustive]
pub struct DispatchInput<'a, I: Index> {
    /// Tokens of this rank; 0 is allowed.
    pub tokens: u32,
    /// Their rows, in a form that the buffer's format takes.
    pub rows: Rows<'a>,
    /// Selected experts `[tokens, top_k]`: distinct in a token; -1 (all ones in u32) selects nothing.
    pub topk_idx: DeviceSlice<'a, I>,
    /// Gate weights f32 `[tokens, top_k]`.
    pub topk_weights: DeviceSlice<'a, f32>,
    /// The routing slot to take, the same on every rank; `None` takes the next in turn.
    pub routing_slot: Option<u32>,
    /// The row slot to take, the same on every rank; `None` takes the next free one in turn.
    pub row_slot: Option<u32>,
    /// Whether the rows stay behind the combine, until they are released.
    pub keep_rows: bool,
}

impl<'a, I: Index> DispatchInput<'a, I> {
    /// The rows, selections and gate weights of `tokens` tokens: tensors or parts of them. BF16 rows are given as they are (`&x`), others
    /// by a function of [`Rows`].
    pub fn new(
        tokens: u32,
        rows: impl Into<Rows<'a>>,
        topk_idx: impl Into<DeviceSlice<'a, I>>,
        topk_weights: impl Into<DeviceSlice<'a, f32>>,
    ) -> Self {
        Self {
            tokens,
            rows: rows.into(),
            topk_idx: topk_idx.into(),
            topk_weights: topk_weights.into(),
            routing_slot: None,
            row_slot: None,
            keep_rows: false,
        }
    }

    /// Names the [row slot](crate::Config::with_row_slots) to take, the same on every rank. The turn of dispatches that name none goes on as if this one
    /// were not there, but that its slot is held.
    #[must_use]
    pub fn in_row_slot(mut self, slot: u32) -> Self {
        self.row_slot = Some(slot);
        self
    }

    /// Keeps the rows where they are, with the experts' outputs and all that goes with them, behind the combine too: until
    /// [`ElasticBuffer::release`]. For gradients that are computed from them. In [`Layout::RankMajor`] all ranks do it or none: else the combine is
    /// [`Error::OtherHandle`] on all of them.
    #[must_use]
    pub fn keeping_rows(mut self) -> Self {
        self.keep_rows = true;
        self
    }

    /// Names the [routing slot](crate::Config::with_routing_slots) to take, the same on every rank. The turn of dispatches that name none goes on
    /// as if this one were not there.
    #[must_use]
    pub fn in_routing_slot(mut self, slot: u32) -> Self {
        self.routing_slot = Some(slot);
        self
    }
}

/// [`DispatchInput`] as device addresses, for callers with memory of their own. The example `raw_pointers` is such a caller.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RawDispatchInput {
    /// Tokens of this rank.
    pub tokens: u32,
    /// Their rows, in a form that the buffer's format takes.
    pub rows: RawRows,
    /// `[tokens, top_k]`.
    pub topk_idx: u64,
    /// The type of `topk_idx`.
    pub index_type: IndexType,
    /// f32 `[tokens, top_k]`.
    pub topk_weights: u64,
    /// The routing slot to take, the same on every rank; `None` takes the next in turn.
    pub routing_slot: Option<u32>,
    /// The row slot to take, the same on every rank; `None` takes the next free one in turn.
    pub row_slot: Option<u32>,
    /// Whether the rows stay behind the combine, until they are released.
    pub keep_rows: bool,
}

impl RawDispatchInput {
    /// The addresses of `tokens` tokens. One of BF16 rows is given as it is, others as [`RawRows`].
    pub fn new(tokens: u32, rows: impl Into<RawRows>, topk_idx: u64, index_type: IndexType, topk_weights: u64) -> Self {
        let (routing_slot, row_slot, keep_rows) = (None, None, false);
        Self { tokens, rows: rows.into(), topk_idx, index_type, topk_weights, routing_slot, row_slot, keep_rows }
    }

    /// [`DispatchInput::in_row_slot`].
    #[must_use]
    pub fn in_row_slot(mut self, slot: u32) -> Self {
        self.row_slot = Some(slot);
        self
    }

    /// [`DispatchInput::keeping_rows`].
    #[must_use]
    pub fn keeping_rows(mut self) -> Self {
        self.keep_rows = true;
        self
    }

    /// [`DispatchInput::in_routing_slot`].
    #[must_use]
    pub fn in_routing_slot(mut self, slot: u32) -> Self {
        self.routing_slot = Some(slot);
        self
    }
}

/// The type of `topk_idx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IndexType {
    /// Signed 32-bit.
    I32,
    /// Signed 64-bit.
    I64,
    /// Unsigned 32-bit; `u32::MAX` selects nothing.
    U32,
}

impl IndexType {
    /// That of a tensor of `I`.
    fn of<I: Index>() -> Self {
        let all = [Self::I32, Self::I64, Self::U32];
        all.into_iter().find(|index| index.kind() == I::KIND).expect("`Index` is sealed: these are all that it has")
    }

    /// The kernels' number for it.
    pub(crate) fn kind(self) -> u32 {
        match self {
            Self::I32 => i32::KIND,
            Self::I64 => i64::KIND,
            Self::U32 => u32::KIND,
        }
    }
}

/// Rows to whose multiples an expert's rows are padded, or entries of the index where rows have fixed places; 1 where neither is.
pub(crate) fn alignment(shape: &Shape) -> u32 {
    match shape.layout {
        Layout::ExpertContiguous { alignment } | Layout::RankMajor { alignment } => alignment,
        _ => 1,
    }
}

impl ElasticBuffer {
    /// Sends every token's row once to each rank that owns one of its experts. Collective; returns once it is enqueued.
    ///
    /// Rows arrive ordered by source rank, then token, whatever the timing; in [`Layout::ExpertContiguous`] by expert first, with a row for
    /// each selection. It takes a [row slot](crate::Config::with_row_slots), the next free one in turn or the one that it names; where there is one, it
    /// makes the handle of the dispatch before stale, as far as rows go. It takes a [routing slot](crate::Config::with_routing_slots), the next in turn or the one that it names, and so the place of
    /// the routing that was there. Where there are several slots, that of a dispatch which waits for its combine is not given.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for too many tokens, and for rows at another address or of a form that the buffer's format does not take;
    /// [`Error::BufferTooSmall`] for a tensor with too few elements, [`Error::RowSlotBusy`], [`Error::SlotBusy`]. Rows for which there is no room
    /// ([`Config::with_capacity`](crate::Config::with_capacity)) are told by what waits for the dispatch. The fault of an earlier operation, or [`Error::Poisoned`].
    pub fn dispatch<I: Index>(&mut self, input: &DispatchInput<'_, I>) -> Result<Dispatched> {
        let raw = self.raw_dispatch(input)?;
        // SAFETY: the tensors are this process's device memory, large enough as just checked, and stay allocated until the
        // stream has passed this operation (see `DeviceTensor`).
        unsafe { self.enqueue_dispatch(&raw) }
    }

    /// The addresses of an input, whose tensors are checked.
    ///
    /// # Errors
    ///
    /// As [`Self::dispatch`], of tensors.
    pub(crate) fn raw_dispatch<I: Index>(&self, input: &DispatchInput<'_, I>) -> Result<RawDispatchInput> {
        let selections = u64::from(input.tokens) * u64::from(self.config.top_k);
        let rows = input.rows.check(input.tokens, &self.comm, &self.layouts.shape)?;
        check_rank("topk_idx", input.topk_idx, &self.comm)?;
        check_rank("topk_weights", input.topk_weights, &self.comm)?;
        check_len("topk_idx", "selections", input.topk_idx, selections)?;
        check_len("topk_weights", "gate weights", input.topk_weights, selections)?;
        let (topk_idx, topk_weights) = (input.topk_idx.address(), input.topk_weights.address());
        let raw = RawDispatchInput::new(input.tokens, rows, topk_idx, IndexType::of::<I>(), topk_weights);
        let &DispatchInput { routing_slot, row_slot, keep_rows, .. } = input;
        Ok(RawDispatchInput { routing_slot, row_slot, keep_rows, ..raw })
    }

    /// [`Self::dispatch`] from device addresses.
    ///
    /// # Errors
    ///
    /// As [`Self::dispatch`].
    ///
    /// # Safety
    ///
    /// The addresses are valid for the sizes that [`RawDispatchInput`] states and aligned to their elements, rows to 16
    /// bytes, and nothing writes them until the operation is done.
    pub unsafe fn dispatch_raw(&mut self, input: &RawDispatchInput) -> Result<Dispatched> {
        // SAFETY: inputs of the sizes stated, aligned, that nobody writes until the operation is done: all of it the caller's promise.
        unsafe { self.enqueue_dispatch(input) }
    }

    /// Enqueues the kernel: the one way to it.
    ///
    /// # Errors
    ///
    /// As [`Self::dispatch`].
    ///
    /// # Safety
    ///
    /// As [`Self::dispatch_raw`].
    unsafe fn enqueue_dispatch(&mut self, input: &RawDispatchInput) -> Result<Dispatched> {
        let slots = self.choose_slots(input)?;
        // SAFETY: the caller's promise.
        let launched = unsafe { self.before_dispatch(input, slots)? };
        // SAFETY: the caller's promise.
        unsafe { self.launch_dispatch(&launched, slots)? };
        self.took_routing(slots, input);
        let operation = self.dispatched(slots, input.row_slot, input.keep_rows)?;
        let Slots { row: row_slot, routing: slot, .. } = slots;
        Ok(Dispatched { buffer: self.id(), operation, routing: operation, slot, row_slot, tokens: input.tokens })
    }

    /// Checks what a dispatch is of, and chooses its slots.
    ///
    /// # Errors
    ///
    /// As [`Self::dispatch`].
    pub(crate) fn choose_slots(&mut self, input: &RawDispatchInput) -> Result<Slots> {
        let RawDispatchInput { tokens, rows, .. } = *input;
        rows.check(&self.layouts.shape)?;
        self.begin()?;
        if tokens > self.config.max_tokens_per_rank {
            let rule = format!("at most max_tokens_per_rank = {}", self.config.max_tokens_per_rank);
            return Err(Error::argument("tokens", tokens, rule));
        }
        let fixed = self.config.layout.is_rank_major();
        let row_slot = self.rows.choose(if fixed { input.row_slot.or(input.routing_slot) } else { input.row_slot })?;
        let slot = match fixed {
            true => self.routing_of_row(row_slot, input.routing_slot)?,
            false => self.routings.slot(input.routing_slot, &self.rows)?,
        };
        Ok(Slots { row: row_slot, routing: slot, keeps: false })
    }

    /// Enqueues what comes in front of a dispatch; returns what it takes.
    ///
    /// # Safety
    ///
    /// As [`Self::dispatch_raw`].
    pub(crate) unsafe fn before_dispatch(&self, input: &RawDispatchInput, slots: Slots) -> Result<RawDispatchInput> {
        self.take_turn()?;
        // SAFETY: the caller's promise.
        let launched = unsafe { self.without_masked(input)? };
        self.stand_in(Kind::Dispatch, slots)?;
        Ok(launched)
    }

    /// Notes at once that a dispatch, which was launched, has its routing slot: what fails from here on changes nothing in what that has.
    pub(crate) fn took_routing(&mut self, slots: Slots, input: &RawDispatchInput) {
        self.routings.take(slots.routing, slots.row, self.operations, input.routing_slot);
        if self.is_captured() {
            self.life().takes_routing(slots.routing, self.operations);
        }
        self.overflows.forget(slots.routing);
    }

    /// Launches the kernel, in slots that were chosen.
    ///
    /// # Safety
    ///
    /// As [`Self::dispatch_raw`].
    unsafe fn launch_dispatch(&self, input: &RawDispatchInput, slots: Slots) -> Result<()> {
        let (inner, shape, kernels) = (self.comm.inner(), &self.layouts.shape, input.rows.kernels(&self.layouts.shape));
        let (runtime, stream, shared_bytes) = (&inner.runtime, inner.stream, self.shared.bytes(shape));
        // SAFETY, of all: the kernel's launch contract: windows, flags and private memory are this buffer's, laid out for its shape
        // on every rank; the grid and shared memory are those of the layouts; the inputs are the caller's promise.
        match kernels.whole(shape, self.config.observes(shape)) {
            Whole::Packed(kernel) => {
                // SAFETY: as above.
                let args = unsafe { self.dispatch_packed(input, slots) };
                // SAFETY: as above.
                unsafe { runtime.launch(kernel, self.blocks, shared_bytes, &args, stream) }
            }
            Whole::InPlaces(kernel) => {
                // SAFETY: as above.
                let args = unsafe { self.dispatch_rank_major(input, slots) };
                // SAFETY: as above.
                unsafe { runtime.launch(kernel, self.blocks, shared_bytes, &args, stream) }
            }
            Whole::ByCounts(kernel) => {
                // SAFETY: as above.
                let args = unsafe { self.dispatch_args(input, slots) };
                // SAFETY: as above.
                unsafe { runtime.launch(kernel, self.blocks, shared_bytes, &args, stream) }
            }
        }
    }

    /// What a kernel takes where places follow from counts.
    ///
    /// # Safety
    ///
    /// As [`Self::dispatch_raw`].
    unsafe fn dispatch_args(&self, input: &RawDispatchInput, slots: Slots) -> DispatchArgs {
        let RawDispatchInput { tokens, rows, topk_idx, index_type, topk_weights, .. } = *input;
        let Slots { row: row_slot, routing: slot, .. } = slots;
        let (w, p, shape) = (&self.layouts.window, &self.layouts.private, &self.layouts.shape);
        // Where rows lie by expert, the handle is another.
        let [send_rank, send_row] = if shape.layout.is_by_expert() {
            [p.send_rank, p.send_row].map(|span| self.private_row(span, row_slot))
        } else {
            self.handle_slot(slot)
        };
        let of_slot = |span: Span| span.slot(slot, shape.routing_slots).offset;
        // SAFETY: the buffer's own memory, laid out for its shape; the inputs are the caller's promise.
        unsafe {
            DispatchArgs {
                op: self.operation(Kind::Dispatch, slots),
                recv: w.received.slot(shape, row_slot, slot).regions(),
                dispatches: Global::from_raw(self.private_row(p.dispatches, row_slot)),
                landings: Landings::new(Region::new(self.row_offset(w.landings, row_slot))),
                counts: CountMatrix::new(Region::new(self.row_offset(w.counts, row_slot)), shape.ranks, shape.experts),
                rows: rows.args(shape),
                topk_idx: Global::from_raw(topk_idx),
                topk_weights: Global::from_raw(topk_weights),
                block_counts: Global::from_raw(self.private_row(p.block_counts, row_slot)),
                routing: Global::from_raw(self.private_slot(p.routing, slot)),
                send_rank: Global::from_raw(send_rank),
                send_row: Global::from_raw(send_row),
                recv_counts: Global::from_raw(self.private_slot(p.recv_counts, slot)),
                placement: shape.placement(),
                shared: self.shared,
                tokens,
                top_k: shape.top_k,
                index_type: index_type.kind(),
                top_k_stride: shape.top_k_stride(),
                alignment: alignment(shape),
                zero_padding: self.config.zero_padding.into(),
                tokens_of: Region::new(of_slot(w.tokens)),
                handle_rank: Region::new(of_slot(w.send_rank)),
                handle_row: Region::new(of_slot(w.send_row)),
                block_landed: BlockFlags::new(Region::new(self.row_offset(w.blocks, row_slot))),
                places: PlaceWords::new(
                    Region::new(self.row_offset(w.places, row_slot)),
                    shape.ranks,
                    shape.blocks,
                    shape.top_k,
                ),
                mirror: Global::from_raw(self.mirror.as_ref().map_or(0, |mirror| mirror.slot(slot).device)),
                statistics: Global::from_raw(self.statistics.as_ref().map_or(0, DeviceTensor::address)),
                bound: self.bound(slot),
            }
        }
    }

    /// Notes that a dispatch was enqueued in these slots, of which it `named` that of rows or not; returns its number.
    pub(crate) fn dispatched(&mut self, slots: Slots, named: Option<u32>, kept: bool) -> Result<u64> {
        let operation = self.operations;
        self.took_rows(slots, named, State::Dispatched { operation, slot: slots.routing, kept });
        // Of a replay the routing has its index.
        let fresh = self.routings.is_of(slots.routing, operation);
        let behind =
            self.enqueue_behind(slots, fresh).and_then(|()| if fresh { self.index_rows(slots) } else { Ok(()) });
        let behind = self.or_give_back(slots.row, behind);
        self.noted();
        behind.map(|()| operation)
    }

    /// Notes that an operation has taken a row slot, which it `named` or not.
    pub(crate) fn took_rows(&mut self, slots: Slots, named: Option<u32>, state: State) {
        self.operations += 1;
        self.rows.take(slots.row, state, named);
        if self.is_captured() {
            self.life().takes_rows(slots.row);
        }
    }

    /// Enqueues what comes behind a dispatch in these slots; one that is `whole` may have packed its rows itself.
    pub(crate) fn enqueue_behind(&mut self, slots: Slots, whole: bool) -> Result<()> {
        if !(whole && self.layouts.shape.packs_itself()) {
            self.pack(slots)?;
        }
        self.lay_scale_columns(slots)?;
        let slot = self.rows.of_mut(slots.row);
        // What was lent before, and handed over then, was for this dispatch; what comes later is for a later one.
        let early = std::mem::take(&mut slot.lent_early);
        if !early {
            slot.outputs = None;
            if self.config.poison_expert_outputs {
                self.poison_expert_outputs(slots.row)?;
            }
        }
        Ok(())
    }
}
