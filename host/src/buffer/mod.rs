//! The buffer: a rank's window, what it knows of its peers' windows, and the state of its operations.
mod captures;
mod close;
mod dropped;
mod masked;
mod masked_experts;
mod open;
mod other_slot;
mod overflows;
mod release;
mod reset;
mod routings;
mod row_slots;
mod state;
mod stream;

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use epoxide_dsl::fault::FaultChannel;
use epoxide_dsl::grid::GridCounters;
use epoxide_dsl::memory::{Global, Symmetric};
use epoxide_dsl::window::{Peer, Region, Window};
use epoxide_kernels::layout::{DispatchShared, Span};
use epoxide_kernels::words::{DoneCounters, EntryWords, Kind, Landings, Number, Operation};

pub(crate) use self::masked::{MASK, Masked};
pub(crate) use self::overflows::Overflows;
pub(crate) use self::routings::Routings;
use self::row_slots::Captured;
pub(crate) use self::row_slots::{RowSlot, RowSlots};
pub use self::state::Dispatched;
use self::state::KEEPS;
pub(crate) use self::state::{Slots, State};

use crate::comm::Comm;
use crate::config::{BytesNeeded, Config, Layouts, bytes_needed};
use crate::error::{Error, Result};
use crate::fault;
use crate::life::Life;
use crate::mirror::Mirror;
use crate::runtime::Mapped;
use crate::tensor::DeviceTensor;
use crate::transport::local::number;
use crate::transport::windows::Windows;

