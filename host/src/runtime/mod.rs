//! Runtimes: memory, streams, events and launches, on the simulated GPU or through the CUDA driver.
//!
//! Both have the same methods; this file is the only place that asks which one it is. A group makes the one or the other, and nothing
//! else of this crate knows.
mod captures;
mod copies;
pub(crate) mod cuda;
mod further_streams;
mod guests;
mod heap;
mod host_word;
mod looks;
mod mapped;
mod recordings;
pub(crate) mod sim;
mod told;

use std::sync::Arc;

use epoxide_dsl::{Kernel, KernelArg};
use epoxide_plan::RegionBytes;

pub(crate) use self::captures::RawGraph;
pub(crate) use self::heap::{Heap, Segments};
pub(crate) use self::host_word::HostWord;
pub(crate) use self::mapped::Mapped;
pub(crate) use self::told::{FABRIC_BYTES, Memory as ToldMemory, Told};

use crate::error::{Error, Result};

/// A queue of work on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RawStream {
    Sim(epoxide_sim::Stream),
    /// A `CUstream`.
    Cuda(u64),
}

impl RawStream {
    /// The `CUstream`; none on the simulated GPU.
    pub(crate) fn cuda(self) -> Option<u64> {
        match self {
            Self::Sim(_) => None,
            Self::Cuda(stream) => Some(stream),
        }
    }
}

/// A point in a stream.
#[derive(Clone, Debug)]
pub(crate) enum RawEvent {
    Sim(epoxide_sim::Event),
    Cuda(cuda::CudaEvent),
}

impl RawEvent {
    /// Whether everything before it is done; false where there is no knowing.
    pub(crate) fn is_reached(&self) -> bool {
        match self {
            Self::Sim(event) => event.is_complete(),
            Self::Cuda(event) => event.is_reached(),
        }
    }
}

/// A rank's share of the SMs of a device that it shares with others; given back on drop.
pub(crate) type Reservation = cuda::SmReservation;

/// The streams of a rank that is gone; a simulated machine keeps its own.
pub(crate) type LeftStreams = Option<cuda::LeftStreams>;

/// One rank's device.
pub(crate) enum Runtime {
    Sim(sim::SimRuntime),
    Cuda(cuda::CudaRuntime),
}

