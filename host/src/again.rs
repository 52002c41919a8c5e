//! Dispatch again: new rows by the routing of an old dispatch.
use epoxide_dsl::memory::Global;
use epoxide_dsl::window::Region;
use epoxide_kernels::dispatch::again::DispatchAgainArgs;
use epoxide_kernels::dispatch::again_by_expert::DispatchAgainByExpertArgs;
use epoxide_kernels::layout::Span;
use epoxide_kernels::words::{BlockFlags, Flags, Kind};

use crate::buffer::{Dispatched, ElasticBuffer, Slots};
use crate::error::{Error, Result};
use crate::replay_input::{RawReplayInput, ReplayInput};
use crate::rows::Again;

impl ElasticBuffer {
    /// Sends new rows of the same tokens to where `handle`'s dispatch sent theirs: nothing is selected or counted, so it takes less than a
    /// dispatch. Collective, every rank by its handle of the same dispatch; returns once it is enqueued.
    ///
    /// What goes with the rows (selections, gate weights, sources, counts) is that of the dispatch. The handle that it returns is for these
    /// rows: they are received, and combined, as those of a dispatch. It may be replayed itself, which is the same. A handle can be replayed
    /// before and after its combine, as often as wanted, until another dispatch takes its
    /// [routing slot](crate::Config::with_routing_slots). The rows go to the next free [row slot](crate::Config::with_row_slots) in turn, or to the one
    /// that [`ReplayInput`] names, whichever the dispatch had.
    ///
    /// The gradient of a combine is such a dispatch: the row of a token's gradient goes to every rank whose output was summed.
    ///
    /// ```
    /// use epoxide::{CombineInput, Config, DispatchInput, ElasticBuffer, ExpertOutputs, LocalGroup, Mode, WireRows, bf16};
    ///
    /// LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
    ///     // A slot for each of two layers.
    ///     let mut buffer = ElasticBuffer::new(&comm, Config::new(4, 1, 8, 2).with_routing_slots(2))?;
    ///     let (x, weights) = (comm.tensor(&[bf16::ONE; 16])?, comm.tensor(&[1.0f32; 2])?);
    ///     let mut y = comm.empty::<bf16>(16)?;
    ///     let mut handles = Vec::new();
    ///     for layer in 0..2i64 {
    ///         let idx = comm.tensor(&[layer, 3 - layer])?;
    ///         let handle = buffer.dispatch(&DispatchInput::new(2, &x, &idx, &weights))?;
    ///         let WireRows::Bf16(rows) = buffer.received(&handle)?.x else { unreachable!("the format is BF16") };
    ///         buffer.write_expert_outputs(&handle, &rows)?;
    ///         buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    ///         handles.push(handle);
    ///     }
    ///     // Backward, from the last layer to the first: gradients go where rows went.
    ///     let dy = comm.tensor(&[bf16::from_f32(0.5); 16])?;
    ///     for handle in handles.iter().rev() {
    ///         let again = buffer.dispatch_again(handle, &dy)?;
    ///         let WireRows::Bf16(rows) = buffer.received(&again)?.x else { unreachable!("the format is BF16") };
    ///         assert_eq!(rows, [bf16::from_f32(0.5); 16]);
    ///         buffer.write_expert_outputs(&again, &rows)?;
    ///         buffer.combine(&again, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    ///     }
    ///     buffer.close()
    /// })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// In [`Layout::RankMajor`](crate::Layout::RankMajor) it takes the row slot with the number of the handle's routing slot, which must be free: a handle that
    /// keeps its rows is not replayed.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] where padding is to be zero ([`Config::with_zero_padding`](crate::Config::with_zero_padding));
    /// [`Error::StaleHandle`] for a handle whose routing is gone, or of another buffer; what [`Self::dispatch`] says of rows; the fault of an
    /// earlier operation, [`Error::RowSlotBusy`](crate::Error::RowSlotBusy), or [`Error::Poisoned`]. Ranks that replay different handles get [`Error::OtherHandle`] of the operation.
    ///
    /// [`Error::StaleHandle`]: crate::Error::StaleHandle
    /// [`Error::Poisoned`]: crate::Error::Poisoned
    /// [`Error::OtherHandle`]: crate::Error::OtherHandle
    pub fn dispatch_again<'a>(&mut self, handle: &Dispatched, input: impl Into<ReplayInput<'a>>) -> Result<Dispatched> {
        let input = input.into();
        let rows = input.rows.check(handle.tokens, &self.comm, &self.layouts.shape)?;
        // SAFETY: the tensors are this process's device memory, large enough as just checked, and stay allocated until the
        // stream has passed this operation (see `DeviceTensor`).
        unsafe { self.enqueue_again(handle, &input.raw(rows)) }
    }

    /// [`Self::dispatch_again`] from device addresses.
    ///
    /// # Errors
    ///
    /// As [`Self::dispatch_again`].
    ///
    /// # Safety
    ///
    /// The addresses are valid for the sizes that [`RawRows`](crate::RawRows) states for the handle's tokens and aligned to their elements, rows to 16 bytes, and
    /// nothing writes them until the operation is done.
    pub unsafe fn dispatch_again_raw(&mut self, handle: &Dispatched, input: &RawReplayInput) -> Result<Dispatched> {
        // SAFETY: rows of the sizes stated, aligned, that nobody writes until the operation is done: all of it the caller's promise.
        unsafe { self.enqueue_again(handle, input) }
    }

    /// Enqueues the kernel: the one way to it.
    ///
    /// # Errors
    ///
    /// As [`Self::dispatch_again`].
    ///
    /// # Safety
    ///
    /// As [`Self::dispatch_again_raw`].
    pub(crate) unsafe fn enqueue_again(&mut self, handle: &Dispatched, input: &RawReplayInput) -> Result<Dispatched> {
        let RawReplayInput { rows, row_slot: named, keep_rows } = *input;
        rows.check(&self.layouts.shape)?;
        if self.config.zero_padding && self.config.layout.is_by_expert() {
            let rule =
                "a replay writes no padding, where other rows may have lain meanwhile: dispatch, or do not ask for it";
            return Err(Error::argument("zero_padding", true, rule));
        }
        self.begin()?;
        self.routings.check(self.id(), handle)?;
        // Where rows have fixed places, the row slot is that of the routing.
        let named = if self.config.layout.is_rank_major() { named.or(Some(handle.slot)) } else { named };
        let row_slot = self.rows.choose(named)?;
        if self.config.layout.is_rank_major() {
            self.routing_of_row(row_slot, Some(handle.slot))?;
        }
        let &Dispatched { routing, slot, tokens, .. } = handle;
        let slots = Slots { row: row_slot, routing: slot, keeps: false };
        let (w, p, shape) = (&self.layouts.window, &self.layouts.private, &self.layouts.shape);
        let (_, local_experts) = self.local_experts();
        // SAFETY: the buffer's own memory, laid out for its shape; the rows are the caller's promise.
        let args = unsafe {
            DispatchAgainArgs {
                op: self.operation(Kind::DispatchAgain, slots),
                recv: w.received.slot(shape, row_slot, slot).regions(),
                landed: Flags::new(Region::new(self.row_offset(w.landed, row_slot))),
                rows: rows.args(shape),
                routing: Global::from_raw(self.private_slot(p.routing, slot)),
                send_rank: Global::from_raw(self.handle_slot(slot)[0]),
                send_row: Global::from_raw(self.handle_slot(slot)[1]),
                recv_counts: Global::from_raw(self.private_slot(p.recv_counts, slot)),
                index_offsets: Global::from_raw(self.private_slot(p.index_offsets, slot)),
                shared: self.shared,
                tokens,
                top_k: shape.top_k,
                counts: shape.received_counts(local_experts),
                slot,
                offsets: if shape.expert_index > 0 { local_experts + 1 } else { 0 },
                reserved: 0,
            }
        };
        self.take_turn()?;
        self.stand_in(Kind::DispatchAgain, slots)?;
        let (shared_bytes, inner) = (self.shared.bytes(shape), self.comm.inner());
        let (runtime, blocks, stream) = (&inner.runtime, self.blocks, inner.stream);
        // SAFETY: the kernel's launch contract: windows, flags and private memory are this buffer's, laid out for its shape on every rank;
        // the slot has the routing of the handle's dispatch, of as many tokens, as just checked; the grid and shared memory are those of
        // the layouts.
        unsafe {
            match rows.kernels(shape).again {
                Again::Compact(kernel) => runtime.launch(kernel, blocks, shared_bytes, &args, stream)?,
                Again::ByExpert(kernel) => {
                    let args = self.again_by_expert(args, slots);
                    runtime.launch(kernel, blocks, shared_bytes, &args, stream)?
                }
            }
        };
        self.overflows.went_by(slot);
        let operation = self.dispatched(slots, named, keep_rows)?;
        Ok(Dispatched { buffer: self.id(), operation, routing, slot, row_slot, tokens })
    }

    /// What a replay takes where rows lie by expert.
    fn again_by_expert(&self, again: DispatchAgainArgs, slots: Slots) -> DispatchAgainByExpertArgs {
        let (w, routing_slots) = (&self.layouts.window, self.layouts.shape.routing_slots);
        let of_routing = |span: Span| span.slot(slots.routing, routing_slots).offset;
        DispatchAgainByExpertArgs {
            again,
            tokens_of: Region::new(of_routing(w.tokens)),
            handle_rank: Region::new(of_routing(w.send_rank)),
            handle_row: Region::new(of_routing(w.send_row)),
            block_landed: BlockFlags::new(Region::new(self.row_offset(w.blocks, slots.row))),
        }
    }
}