/// Expert-parallel dispatch and combine for one rank.
///
/// Made by all ranks of a group together; then every rank calls the same operations in the same order. A call returns once
/// its work is enqueued on the buffer's stream ([`ElasticBuffer::set_stream`]): [`ElasticBuffer::synchronize`] waits for it and returns its fault, if any.
///
/// ```
/// use epoxide::{CombineInput, Config, DispatchInput, ElasticBuffer, ExpertOutputs, LocalGroup, Mode, WireRows, bf16};
///
/// LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
///     // Four experts, two of them on each rank; tokens of 64 elements select two, and a rank has at most three at once.
///     let mut buffer = ElasticBuffer::new(&comm, Config::new(4, 2, 64, 3))?;
///     let (x, idx) = (comm.tensor(&[bf16::ONE; 2 * 64])?, comm.tensor(&[0i64, 3, 2, -1])?);
///     let (weights, mut y) = (comm.tensor(&[0.5f32; 4])?, comm.empty::<bf16>(2 * 64)?);
///     let handle = buffer.dispatch(&DispatchInput::new(2, &x, &idx, &weights))?;
///     // Experts that hand on what they get. A kernel would read and write in place, and the host wait for nothing.
///     let WireRows::Bf16(rows) = buffer.received(&handle)?.x else { unreachable!("the format is BF16") };
///     buffer.write_expert_outputs(&handle, &rows)?;
///     buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
///     buffer.synchronize()?;
///     // Token 0 went to both ranks, token 1 to one.
///     assert_eq!([y.to_vec()?[0], y.to_vec()?[64]].map(f32::from), [2.0, 1.0]);
///     buffer.close()
/// })?;
/// # Ok::<(), epoxide::Error>(())
/// ```
///
/// # The life of an operation
///
/// | step | call | what must be so | what it gives, and to whom | the host waits for |
/// |---|---|---|---|---|
/// | begin | [`dispatch`](Self::dispatch), [`dispatch_again`](Self::dispatch_again) by an old routing, [`dispatch_gradient`](Self::dispatch_gradient) | a free [row slot](Config::with_row_slots): the only one gives up what waits there; of a dispatch, a free [routing slot](Config::with_routing_slots) | a handle; the row slot is its, and of a dispatch the routing slot | nothing |
/// | look, on the device | [`recv_arrays`](Self::recv_arrays), [`recv_view`](Self::recv_view) | before its combine, or [kept](crate::DispatchInput::keeping_rows) | rows, scales, sources, counts, to what follows on the stream | nothing |
/// | look, on the host | [`try_counts`](Self::try_counts), [`wait_counts`](Self::wait_counts) | a buffer [with a mirror](Config::with_counts_mirror) | counts, while rows travel | nothing; the counts |
/// | | [`recv_counts`](Self::recv_counts), [`received`](Self::received) | as on the device | counts; everything | the dispatch |
/// | hand over, one of four ways | kernels of yours [in place](crate::RecvArrays::expert_outputs) | every received row is written, behind the dispatch | outputs, to the combine | nothing |
/// | | [`stage_expert_outputs`](Self::stage_expert_outputs) of a tensor | as many rows as came, or more | a copy of them | nothing |
/// | | a tensor in [`combine`](Self::combine) ([`ExpertOutputs`](crate::ExpertOutputs) compares the ways) | the same | the same | nothing |
/// | | [`write_expert_outputs`](Self::write_expert_outputs) of a host slice | exactly the rows that came | the same | the dispatch, and the copy |
/// | | before the dispatch: [`lend_expert_outputs`](Self::lend_expert_outputs), then [`stage_lent_expert_outputs`](Self::stage_lent_expert_outputs) or kernels of yours | the slot's last combine was enqueued; not in [`Layout::RankMajor`](crate::Layout::RankMajor) | outputs, to the combine of the next dispatch there | nothing |
/// | end | [`combine`](Self::combine) | once for a handle, by all ranks | sums in `y`; views of the rows end, unless they are kept; the row slot is free; the routing stays, to be replayed | nothing |
/// | | [`release`](Self::release) | rows that nobody combines, or that were kept | the row slot is free | nothing |
/// | see what came of it | [`synchronize`](Self::synchronize) | | the fault, or that it did not fit | all of it |
/// | | [`check`](Self::check), and every call above | | a fault that is there already | nothing |
/// | after a fault | [`reset`](Self::reset) | by all living ranks | the buffer as new, without handles | its peers |
/// | last | [`close`](Self::close) | by all ranks | its memory | its peers |
pub struct ElasticBuffer {
    pub(crate) comm: Comm,
    pub(crate) config: Config,
    pub(crate) layouts: Layouts,
    pub(crate) shared: DispatchShared,
    pub(crate) blocks: u32,
    id: u64,
    config_hash: u32,
    windows: Windows,
    /// How often the group had moved when the windows were made.
    moves: u64,
    private: u64,
    pub(crate) record: Mapped,
    /// Where the host sees counts before rows have landed.
    pub(crate) mirror: Option<Mirror>,
    /// u64 `[local experts]`: selections over many dispatches.
    pub(crate) statistics: Option<DeviceTensor<u64>>,
    /// Operations enqueued so far: it names handles. The protocol's own epochs live on the device.
    pub(crate) operations: u64,
    pub(crate) rows: RowSlots,
    pub(crate) routings: Routings,
    pub(crate) overflows: Overflows,
    fault: Option<Error>,
    /// Ranks that it goes on without.
    pub(crate) masked: Option<Masked>,
    /// The capture that it is in.
    captured: Option<Captured>,
    /// What graphs know of it.
    life: Arc<Life>,
    /// `close` has freed the memory.
    freed: bool,
    /// One thread at a time: an operation and its checks are not atomic.
    not_sync: PhantomData<Cell<()>>,
}

impl std::fmt::Debug for ElasticBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ElasticBuffer({:#x} on {:?}, {}, {:?})", self.id, self.comm, self.rows, self.config)
    }
}

