//! Runtimes: memory, streams, events and launches, on the simulated GPU or through the CUDA driver.
//!
//! Both have the same methods; [`Runtime`] is the only place that asks which one it is.
pub(crate) mod cuda;
pub(crate) mod sim;

use std::sync::Arc;

use epoxide_dsl::memory::Global;
use epoxide_dsl::{Kernel, KernelArg};
use epoxide_kernels::measure::copy::{CopyArgs, copy};

use crate::error::{Error, Result};
use crate::pool;

/// Memory that both the host and the device can access while a kernel runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped {
    /// Where the host sees it.
    pub host: *mut u8,
    /// Where the device sees it.
    pub device: u64,
}

// SAFETY: an address range; every access to it is made through atomics by its users.
unsafe impl Send for Mapped {}

/// A queue of work on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RawStream {
    Sim(epoxide_sim::Stream),
    /// A `CUstream`.
    Cuda(u64),
}

/// A point in a stream.
#[derive(Clone, Debug)]
pub(crate) enum RawEvent {
    Sim(epoxide_sim::Event),
    Cuda(cuda::CudaEvent),
}

/// A rank's share of the SMs of a device that it shares with others; given back on drop.
pub(crate) type Reservation = cuda::SmReservation;

/// The streams of a rank that is gone; a simulated machine keeps its own.
pub(crate) type LeftStreams = Option<cuda::LeftStreams>;

/// Where a rank's memory for tensors comes from.
pub(crate) enum Segments {
    Sim(sim::SimSegments),
    Cuda(cuda::CudaSegments),
}

impl pool::Segments for Segments {
    fn extend(&mut self, end: u64, bytes: u64) -> Result<Option<pool::Block>> {
        match self {
            Self::Sim(segments) => segments.extend(end, bytes),
            Self::Cuda(segments) => segments.extend(end, bytes),
        }
    }

    fn segment(&mut self, bytes: u64) -> Result<pool::Block> {
        match self {
            Self::Sim(segments) => segments.segment(bytes),
            Self::Cuda(segments) => segments.segment(bytes),
        }
    }

    fn release(&mut self, segment: pool::Block) -> Result<()> {
        match self {
            Self::Sim(segments) => segments.release(segment),
            Self::Cuda(segments) => segments.release(segment),
        }
    }
}

/// Whose memory it is: frees what a rank allocated, also when the rank is gone.
pub(crate) enum Heap {
    Sim(epoxide_sim::Machine),
    Cuda(Arc<cuda::CudaDevice>),
}

impl Heap {
    /// Frees device memory that no stream uses any more. On a GPU it may wait for everything that runs there.
    pub(crate) fn free(&self, address: u64) -> Result<()> {
        match self {
            // SAFETY: the callers in this crate free what they allocated, once, when no stream uses it any more (see
            // `transport::local`, `Comm::synchronize` and `ElasticBuffer::close`).
            Self::Sim(machine) => Ok(unsafe { machine.free(address) }?),
            Self::Cuda(device) => device.free(address),
        }
    }

    /// Frees memory that host and device shared. On a GPU it may wait for everything that runs there.
    pub(crate) fn free_mapped(&self, mapped: Mapped) -> Result<()> {
        match self {
            Self::Sim(_) => self.free(mapped.device),
            Self::Cuda(device) => device.free_mapped(mapped),
        }
    }
}

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

/// The most blocks of a launch in one dimension (CUDA Programming Guide, "Compute Capabilities").
const MOST_BLOCKS: u32 = i32::MAX as u32;

impl Runtime {
    forward! {
        /// Largest dynamic shared memory of a block.
        fn shared_bytes_per_block(&self) -> u32;
        /// What the device is, in words.
        fn description(&self) -> String;
        /// Allocates device memory, at a multiple of 256 bytes; `what` is for the error.
        fn allocate(&self, what: &'static str, bytes: u64) -> Result<u64>;
        /// Where the rank's memory for tensors comes from.
        fn segments(&self) -> Segments;
        /// Whether everything on the stream is done; false where there is no knowing.
        fn is_idle(&self, stream: RawStream) -> bool;
        /// Whether giving memory back waits for no rank that may wait for this one, wherever they are.
        fn gives_back_alone(&self) -> bool;
        /// Allocates memory that host and device share, zeroed.
        fn allocate_mapped(&self, bytes: u64) -> Result<Mapped>;
        /// What frees both.
        fn heap(&self) -> Heap;
        /// Copies to the device in stream order; returns when `from` may be reused.
        fn copy_to_device(&self, to: u64, from: &[u8], stream: RawStream) -> Result<()>;
        /// Copies to the host in stream order; returns when `to` is filled.
        fn copy_to_host(&self, to: &mut [u8], from: u64, stream: RawStream) -> Result<()>;
        /// Sets bytes, enqueued.
        fn fill(&self, to: u64, byte: u8, bytes: u64, stream: RawStream) -> Result<()>;
        /// Waits until the stream is idle.
        fn synchronize(&self, stream: RawStream) -> Result<()>;
        /// Marks a point in the stream.
        fn record_event(&self, stream: RawStream) -> Result<RawEvent>;
        /// [`Self::record_event`] that never waits, not even for the rank's own stream: for the end of a buffer's or a rank's life.
        fn mark(&self, stream: RawStream) -> Result<RawEvent>;
        /// Lets the stream wait for an event of any stream of the same device.
        fn wait_event(&self, stream: RawStream, event: &RawEvent) -> Result<()>;
        /// Waits until the event is reached, on whichever rank's stream it is.
        fn synchronize_event(&self, event: &RawEvent) -> Result<()>;
        /// Takes the rank's streams, for whoever waits for what is left on them. The rank uses none any more.
        fn leave_streams(&self) -> LeftStreams;
        /// Milliseconds between two events that have both happened.
        fn elapsed_ms(&self, from: &RawEvent, to: &RawEvent) -> Result<f64>;
    }

    /// Copies `bytes`, a multiple of 16, within the device, enqueued. Both addresses are multiples of 16.
    ///
    /// With a kernel on a GPU: a copy engine's queue is shared by streams, and a copy that waits there for its stream could
    /// hold up a rank that this one waits for.
    pub(crate) fn copy_on_device(&self, to: u64, from: u64, bytes: u64, stream: RawStream) -> Result<()> {
        let vectors = bytes / 16;
        if vectors == 0 {
            return Ok(());
        }
        let grid = match self {
            Self::Sim(_) => 1,
            Self::Cuda(_) => {
                u32::try_from(vectors.div_ceil(copy.threads().into())).unwrap_or(u32::MAX).min(MOST_BLOCKS)
            }
        };
        // SAFETY: the caller's own memory of that size, which nothing else writes in stream order.
        let args = unsafe { CopyArgs { from: Global::from_raw(from), to: Global::from_raw(to), vectors } };
        // SAFETY: the launch contract of the kernel, as above.
        unsafe { self.launch(&copy, grid, 0, &args, stream) }
    }

    /// Blocks of a launch that fills the device with so many on each SM. Every simulated thread costs host time: there they are few.
    pub(crate) fn filling_blocks(&self, on_each_sm: u32) -> u32 {
        match self {
            Self::Sim(_) => 2,
            Self::Cuda(runtime) => runtime.sms() * on_each_sm,
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
        match self {
            // SAFETY: the caller's promise, passed on.
            Self::Sim(runtime) => unsafe { runtime.launch(kernel, grid, shared_bytes, args, stream) },
            // SAFETY: the same.
            Self::Cuda(runtime) => unsafe { runtime.launch(kernel, grid, shared_bytes, args, stream) },
        }
    }
}
