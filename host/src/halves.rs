//! Send and receive halves of operations, where rows have fixed places.
use epoxide_dsl::memory::Global;
use epoxide_kernels::entries_halves::{combine_receive, combine_send, dispatch_receive};
use epoxide_kernels::rank_major::halves::CombineSendArgs;
use epoxide_kernels::shape::Shape;
use epoxide_kernels::words::Kind;

use crate::buffer::{Dispatched, ElasticBuffer, State};
use crate::combine_input::{CombineInput, CombineOutput, RawCombineInput};
use crate::dispatch::{DispatchInput, IndexType, RawDispatchInput};
use crate::error::{Error, Result};
use crate::expert_outputs::ExpertOutputs;
use crate::rows::row_kernels;
use crate::runtime::Runtime;
use crate::tensor::Index;
use crate::tickets::{CombineTicket, DispatchTicket, Refused};

/// Loads what a buffer's halves are.
///
/// # Errors
///
/// [`Error::Cuda`].
pub(crate) fn prepare_halves(runtime: &Runtime, shape: &Shape, shared_bytes: u32) -> Result<()> {
    for kernel in row_kernels(shape).iter().filter_map(|kernels| kernels.send) {
        runtime.prepare(kernel, shared_bytes)?;
    }
    runtime.prepare(&dispatch_receive, shared_bytes)?;
    runtime.prepare(&combine_send, 0)?;
    runtime.prepare(&combine_receive, 0)?;
    Ok(())
}

impl ElasticBuffer {
    /// The first half of a [dispatch](Self::dispatch): its rows are on their way. For a buffer [made for it](crate::Config::with_halves). Collective; returns once it is
    /// enqueued.
    ///
    /// On the device it ends when this rank's rows have come to its peers, and where the row slot is free it waits for nobody. What is enqueued between the two
    /// halves has all SMs. [`Self::dispatch_receive`], a single block, waits for the rows of the others, and is the second half.
    ///
    /// Halves in different [row slots](crate::Config::with_row_slots) are in flight at once, dispatches and combines: two micro-batches overlap. In one slot
    /// they come in their order: a dispatch is sent and received, its combine is sent and received, and then the next dispatch is sent. Every rank calls the
    /// same halves in the same order; where one calls a whole operation, which is both halves one after the other, that stands for both.
    ///
    /// ```
    /// use epoxide::{Config, DispatchInput, ElasticBuffer, ExpertOutputs, Layout, LocalGroup, Mode, bf16};
    ///
    /// LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
    ///     let config = Config::new(4, 1, 8, 2).with_layout(Layout::RankMajor { alignment: 1 }).with_row_slots(2).with_halves();
    ///     let mut buffer = ElasticBuffer::new(&comm, config)?;
    ///     let (x, weights) = (comm.tensor(&[bf16::ONE; 16])?, comm.tensor(&[1.0f32; 2])?);
    ///     let batches = [comm.tensor(&[0i64, 3])?, comm.tensor(&[2i64, 1])?];
    ///     // Of experts that add nothing: a row for each place.
    ///     let (outputs, mut y) = (comm.tensor(&[bf16::ONE; 2 * 2 * 8])?, comm.empty::<bf16>(16)?);
    ///     let [a, b] = batches.each_ref().map(|idx| buffer.dispatch_send(&DispatchInput::new(2, &x, idx, &weights)));
    ///     let (a, b) = (a?, b?);
    ///     let a = buffer.dispatch_receive(a)?;
    ///     // ... the experts of the first batch run while the rows of the second travel ...
    ///     let of_a = buffer.combine_send(&a, &outputs)?;
    ///     let b = buffer.dispatch_receive(b)?;
    ///     // ... and those of the second while the first's outputs do.
    ///     buffer.combine_receive(of_a, &mut y)?;
    ///     let of_b = buffer.combine_send(&b, ExpertOutputs::InPlace)?;
    ///     assert_eq!(y.to_vec()?, [bf16::ONE; 16]);
    ///     buffer.combine_receive(of_b, &mut y)?;
    ///     buffer.close()
    /// })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Self::dispatch`]; [`Error::InvalidArgument`] where the buffer has no halves; [`Error::InFlight`] where the row slot, or every one, has an operation
    /// in flight.
    pub fn dispatch_send<I: Index>(&mut self, input: &DispatchInput<'_, I>) -> Result<DispatchTicket> {
        self.check_divided("dispatch_send")?;
        let raw = self.raw_dispatch(input)?;
        // SAFETY: the tensors are this process's device memory, large enough as just checked, and stay allocated until the
        // stream has passed this half (see `DeviceTensor`).
        unsafe { self.dispatch_send_raw(&raw) }
    }