impl ElasticBuffer {
    /// The group's rank that this buffer belongs to, on the stream of its operations ([`Self::set_stream`]).
    pub fn comm(&self) -> &Comm {
        &self.comm
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Blocks of an operation, each on an SM of its own.
    pub fn num_sms(&self) -> u32 {
        self.blocks
    }

    /// What the buffer takes on this rank, by region.
    ///
    /// # Errors
    ///
    /// None that [`Self::new`] would not have returned; [`Error::Cuda`] when the device failed.
    pub fn bytes(&self) -> Result<BytesNeeded> {
        let bytes = bytes_needed(&self.config, self.comm.size(), self.blocks)?;
        let inner = self.comm.inner();
        Ok(bytes.with_granularity(inner.local.transport().granule(&inner.runtime)?))
    }

    /// First expert of this rank, and how many it has.
    pub fn local_experts(&self) -> (u32, u32) {
        let placement = self.layouts.shape.placement();
        (placement.first(self.comm.rank()), placement.count(self.comm.rank()))
    }

    /// Waits until all operations of this rank are done, and returns the fault of the one that failed.
    ///
    /// # Errors
    ///
    /// The fault, as [`Self::check`] does; [`Error::CapacityExceeded`] of a dispatch, and of a combine or a replay behind it, which is no
    /// fault: it is told once, the first one of several dispatches first; [`Error::MaskedExperts`], if the configuration asks for it, once too; [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
    pub fn synchronize(&mut self) -> Result<()> {
        self.settle()?;
        self.untold_masked()?;
        self.untold_overflow()
    }

    /// [`Self::synchronize`] for one who asks of a dispatch itself whether its rows came.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.comm.synchronize()?;
        self.check()
    }

    /// Returns the fault that the device has filed, if any, without waiting for it. Where the device says that a rank is gone, this waits up to half a
    /// second for the watch to say how.
    ///
    /// # Errors
    ///
    /// The fault the first time, [`Error::Poisoned`] with the fault as its cause from then on; [`Error::Simulator`] when a simulated
    /// machine does not know the record; [`Error::Nccl`] when the communicator of ranks that reach each other by NCCL has failed meanwhile.
    pub fn check(&mut self) -> Result<()> {
        if let Some(cause) = &self.fault {
            return Err(Error::Poisoned { cause: Box::new(cause.clone()) });
        }
        let inner = self.comm.inner();
        let how = |rank| inner.how_it_went(rank);
        // SAFETY: this runtime allocated the record with the buffer, whose kernels write it as words.
        let filed = unsafe { fault::read(&inner.runtime, self.record, number(self.id), &self.config, &how) };
        match filed? {
            None => self.comm.inner().local.transport().check(),
            Some(error) => {
                let error = self.seen_elsewhere(error);
                self.fault = Some(error.clone());
                Err(error)
            }
        }
    }

    /// For this project's tests: goes on as if there had been so many operations in each row slot, and so many dispatches among them.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
    ///
    /// # Safety
    ///
    /// All ranks do it, with the same numbers, while none is in an operation and no dispatch waits for its combine.
    #[doc(hidden)]
    pub unsafe fn test_count_from(&mut self, operations: u64, dispatches: u64) -> Result<()> {
        self.routings.count_from(dispatches);
        (0..self.rows.len()).try_for_each(|row_slot| self.begin_counting(row_slot, operations, dispatches))
    }

    /// For this project's tests: lets the next dispatch in a row slot of fixed places take it for free at every rank, as behind a combine that frees it. Waits
    /// for the stream.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
    ///
    /// # Safety
    ///
    /// Rows have fixed places, and none of the rank's operations is under way. Received rows may be overwritten while they are read.
    #[doc(hidden)]
    pub unsafe fn test_free_slot(&mut self, row_slot: u32) -> Result<()> {
        let (inner, p, mut epoch) = (self.comm.inner(), &self.layouts.private, [0; 8]);
        // SAFETY: words of the private memory, which only this rank's operations touch, on this stream.
        unsafe {
            inner.runtime.copy_to_host(&mut epoch, self.private_row(p.epoch, row_slot), inner.stream)?;
            inner.runtime.copy_to_device(self.private_row(p.freed, row_slot), &epoch, inner.stream)
        }
    }

    /// Lets a row slot's operations and dispatches on the device be counted from so many on.
    fn begin_counting(&self, row_slot: u32, operations: u64, dispatches: u64) -> Result<()> {
        let inner = self.comm.inner();
        let p = &self.layouts.private;
        for (counter, count) in [(p.epoch, operations), (p.dispatches, dispatches)] {
            let (to, word) = (self.private_row(counter, row_slot), Number { row_slot, count }.to_word());
            // SAFETY: a word of the private memory, which only this rank's operations touch, on this stream.
            unsafe { inner.runtime.copy_to_device(to, &word.to_ne_bytes(), inner.stream)? };
        }
        if !self.layouts.shape.layout.is_by_expert() {
            let landed = Landings::behind(Number { row_slot, count: dispatches }.to_word()).to_ne_bytes();
            let to = self.window_row(self.layouts.window.landings, row_slot);
            // SAFETY: a word for each rank of the own window, to which no peer adds now.
            unsafe { inner.runtime.copy_to_device(to, &landed.repeat(self.comm.size() as usize), inner.stream)? };
        }
        Ok(())
    }

