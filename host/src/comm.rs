//! A rank: its device, its stream, and its way to the other ranks.
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use epoxide_kernels::copy::copy;
use epoxide_kernels::delay::{DelayArgs, delay};
use epoxide_kernels::dequantize::dequantize;
use epoxide_kernels::layout::MAX_RANKS;
use epoxide_kernels::quantize::quantize;
use epoxide_sim::{Machine, MachineConfig, Mode};

use crate::bootstrap::{Bootstrap, ThreadBootstrap};
use crate::error::{Error, Result};
use crate::runtime::cuda::{CudaDevice, CudaRuntime};
use crate::runtime::sim::SimRuntime;
use crate::runtime::{RawEvent, RawStream, Reservation, Runtime};
use crate::tensor::{DeviceTensor, Element};
use crate::transport::local::{Estate, LocalGroupState};

/// One rank of a group: cheap to clone, and what buffers and tensors are made from.
///
/// Every operation of the safe API runs on the rank's own stream, in order.
#[derive(Clone)]
pub struct Comm {
    inner: Arc<CommInner>,
}

pub(crate) struct CommInner {
    pub rank: u32,
    pub size: u32,
    pub runtime: Runtime,
    pub stream: RawStream,
    pub local: Arc<LocalGroupState>,
    /// SMs of an operation where the configuration leaves them open: the same on every rank.
    default_num_sms: u32,
    bootstrap: Option<ThreadBootstrap>,
    /// What the rank has reserved of the device's SMs: as many as its largest buffer needs, since its stream runs one
    /// operation at a time.
    reserved: Mutex<(u32, Option<Reservation>)>,
    /// Memory of dropped tensors.
    spare: Mutex<Vec<Spare>>,
    /// Buffers made so far: the same number on every rank, since making one is collective.
    pub buffers_made: Mutex<u64>,
}

/// Device memory that a dropped tensor left.
struct Spare {
    address: u64,
    bytes: u64,
}

impl std::fmt::Debug for Comm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Comm(rank {} of {}, {})", self.rank(), self.size(), self.device())
    }
}

/// The ranks of one process: simulated ones, or on one or several GPUs.
///
/// ```
/// use epoxide::{LocalGroup, Mode};
/// let group = LocalGroup::simulated(2, Mode::Fast { workers: 0 })?;
/// let ranks = group.run(|comm| Ok(comm.rank()))?;
/// assert_eq!(ranks, [0, 1]);
/// # Ok::<(), epoxide::Error>(())
/// ```
#[derive(Debug)]
pub struct LocalGroup {
    comms: Vec<Comm>,
}

impl LocalGroup {
    /// Makes `ranks` simulated ranks.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for 0 or more than 64 ranks; [`Error::Simulator`] when the machine cannot be made.
    pub fn simulated(ranks: u32, mode: Mode) -> Result<Self> {
        check_ranks(ranks)?;
        Self::on_machine(&Machine::new(MachineConfig::new(ranks, mode))?)
    }

    /// Makes one rank of every rank of a simulated machine.
    ///
    /// # Errors
    ///
    /// [`Error::Simulator`] when a rank of the machine is taken.
    pub fn on_machine(machine: &Machine) -> Result<Self> {
        let ranks = machine.config().ranks;
        let local = LocalGroupState::new(ranks);
        let comms = (0..ranks).map(|rank| {
            let runtime = SimRuntime::new(machine.actor(rank)?);
            let stream = runtime.create_stream()?;
            Comm::new(rank, ranks, Runtime::Sim(runtime), stream, None, Arc::clone(&local), DEFAULT_SIMULATED_SMS)
        });
        Ok(Self { comms: comms.collect::<Result<_>>()? })
    }

    /// Makes `ranks` ranks that share the GPU `device`, each with a stream of its own.
    ///
    /// # Errors
    ///
    /// As [`Self::on_gpus`].
    pub fn on_gpu(ranks: u32, device: u32) -> Result<Self> {
        check_ranks(ranks)?;
        Self::on_gpus(&vec![device; ranks as usize])
    }