    /// [`Self::dispatch_send`] from device addresses.
    ///
    /// # Errors
    ///
    /// As [`Self::dispatch_send`].
    ///
    /// # Safety
    ///
    /// As [`Self::dispatch_raw`], until this half is done: the other reads nothing of the input.
    pub unsafe fn dispatch_send_raw(&mut self, input: &RawDispatchInput) -> Result<DispatchTicket> {
        self.check_divided("dispatch_send")?;
        let slots = self.choose_slots(input)?;
        let Some(kernel) = input.rows.kernels(&self.layouts.shape).send else {
            return Err(Error::argument("rows", format!("{:?}", input.rows), "of a form that has halves"));
        };
        // SAFETY: the caller's promise.
        let launched = unsafe { self.before_dispatch(input, slots)? };
        let (inner, shared_bytes) = (self.comm.inner(), self.shared.bytes(&self.layouts.shape));
        // SAFETY: the kernel's launch contract: windows, words and private memory are this buffer's, laid out for its shape on every rank;
        // the grid and shared memory are those of the layouts; the input is the caller's promise. The receive half comes next in these slots.
        unsafe {
            let args = self.dispatch_rank_major(&launched, slots);
            inner.runtime.launch(kernel, self.blocks, shared_bytes, &args, inner.stream)?;
        }
        self.took_routing(slots, input);
        let operation = self.operations;
        let state = State::Sent { operation, slot: slots.routing, kept: input.keep_rows };
        self.took_rows(slots, input.row_slot, state);
        self.noted();
        let (buffer, tokens) = (self.id(), input.tokens);
        let (routing, slot, row_slot) = (operation, slots.routing, slots.row);
        Ok(DispatchTicket(Dispatched { buffer, operation, routing, slot, row_slot, tokens }))
    }

    /// The second half of a dispatch: behind it its rows are there, with their index and counts, as behind a whole one. Collective; returns once it is enqueued. It
    /// is one block, which waits for what the other ranks send.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a ticket of another buffer, of before a reset, or of a capture that is over; the fault of an earlier operation, or
    /// [`Error::Poisoned`]. With it comes the ticket, by which the dispatch may still be received ([`Refused`]).
    pub fn dispatch_receive(&mut self, ticket: DispatchTicket) -> Result<Dispatched, Refused<DispatchTicket>> {
        if let Err(error) = self.enqueue_dispatch_receive(&ticket.0) {
            return Err(Refused::with(error, ticket));
        }
        let DispatchTicket(handle) = ticket;
        let slots = handle.slots();
        let behind = self.enqueue_behind(slots, false);
        let behind = self.or_give_back(slots.row, behind);
        self.noted();
        behind.map(|()| handle).map_err(Refused::without)
    }

    /// Enqueues the kernel; what is refused changes nothing.
    fn enqueue_dispatch_receive(&mut self, handle: &Dispatched) -> Result<()> {
        self.begin()?;
        self.check_ticket(handle, "dispatch")?;
        let State::Sent { operation, slot, kept } = self.rows.of(handle.row_slot).state else {
            return Err(self.not_in_flight(handle, "dispatch"));
        };
        self.take_turn()?;
        let slots = handle.slots();
        let (inner, shared_bytes) = (self.comm.inner(), self.shared.bytes(&self.layouts.shape));
        let nothing = RawDispatchInput::new(0, 0, 0, IndexType::I64, 0);
        // SAFETY: the kernel's launch contract: as of the send half, which came before it on the rank's streams; it reads no input.
        unsafe {
            let args = self.dispatch_rank_major(&nothing, slots);
            inner.runtime.launch(&dispatch_receive, 1, shared_bytes, &args, inner.stream)?;
        }
        self.rows.of_mut(handle.row_slot).state = State::Dispatched { operation, slot, kept };
        Ok(())
    }

