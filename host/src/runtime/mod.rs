//! Runtimes: memory, streams, events and launches, on the simulated GPU or through the CUDA driver.
//!
//! Both have the same methods; this file is the only place that asks which one it is. A group makes the one or the other, and nothing
//! else of this crate knows.
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

    unsafe fn release(&mut self, segment: pool::Block) -> Result<()> {
        match self {
            // SAFETY: a segment of this object's, so of the runtime's that it stands for; unused, by the caller's promise.
            Self::Sim(segments) => unsafe { segments.release(segment) },
            // SAFETY: a segment of this object's, so of the runtime's that it stands for; unused, by the caller's promise.
            Self::Cuda(segments) => unsafe { segments.release(segment) },
        }
    }
}

/// Whose memory it is: frees what a rank allocated, also when the rank is gone.
pub(crate) enum Heap {
    Sim(epoxide_sim::Machine),
    Cuda(Arc<cuda::CudaDevice>),
}

impl Heap {
    /// Whether what is not freed stays until the process ends, whoever is gone; a simulated machine goes with the last who holds it.
    pub(crate) fn outlives_its_ranks(&self) -> bool {
        matches!(self, Self::Cuda(_))
    }

    /// Frees device memory. On a GPU it may wait for everything that runs there.
    ///
    /// # Safety
    ///
    /// A runtime of this device allocated it; no stream and no host code uses it any more, and it is freed once.
    pub(crate) unsafe fn free(&self, address: u64) -> Result<()> {
        match self {
            // SAFETY: nothing uses the memory any more, by the caller's promise, which is all that the machine asks.
            Self::Sim(machine) => Ok(unsafe { machine.free(address) }?),
            // SAFETY: `CudaDevice::free` asks of this device's memory what the caller promises.
            Self::Cuda(device) => unsafe { device.free(address) },
        }
    }

    /// Frees memory that host and device shared. On a GPU it may wait for everything that runs there.
    ///
    /// # Safety
    ///
    /// A runtime of this device allocated it as mapped memory; neither side uses it any more, and it is freed once.
    pub(crate) unsafe fn free_mapped(&self, mapped: Mapped) -> Result<()> {
        match self {
            // SAFETY: on a machine mapped memory is device memory at the same address, which neither side uses any more.
            Self::Sim(_) => unsafe { self.free(mapped.device) },
            // SAFETY: `CudaDevice::free_mapped` asks of mapped memory what the caller promises.
            Self::Cuda(device) => unsafe { device.free_mapped(mapped) },
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

/// [`forward`] for what touches memory at an address: each runtime's method has the `# Safety` that is stated here.
macro_rules! forward_unsafe {
    ($($(#[$doc:meta])* unsafe fn $name:ident(&self $(, $arg:ident: $t:ty)*) -> $r:ty;)*) => { $(
        $(#[$doc])*
        pub(crate) unsafe fn $name(&self $(, $arg: $t)*) -> $r {
            match self {
                // SAFETY: the caller's promise is about the address alone, and is what the simulator's method of this name asks.
                Self::Sim(runtime) => unsafe { runtime.$name($($arg),*) },
                // SAFETY: the caller's promise is about the address alone, and is what the driver's method of this name asks.
                Self::Cuda(runtime) => unsafe { runtime.$name($($arg),*) },
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

    /// Whether the device's clock is virtual: its times are no wall time.
    pub(crate) fn has_virtual_time(&self) -> bool {
        matches!(self, Self::Sim(_))
    }

    forward_unsafe! {
        /// Copies to the device in stream order; returns when `from` may be reused.
        ///
        /// # Safety
        ///
        /// `to` is the address of `from.len()` bytes of this rank's device memory, which only work that is before or behind this
        /// on `stream` touches; no reference of the host's lies in them.
        unsafe fn copy_to_device(&self, to: u64, from: &[u8], stream: RawStream) -> Result<()>;
        /// Copies to the host in stream order; returns when `to` is filled.
        ///
        /// # Safety
        ///
        /// `from` is the address of `to.len()` bytes of device memory that this rank may read, all of them written by work that
        /// is before this on `stream`, or whatever was there where the caller takes that.
        unsafe fn copy_to_host(&self, to: &mut [u8], from: u64, stream: RawStream) -> Result<()>;
        /// Sets bytes, enqueued.
        ///
        /// # Safety
        ///
        /// `to` is the address of `bytes` bytes of this rank's device memory, allocated until the stream has passed this, which
        /// only work that is before or behind this on `stream` touches; no reference of the host's lies in them.
        unsafe fn fill(&self, to: u64, byte: u8, bytes: u64, stream: RawStream) -> Result<()>;
    }

    /// Copies `bytes`, a multiple of 16, within the device, enqueued. Both addresses are multiples of 16.
    ///
    /// With a kernel on a GPU: a copy engine's queue is shared by streams, and a copy that waits there for its stream could
    /// hold up a rank that this one waits for.
    ///
    /// # Safety
    ///
    /// Both addresses are of `bytes` bytes of memory that this rank's device reaches, allocated until the stream has passed this.
    /// The ranges do not overlap, and until then nothing else writes either of them or reads `to`.
    pub(crate) unsafe fn copy_on_device(&self, to: u64, from: u64, bytes: u64, stream: RawStream) -> Result<()> {
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
        // SAFETY: memory of that size, which the caller promises.
        let args = unsafe { CopyArgs { from: Global::from_raw(from), to: Global::from_raw(to), vectors } };
        // SAFETY: the kernel's launch contract is two ranges of `vectors` times 16 bytes, aligned to 16, that do not overlap and that
        // nothing else writes until it has run: the caller's promise.
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
            // SAFETY: the arguments keep the kernel's contract, by the caller's promise, which is all that the simulator asks.
            Self::Sim(runtime) => unsafe { runtime.launch(kernel, grid, shared_bytes, args, stream) },
            // SAFETY: the arguments keep the kernel's contract, by the caller's promise, which is all that the driver asks.
            Self::Cuda(runtime) => unsafe { runtime.launch(kernel, grid, shared_bytes, args, stream) },
        }
    }
}