    /// Makes a rank for every entry of `devices`, which says on which GPU it runs, each with a stream of its own. A GPU may
    /// have several ranks; every two GPUs must reach each other's memory, and with atomics, as NVLink has them and PCIe has
    /// not.
    ///
    /// ```no_run
    /// use epoxide::LocalGroup;
    /// // One rank on each of two GPUs; two ranks on each.
    /// let group = LocalGroup::on_gpus(&[0, 1])?;
    /// let group = LocalGroup::on_gpus(&[0, 0, 1, 1])?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::GpuTooOld`] when the kernels cannot run there,
    /// [`Error::NoPeerAccess`] when two of the GPUs cannot reach each other,
    /// [`Error::DoesNotFit`] when a GPU has fewer hardware queues than ranks, and
    /// [`Error::InvalidArgument`] for no or more than 64 ranks, or for a GPU that is not there.
    pub fn on_gpus(devices: &[u32]) -> Result<Self> {
        Self::on_cuda(devices, CudaRuntime::create_stream)
    }

    /// [`Self::on_gpus`] on streams of the caller's, a rank for each: all that a rank enqueues is in order with the caller's own work
    /// on its stream, and no event is needed between the two.
    ///
    /// # Errors
    ///
    /// As [`Self::on_gpus`]; [`Error::InvalidArgument`] for a stream that is of another context than its GPU's primary one, or that
    /// is not non-blocking.
    ///
    /// # Safety
    ///
    /// Every stream is a live `CUstream`, is no other rank's, and outlives the rank: its [`Comm`]s, buffers and tensors.
    pub unsafe fn on_streams(streams: &[CudaStream]) -> Result<Self> {
        let devices: Vec<u32> = streams.iter().map(|stream| stream.device).collect();
        Self::on_cuda(&devices, |runtime| {
            let stream = streams[runtime.rank() as usize].stream;
            // SAFETY: the caller's promise.
            unsafe { runtime.adopt_stream(stream) }
        })
    }

    fn on_cuda(devices: &[u32], stream: impl Fn(&CudaRuntime) -> Result<RawStream>) -> Result<Self> {
        let ranks = u32::try_from(devices.len()).unwrap_or(u32::MAX);
        check_ranks(ranks)?;
        // One object for each GPU, however many ranks it has.
        let mut gpus = BTreeMap::new();
        for &device in devices {
            if let Entry::Vacant(gpu) = gpus.entry(device) {
                gpu.insert(CudaDevice::open(device)?);
            }
        }
        for (from, to) in gpus.values().flat_map(|from| gpus.values().map(move |to| (from, to))) {
            from.reach(to)?;
        }
        let default_num_sms = gpus.iter().map(|(device, gpu)| {
            let sharing = devices.iter().filter(|&d| d == device).count() as u32;
            (gpu.sms().saturating_sub(1) / sharing).clamp(1, MOST_DEFAULT_SMS)
        });
        let default_num_sms = default_num_sms.min().unwrap_or(1);
        let local = LocalGroupState::new(ranks);
        let comms = ThreadBootstrap::group(ranks).into_iter().zip(devices).map(|(bootstrap, device)| {
            let rank = bootstrap.rank();
            let runtime = CudaRuntime::new(Arc::clone(&gpus[device]), rank)?;
            let stream = stream(&runtime)?;
            Comm::new(rank, ranks, Runtime::Cuda(runtime), stream, Some(bootstrap), Arc::clone(&local), default_num_sms)
        });
        Ok(Self { comms: comms.collect::<Result<_>>()? })
    }

    /// How many GPUs this process may use: their numbers are below.
    ///
    /// # Errors
    ///
    /// [`Error::NoDriver`] or [`Error::DriverTooOld`].
    pub fn gpus() -> Result<u32> {
        CudaDevice::count()
    }

    /// The ranks, in order, to be moved to a thread each.
    pub fn into_comms(self) -> Vec<Comm> {
        self.comms
    }

    /// Runs `f` for every rank, each in a thread of its own, and returns what they return, in rank order.
    ///
    /// # Errors
    ///
    /// The error of the lowest rank that failed by itself, else of one that waited for another in vain.
    pub fn run<T: Send>(self, f: impl Fn(Comm) -> Result<T> + Sync) -> Result<Vec<T>> {
        let mut results = self.run_all(f);
        // A rank that was left alone says so too, but it is not what went wrong.
        let rank_of = |consequence: fn(&Error) -> bool| {
            results.iter().position(|r| r.as_ref().is_err_and(|error| !consequence(error)))
        };
        let first =
            rank_of(|e| matches!(e, Error::Bootstrap { .. } | Error::PeerAborted { .. } | Error::PeerTimeout { .. }))
                .or_else(|| rank_of(|e| matches!(e, Error::Bootstrap { .. } | Error::PeerAborted { .. })));
        if let Some(rank) = first {
            return results.swap_remove(rank).map(|_| Vec::new());
        }
        results.into_iter().collect()
    }