    /// The first half of a [combine](Self::combine): peers may read this rank's expert outputs, which come as in a whole one ([`ExpertOutputs`]). For a buffer
    /// [made for it](crate::Config::with_halves). Collective; returns once it is enqueued. It is one small block, and waits for nobody.
    ///
    /// From here on what the dispatch brought is not to be read, unless its rows are kept, nor its expert outputs written.
    ///
    /// # Errors
    ///
    /// As [`Self::combine`], but for those of sums; [`Error::InvalidArgument`] where the buffer has no halves.
    pub fn combine_send<'a>(
        &mut self,
        handle: &Dispatched,
        outputs: impl Into<ExpertOutputs<'a>>,
    ) -> Result<CombineTicket> {
        self.check_divided("combine_send")?;
        self.begin()?;
        self.check_handle("combine_send", handle)?;
        if let ExpertOutputs::Tensor(rows) = outputs.into() {
            self.stage(handle.row_slot, rows)?;
        }
        self.covering_outputs(handle)?;
        let slots = self.slots_of_combine(handle);
        self.take_turn()?;
        self.stand_in(Kind::Combine, slots)?;
        self.reduce(slots)?;
        let inner = self.comm.inner();
        // SAFETY: the buffer's own memory, laid out for its shape.
        let routing = unsafe { Global::from_raw(self.private_slot(self.layouts.private.routing, handle.slot)) };
        let op = self.operation(Kind::Combine, slots);
        let args = CombineSendArgs { op, routing, slot: handle.slot, reserved: 0 };
        // SAFETY: the kernel's launch contract: the buffer's own windows and words; one block of as many threads as a group has ranks at most; the
        // receive half comes next in these slots.
        unsafe { inner.runtime.launch(&combine_send, 1, 0, &args, inner.stream)? };
        self.operations += 1;
        let row_slot = self.rows.of_mut(handle.row_slot);
        if let State::Dispatched { operation, slot, kept } = row_slot.state {
            row_slot.state = State::CombineSent { operation, slot, kept };
        }
        self.noted();
        Ok(CombineTicket(handle.clone()))
    }

    /// The second half of a combine: sums, as a whole one does, into `y`, BF16 `[tokens, hidden]`. Collective; returns once it is enqueued. It waits for the send halves
    /// of all ranks; behind it the row slot is free.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a ticket of another buffer, of before a reset, or of a capture that is over, and for a `y` in f32, which is an
    /// option that a whole combine has; [`Error::BufferTooSmall`] for one with too few elements; the fault of an earlier operation, or [`Error::Poisoned`]. With
    /// it comes the ticket, by which the combine may still be received ([`Refused`]).
    pub fn combine_receive<'a>(
        &mut self,
        ticket: CombineTicket,
        y: impl Into<CombineOutput<'a>>,
    ) -> Result<(), Refused<CombineTicket>> {
        match self.output_of_halves(&ticket.0, y.into()) {
            // SAFETY: the tensor is this process's device memory, large enough as just checked, and stays allocated until the
            // stream has passed this operation.
            Ok(y) => unsafe { self.combine_receive_raw(ticket, y) },
            Err(error) => Err(Refused::with(error, ticket)),
        }
    }

    /// The address of what a combine by halves sums into, which is checked.
    fn output_of_halves(&self, handle: &Dispatched, y: CombineOutput<'_>) -> Result<u64> {
        if let CombineOutput::F32(_) = y {
            let rule = "BF16, in a combine by halves: one with options is a whole one";
            return Err(Error::argument("y", "f32", rule));
        }
        let input = CombineInput::new(ExpertOutputs::InPlace, y);
        Ok(input.check(handle.tokens, &self.comm, &self.config)?.raw.y)
    }

    /// [`Self::combine_receive`] to a device address, a multiple of 16.
    ///
    /// # Errors
    ///
    /// As [`Self::combine_receive`].
    ///
    /// # Safety
    ///
    /// `y` is valid for writes of BF16 `[tokens, hidden]`, and nothing else touches it until the operation is done.
    pub unsafe fn combine_receive_raw(&mut self, ticket: CombineTicket, y: u64) -> Result<(), Refused<CombineTicket>> {
        // SAFETY: the caller's promise.
        unsafe { self.enqueue_combine_receive(&ticket.0, y) }.map_err(|error| Refused::with(error, ticket))
    }

    /// Enqueues the kernel; what is refused changes nothing.
    ///
    /// # Safety
    ///
    /// As [`Self::combine_receive_raw`].
    unsafe fn enqueue_combine_receive(&mut self, handle: &Dispatched, y: u64) -> Result<()> {
        let input = RawCombineInput::new(y);
        input.check(handle.tokens, &self.config)?;
        self.begin()?;
        self.check_ticket(handle, "combine")?;
        let slots = self.slots_of_combine(handle);
        self.take_turn()?;
        let inner = self.comm.inner();
        // SAFETY: the kernel's launch contract: windows, words and private memory are this buffer's, laid out for its shape on every
        // rank; the grid is that of the layouts, and the handle is the one whose routing the private memory holds. The send half came before it on
        // the rank's streams. `y` is the caller's promise.
        unsafe {
            let pull = self.combine_args(handle, &input, slots, None);
            let args = self.rank_major(pull, slots);
            inner.runtime.launch(&combine_receive, self.blocks, 0, &args, inner.stream)?;
        }
        self.combined(handle);
        Ok(())
    }

    /// Checks that operations may be divided.
    fn check_divided(&self, call: &'static str) -> Result<()> {
        if self.config.halves {
            return Ok(());
        }
        let rule = format!("true in the configuration of a buffer that {call} is called of: Config::with_halves");
        Err(Error::argument("halves", false, rule))
    }

    /// Checks that a ticket's operation is in flight here.
    fn check_ticket(&self, ticket: &Dispatched, sent: &'static str) -> Result<()> {
        let state = (ticket.buffer == self.id()).then(|| self.rows.of(ticket.row_slot).state);
        let here = |state: State| state.in_flight() == Some(sent) && state.operation() == Some(ticket.operation);
        if state.is_some_and(here) { Ok(()) } else { Err(self.not_in_flight(ticket, sent)) }
    }

    fn not_in_flight(&self, ticket: &Dispatched, sent: &'static str) -> Error {
        let &Dispatched { buffer, operation, row_slot, .. } = ticket;
        let value = format!("of the {sent} of operation {operation} in row slot {row_slot} of buffer {buffer:#x}");
        let rule = format!(
            "of what is in flight in this buffer, {:#x}: sent there, since its last reset, and not in a capture that is over",
            self.id()
        );
        Error::argument("ticket", value, rule)
    }
}