    /// Checks that `handle` is that of a dispatch of this buffer which waits for its combine.
    pub(crate) fn check_handle(&self, call: &'static str, handle: &Dispatched) -> Result<()> {
        self.rows.check(self.id, call, handle)
    }

    /// Checks that the rows of `handle` are there: it waits for its combine, or they are kept.
    pub(crate) fn check_readable(&self, call: &'static str, handle: &Dispatched) -> Result<()> {
        self.rows.check_rows(self.id, call, handle)
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn window_span(&self, span: Span) -> u64 {
        self.windows.own() + span.offset
    }

    /// Where a row slot's part of a region of the window begins in it.
    pub(crate) fn row_offset(&self, span: Span, row_slot: u32) -> u64 {
        span.slot(row_slot, self.layouts.shape.row_slots).offset
    }

    /// What lies in a row slot of the own window.
    pub(crate) fn window_row(&self, span: Span, row_slot: u32) -> u64 {
        self.windows.own() + self.row_offset(span, row_slot)
    }

    /// What lies in a row slot of a private region.
    pub(crate) fn private_row(&self, span: Span, row_slot: u32) -> u64 {
        self.private + self.row_offset(span, row_slot)
    }

    pub(crate) fn private_span(&self, span: Span) -> u64 {
        self.private + span.offset
    }

    /// What lies in a routing slot of a private region.
    pub(crate) fn private_slot(&self, span: Span, slot: u32) -> u64 {
        self.private_span(span.slot(slot, self.layouts.shape.routing_slots))
    }

    /// The handle of a routing slot: the ranks and the rows. Where peers read it, it lies in the window.
    pub(crate) fn handle_slot(&self, slot: u32) -> [u64; 2] {
        let (w, p, shape) = (&self.layouts.window, &self.layouts.private, &self.layouts.shape);
        if shape.layout.is_by_expert() {
            [w.send_rank, w.send_row].map(|span| self.window_span(span.slot(slot, shape.routing_slots)))
        } else {
            [p.send_rank, p.send_row].map(|span| self.private_slot(span, slot))
        }
    }

    /// What every kernel takes, of an operation in these slots.
    pub(crate) fn operation(&self, kind: Kind, slots: Slots) -> Operation {
        let (w, p) = (&self.layouts.window, &self.layouts.private);
        // SAFETY: the addresses are this buffer's own allocations, laid out for its shape, and live as long as the group has
        // work on them (see `transport::local`).
        unsafe {
            let window = Window {
                bases: Global::from_raw(self.private_span(self.layouts.private.bases)),
                own: Symmetric::from_raw(self.windows.own()),
                me: Peer(self.comm.rank()),
                peers: self.comm.size(),
            };
            Operation {
                fault: FaultChannel {
                    record: Global::from_raw(self.record.device),
                    claim: Global::from_raw(self.private_span(p.claim)),
                    window,
                    abort: Region::new(w.abort.offset),
                    timeout_ns: u64::try_from(self.config.timeout.as_nanos()).unwrap_or(u64::MAX),
                    kernel: kind as u32,
                    reserved: 0,
                },
                entry: EntryWords::new(
                    Region::new(self.row_offset(w.entry, slots.row)),
                    self.config_hash,
                    slots.routing | if slots.keeps && self.config.layout.is_rank_major() { KEEPS } else { 0 },
                ),
                done: DoneCounters::new(Region::new(self.row_offset(w.done, slots.row))),
                epoch: Global::from_raw(self.private_row(p.epoch, slots.row)),
                combines: Global::from_raw(self.private_row(p.combines, slots.row)),
                grid: GridCounters { words: Global::from_raw(self.private_row(p.grid, slots.row)) },
            }
        }
    }
}