macro_rules! forward {
    ($($(#[$doc:meta])* fn $name:ident(&self $(, $arg:ident: $t:ty)*) -> $r:ty;)*) => { $(
        $(#[$doc])*
        pub(crate) fn $name(&self $(, $arg: $t)*) -> $r {
            match self {
                Self::Sim(runtime) => runtime.$name($($arg),*),
                Self::Cuda(runtime) => runtime.$name($($arg),*),
            }
        }
    )* };
}

/// Methods of both runtimes that touch memory at an address, in the order of a stream of their own, the last argument. Each runtime's
/// has the `# Safety` that is stated here.
macro_rules! unsafe_on_stream {
    ($($(#[$doc:meta])* unsafe fn $name:ident(&self $(, $arg:ident: $t:ty)*; stream);)*) => { $(
        $(#[$doc])*
        pub(crate) unsafe fn $name(&self $(, $arg: $t)*, stream: RawStream) -> Result<()> {
            match self.on(stream)? {
                // SAFETY: the caller's promise is about the address alone, and is what the simulator's method of this name asks.
                On::Sim(runtime, stream) => unsafe { runtime.$name($($arg,)* stream) },
                // SAFETY: the caller's promise is about the address alone, and is what the driver's method of this name asks.
                On::Cuda(runtime, stream) => unsafe { runtime.$name($($arg,)* stream) },
            }
        }
    )* };
}

/// A runtime and a stream of its own.
enum On<'a> {
    Sim(&'a sim::SimRuntime, epoxide_sim::Stream),
    Cuda(&'a cuda::CudaRuntime, u64),
}

/// What is said of a stream or an event of another runtime.
fn of_another(argument: &'static str, runtime: &Runtime, value: impl std::fmt::Display) -> Error {
    let rule = match runtime {
        Runtime::Sim(_) => "this rank runs on the simulated GPU".to_owned(),
        Runtime::Cuda(_) => format!("must be a CUDA {argument} on a CUDA device"),
    };
    Error::argument(argument, value, rule)
}

/// The most blocks of a launch in one dimension (CUDA Programming Guide, "Compute Capabilities").
pub(crate) const MOST_BLOCKS: u32 = i32::MAX as u32;

impl Runtime {
    forward! {
        /// Largest dynamic shared memory of a block.
        fn shared_bytes_per_block(&self) -> u32;
        /// What the device is, in words.
        fn description(&self) -> String;
        /// Allocates device memory, at a multiple of 256 bytes, in which `regions` lie: a window, if peers use them. `what` is for
        /// the error; a simulated GPU says both in reports.
        fn allocate(&self, what: &'static str, bytes: u64, regions: &[RegionBytes]) -> Result<u64>;
        /// Whether giving memory back waits for no rank that may wait for this one, wherever they are.
        fn gives_back_alone(&self) -> bool;
        /// Allocates memory that host and device share, zeroed.
        fn allocate_mapped(&self, bytes: u64) -> Result<Mapped>;
    }

    /// Whether the device's clock is virtual: its times are no wall time.
    pub(crate) fn has_virtual_time(&self) -> bool {
        matches!(self, Self::Sim(runtime) if !runtime.is_among_processes())
    }

    /// Whether peers are other processes, which may still read what this rank leaves: their mappings keep it.
    pub(crate) fn is_among_processes(&self) -> bool {
        match self {
            Self::Sim(runtime) => runtime.is_among_processes(),
            Self::Cuda(runtime) => runtime.is_among_processes(),
        }
    }

    /// Whether what a rank leaves is freed at its end. A simulated rank that is a process leaves its part as it is: freeing takes
    /// memory from its peers too.
    pub(crate) fn frees_what_is_left(&self) -> bool {
        !matches!(self, Self::Sim(runtime) if runtime.is_among_processes())
    }

    /// Whether the rank has a GPU that it knows no other rank to be on, so that its launches may begin early.
    pub(crate) fn has_its_gpu_alone(&self) -> bool {
        match self {
            Self::Sim(_) => false,
            Self::Cuda(runtime) => runtime.has_its_gpu_alone(),
        }
    }

    /// Bytes of which a window is a whole number.
    pub(crate) fn window_granule(&self) -> u64 {
        match self {
            Self::Sim(_) => 1,
            Self::Cuda(runtime) => runtime.window_granule(),
        }
    }

    /// What peers are told of memory of this rank's, from which they [find](Self::find) it.
    pub(crate) fn tell(&self, address: u64) -> Result<Told> {
        match self {
            Self::Sim(runtime) => Ok(Told { place: runtime.tell(address)?, memory: None }),
            Self::Cuda(runtime) => runtime.tell(address),
        }
    }

    /// Where this rank's device has what `rank` [told](Self::tell) of its part of the window whose part here is `own`.
    pub(crate) fn find(&self, own: u64, rank: u32, told: Told) -> Result<u64> {
        match self {
            Self::Sim(runtime) => runtime.find(rank, told.place),
            Self::Cuda(runtime) => runtime.find(own, rank, told),
        }
    }

    unsafe_on_stream! {
        /// Copies to the device in stream order; returns when `from` may be reused.
        ///
        /// # Safety
        ///
        /// `to` is the address of `from.len()` bytes of this rank's device memory, which only work that is before or behind this
        /// on `stream` touches; no reference of the host's lies in them.
        unsafe fn copy_to_device(&self, to: u64, from: &[u8]; stream);
        /// Copies to the host in stream order; returns when `to` is filled.
        ///
        /// # Safety
        ///
        /// `from` is the address of `to.len()` bytes of device memory that this rank may read, all of them written by work that
        /// is before this on `stream`, or whatever was there where the caller takes that.
        unsafe fn copy_to_host(&self, to: &mut [u8], from: u64; stream);
        /// Sets bytes, enqueued.
        ///
        /// # Safety
        ///
        /// `to` is the address of `bytes` bytes of this rank's device memory, allocated until the stream has passed this, which
        /// only work that is before or behind this on `stream` touches; no reference of the host's lies in them.
        unsafe fn fill(&self, to: u64, byte: u8, bytes: u64; stream);
    }

    /// Blocks of a launch that fills the device with so many on each SM. Every simulated thread costs host time: there they are few.
    pub(crate) fn filling_blocks(&self, on_each_sm: u32) -> u32 {
        match self {
            Self::Sim(_) => 2,
            Self::Cuda(runtime) => runtime.sms() * on_each_sm,
        }
    }

    /// This runtime with the stream, if it is of the same kind.
    fn on(&self, stream: RawStream) -> Result<On<'_>> {
        match (self, stream) {
            (Self::Sim(runtime), RawStream::Sim(stream)) => Ok(On::Sim(runtime, stream)),
            (Self::Cuda(runtime), RawStream::Cuda(stream)) => Ok(On::Cuda(runtime, stream)),
            (Self::Sim(_), RawStream::Cuda(_)) => Err(of_another("stream", self, "a CUDA stream")),
            (Self::Cuda(_), RawStream::Sim(_)) => Err(of_another("stream", self, format_args!("{stream:?}"))),
        }
    }

    /// What is said of an event of the other kind.
    fn event_of_another(&self, event: &RawEvent) -> Error {
        match event {
            RawEvent::Cuda(_) => of_another("event", self, "a CUDA event"),
            RawEvent::Sim(_) => of_another("event", self, format_args!("{event:?}")),
        }
    }

    /// Where the rank's memory for tensors comes from.
    pub(crate) fn segments(&self) -> Segments {
        match self {
            Self::Sim(runtime) => Segments::Sim(runtime.segments()),
            Self::Cuda(runtime) => Segments::Cuda(runtime.segments()),
        }
    }

    /// What frees device memory and memory that host and device share.
    pub(crate) fn heap(&self) -> Heap {
        match self {
            Self::Sim(runtime) => Heap::Sim(runtime.machine()),
            Self::Cuda(runtime) => Heap::Cuda(Arc::clone(runtime.device())),
        }
    }

    /// Whether everything on the stream is done; false where there is no knowing.
    pub(crate) fn is_idle(&self, stream: RawStream) -> bool {
        self.on(stream).is_ok_and(|on| match on {
            On::Sim(runtime, stream) => runtime.is_idle(stream),
            On::Cuda(runtime, stream) => runtime.is_idle(stream),
        })
    }

    /// Waits until the stream is idle.
    pub(crate) fn synchronize(&self, stream: RawStream) -> Result<()> {
        match self.on(stream)? {
            On::Sim(runtime, stream) => runtime.synchronize(stream),
            On::Cuda(runtime, stream) => runtime.synchronize(stream),
        }
    }

    /// Marks a point in the stream.
    pub(crate) fn record_event(&self, stream: RawStream) -> Result<RawEvent> {
        match self.on(stream)? {
            On::Sim(runtime, stream) => runtime.record_event(stream).map(RawEvent::Sim),
            On::Cuda(runtime, stream) => runtime.record_event(stream).map(RawEvent::Cuda),
        }
    }

    /// [`Self::record_event`] that never waits, not even for the rank's own stream: for the end of a buffer's or a rank's life.
    pub(crate) fn mark(&self, stream: RawStream) -> Result<RawEvent> {
        match self.on(stream)? {
            On::Sim(runtime, stream) => runtime.mark(stream).map(RawEvent::Sim),
            On::Cuda(runtime, stream) => runtime.mark(stream).map(RawEvent::Cuda),
        }
    }

    /// Lets the stream wait for an event of any stream of the same device.
    pub(crate) fn wait_event(&self, stream: RawStream, event: &RawEvent) -> Result<()> {
        match (self.on(stream)?, event) {
            (On::Sim(runtime, stream), RawEvent::Sim(event)) => runtime.wait_event(stream, event),
            (On::Cuda(runtime, stream), RawEvent::Cuda(event)) => runtime.wait_event(stream, event),
            _ => Err(self.event_of_another(event)),
        }
    }

    /// Waits until the event is reached, on whichever rank's stream it is.
    pub(crate) fn synchronize_event(&self, event: &RawEvent) -> Result<()> {
        match (self, event) {
            (Self::Sim(runtime), RawEvent::Sim(event)) => runtime.synchronize_event(event),
            (Self::Cuda(runtime), RawEvent::Cuda(event)) => runtime.synchronize_event(event),
            _ => Err(self.event_of_another(event)),
        }
    }

    /// Milliseconds between two events that have both happened.
    pub(crate) fn elapsed_ms(&self, from: &RawEvent, to: &RawEvent) -> Result<f64> {
        match (self, from, to) {
            (Self::Sim(runtime), RawEvent::Sim(from), RawEvent::Sim(to)) => runtime.elapsed_ms(from, to),
            (Self::Cuda(runtime), RawEvent::Cuda(from), RawEvent::Cuda(to)) => runtime.elapsed_ms(from, to),
            (Self::Sim(_), RawEvent::Sim(_), _) | (Self::Cuda(_), RawEvent::Cuda(_), _) => {
                Err(self.event_of_another(to))
            }
            _ => Err(self.event_of_another(from)),
        }
    }

    /// Takes the rank's streams, for whoever waits for what is left on them. The rank uses none any more.
    pub(crate) fn leave_streams(&self) -> LeftStreams {
        match self {
            Self::Sim(_) => None,
            Self::Cuda(runtime) => Some(runtime.leave_streams()),
        }
    }

    /// Whether giving memory back costs nothing, so that it is done before more is taken.
    pub(crate) fn gives_back_freely(&self) -> bool {
        matches!(self, Self::Sim(_))
    }

    /// Reserves `blocks` whole SMs: ranks on one GPU wait for each other, so all their blocks must be resident at once.
    pub(crate) fn reserve_sms(&self, blocks: u32) -> Result<Option<Reservation>> {
        match self {
            // A simulated rank has a device of its own.
            Self::Sim(runtime) if blocks > runtime.sms() => {
                Err(Error::argument("num_sms", blocks, format!("a simulated rank has {} SMs", runtime.sms())))
            }
            Self::Sim(_) => Ok(None),
            Self::Cuda(runtime) => runtime.device().reserve_sms(blocks).map(Some),
        }
    }

    /// Loads a kernel and sets its attributes, so that no later launch does (lazy loading synchronises against a peer that
    /// spins). Returns how many of its blocks fit on one SM with `shared_bytes` of dynamic shared memory.
    pub(crate) fn prepare<A: KernelArg>(&self, kernel: &Kernel<A>, shared_bytes: u32) -> Result<u32> {
        match self {
            Self::Sim(runtime) => runtime.prepare(kernel, shared_bytes),
            Self::Cuda(runtime) => runtime.prepare(kernel, shared_bytes),
        }
    }

    /// Lets no launch begin before the one before it is over: other ranks may need the places on SMs that it would take.
    pub(crate) fn keep_launches_apart(&mut self) {
        match self {
            // They never do here.
            Self::Sim(_) => {}
            Self::Cuda(runtime) => runtime.keep_launches_apart(),
        }
    }

    /// Launches a prepared kernel, enqueued.
    ///
    /// # Safety
    ///
    /// `args` keeps the contract that its type's docs state until the kernel has run.
    pub(crate) unsafe fn launch<A: KernelArg + Send + Sync>(
        &self,
        kernel: &Kernel<A>,
        grid: u32,
        shared_bytes: u32,
        args: &A,
        stream: RawStream,
    ) -> Result<()> {
        match self.on(stream)? {
            // SAFETY: the arguments keep the kernel's contract, by the caller's promise, which is all that the simulator asks.
            On::Sim(runtime, stream) => unsafe { runtime.launch(kernel, grid, shared_bytes, args, stream) },
            // SAFETY: the arguments keep the kernel's contract, by the caller's promise, which is all that the driver asks.
            On::Cuda(runtime, stream) => unsafe { runtime.launch(kernel, grid, shared_bytes, args, stream) },
        }
    }
}