    /// [`Self::run`], with every rank's own result. A rank whose `f` has returned is gone: nobody waits for it any more, even if
    /// what it returned still holds its [`Comm`].
    ///
    /// # Panics
    ///
    /// When `f` panics.
    pub fn run_all<T: Send>(self, f: impl Fn(Comm) -> Result<T> + Sync) -> Vec<Result<T>> {
        std::thread::scope(|scope| {
            let f = &f;
            let run = move |comm: Comm| {
                let rank = comm.clone();
                let result = f(comm);
                rank.leave();
                result
            };
            let threads: Vec<_> = self.comms.into_iter().map(|comm| scope.spawn(move || run(comm))).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        })
    }
}

impl Comm {
    fn new(
        rank: u32,
        size: u32,
        runtime: Runtime,
        stream: RawStream,
        bootstrap: Option<ThreadBootstrap>,
        local: Arc<LocalGroupState>,
        default_num_sms: u32,
    ) -> Result<Self> {
        runtime.prepare(&delay, 0)?;
        runtime.prepare(&copy, 0)?;
        runtime.prepare(&quantize, 0)?;
        runtime.prepare(&dequantize, 0)?;
        let inner = CommInner {
            rank,
            size,
            runtime,
            stream,
            local,
            default_num_sms,
            bootstrap,
            reserved: Mutex::default(),
            spare: Mutex::default(),
            buffers_made: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn inner(&self) -> &CommInner {
        &self.inner
    }

    /// Says that this rank's host thread will not come to a collective call any more.
    fn leave(&self) {
        match (&self.inner.runtime, &self.inner.bootstrap) {
            (Runtime::Sim(runtime), _) => runtime.leave(),
            (_, Some(bootstrap)) => bootstrap.leave(),
            (_, None) => {}
        }
    }

    /// Whether `other` is the same rank of the same group.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.inner.rank
    }

    /// Ranks of the group.
    pub fn size(&self) -> u32 {
        self.inner.size
    }

    /// What this rank runs on, in words.
    pub fn device(&self) -> String {
        self.inner.runtime.description()
    }

    /// SMs of an operation when the configuration leaves them open, the same on every rank: on a simulated GPU two, since every
    /// simulated thread costs host time; on GPUs up to 16, as many as the ranks of one can have while they leave one SM free.
    pub fn default_num_sms(&self) -> u32 {
        self.inner.default_num_sms
    }

    /// Gives `payload` to every rank and returns everyone's, in rank order. Collective.
    ///
    /// # Errors
    ///
    /// [`Error::Bootstrap`] or [`Error::Simulator`] when another rank is gone.
    pub fn all_gather(&self, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
        match (&self.inner.runtime, &self.inner.bootstrap) {
            (Runtime::Sim(runtime), _) => runtime.exchange(payload),
            (_, Some(bootstrap)) => bootstrap.all_gather(payload),
            (_, None) => unreachable!("only simulated ranks have no bootstrap"),
        }
    }

    /// Waits on the host until every rank is here. Collective.
    ///
    /// # Errors
    ///
    /// As [`Self::all_gather`].
    pub fn barrier(&self) -> Result<()> {
        self.all_gather(&[]).map(|_| ())
    }

    /// Waits until everything enqueued on this rank's stream is done.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
    pub fn synchronize(&self) -> Result<()> {
        // Freeing waits for the whole GPU, where a peer may be waiting for this rank: there memory is kept for the next tensor,
        // and freed by the last rank of the group.
        if let Runtime::Cuda(_) = self.inner.runtime {
            return self.inner.runtime.synchronize(self.inner.stream);
        }
        // What was dropped before the wait is out of use after it; what is dropped meanwhile waits for the next.
        let spare = self.inner.take_spare();
        let waited = self.inner.runtime.synchronize(self.inner.stream);
        if waited.is_err() {
            self.inner.spare.lock().unwrap_or_else(PoisonError::into_inner).extend(spare);
            return waited;
        }
        let heap = self.inner.runtime.heap();
        spare.into_iter().try_for_each(|s| heap.free(s.address))
    }

    /// Allocates device memory for a tensor, if possible what a dropped one of about that size left: its last use and the next
    /// are on the same stream, so they are in order.
    pub(crate) fn allocate(&self, bytes: u64) -> Result<(u64, u64)> {
        let mut spare = self.inner.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = spare.iter().position(|s| s.bytes >= bytes && s.bytes / 2 <= bytes) {
            let Spare { address, bytes } = spare.swap_remove(i);
            return Ok((address, bytes));
        }
        drop(spare);
        Ok((self.inner.runtime.allocate("a tensor", bytes)?, bytes))
    }

    /// Allocates a tensor of `len` elements, with whatever was in the memory.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn empty<T: Element>(&self, len: u64) -> Result<DeviceTensor<T>> {
        DeviceTensor::new(self.clone(), len)
    }

    /// Allocates a tensor and copies `values` into it.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn tensor<T: Element>(&self, values: &[T]) -> Result<DeviceTensor<T>> {
        let mut tensor = self.empty(values.len() as u64)?;
        tensor.copy_from_host(values)?;
        Ok(tensor)
    }

    /// Holds this rank's stream for a while (of virtual time on the simulated GPU): for tests of uneven ranks.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for more than an hour;
    /// [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
    pub fn delay(&self, time: Duration) -> Result<()> {
        if time > LONGEST_DELAY {
            return Err(Error::argument("time", format!("{time:?}"), "at most an hour"));
        }
        let args = DelayArgs { ns: time.as_nanos() as u64 };
        // SAFETY: the kernel touches no memory.
        unsafe { self.inner.runtime.launch(&delay, 1, 0, &args, self.inner.stream) }
    }

    /// The rank's `CUstream` as a number, for work of the caller's own in the same order; `None` on the simulated GPU.
    pub fn cuda_stream(&self) -> Option<u64> {
        match self.inner.stream {
            RawStream::Sim(_) => None,
            RawStream::Cuda(stream) => Some(stream),
        }
    }

    /// Marks this point of the rank's stream.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
    pub fn record(&self) -> Result<Event> {
        Ok(Event { raw: self.inner.runtime.record_event(self.inner.stream)? })
    }

    /// Lets this rank's stream wait for an event of any rank of the process.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`] or [`Error::Simulator`] when the device failed; [`Error::InvalidArgument`] for another runtime's event.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.inner.runtime.wait_event(self.inner.stream, &event.raw)
    }

    /// Milliseconds from one event to another of the same device, both reached; wall time on the simulated GPU.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] or [`Error::Cuda`] when one is not reached yet, or of another device.
    pub fn elapsed_ms(&self, from: &Event, to: &Event) -> Result<f64> {
        self.inner.runtime.elapsed_ms(&from.raw, &to.raw)
    }

    pub(crate) fn discard(&self, address: u64, bytes: u64) {
        self.inner.spare.lock().unwrap_or_else(PoisonError::into_inner).push(Spare { address, bytes });
    }
}

impl CommInner {
    /// Reserves SMs for operations of `blocks` blocks.
    pub(crate) fn reserve_sms(&self, blocks: u32) -> Result<()> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        if blocks > reserved.0 {
            // First given back, then taken anew: the two together may not fit.
            *reserved = (0, None);
            *reserved = (blocks, self.runtime.reserve_sms(blocks)?);
        }
        Ok(())
    }

    fn take_spare(&self) -> Vec<Spare> {
        std::mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// SMs of an operation on the simulated GPU unless the configuration says otherwise.
const DEFAULT_SIMULATED_SMS: u32 = 2;
/// Most SMs of an operation on a GPU unless the configuration says otherwise.
const MOST_DEFAULT_SMS: u32 = 16;

/// The longest [`Comm::delay`].
const LONGEST_DELAY: Duration = Duration::from_secs(3600);

fn check_ranks(ranks: u32) -> Result<()> {
    if (1..=MAX_RANKS).contains(&ranks) {
        return Ok(());
    }
    Err(Error::argument("ranks", ranks, format!("a group has 1 to {MAX_RANKS} ranks in one NVLink domain")))
}

/// A stream of the caller's, on which a rank runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaStream {
    /// The GPU.
    pub device: u32,
    /// The `CUstream` as a number.
    pub stream: u64,
}

/// A point in a rank's stream.
#[derive(Clone, Debug)]
pub struct Event {
    raw: RawEvent,
}

impl Drop for CommInner {
    /// Leaves what is still allocated to the group, whose last rank frees it: the stream may be busy with an operation
    /// that waits for a peer, and a drop never does.
    fn drop(&mut self) {
        if let Some(bootstrap) = &self.bootstrap {
            bootstrap.leave();
        }
        let estate = Estate {
            after: self.runtime.mark(self.stream).into_iter().collect(),
            memory: self.take_spare().into_iter().map(|s| s.address).collect(),
            ..Estate::of(&self.runtime)
        };
        self.local.leave(&self.runtime, estate);
    }
}
