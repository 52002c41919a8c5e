//! A rank: its device, its stream, and its way to the other ranks.
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
use crate::transport::local::LocalGroupState;

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
    /// Ranks that share this rank's device.
    pub ranks_on_device: u32,
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

/// The ranks of one process: simulated ones, or several on one GPU.
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
            let runtime = Runtime::Sim(SimRuntime::new(machine.actor(rank)?));
            // A simulated rank has a device of its own.
            Comm::new(rank, ranks, runtime, None, Arc::clone(&local), 1)
        });
        Ok(Self { comms: comms.collect::<Result<_>>()? })
    }

    /// Makes `ranks` ranks that share the GPU `device`, each with a stream of its own.
    ///
    /// # Errors
    ///
    /// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::GpuTooOld`] when the kernels cannot run there, and
    /// [`Error::DoesNotFit`] when the device has fewer hardware queues than ranks.
    pub fn on_gpu(ranks: u32, device: u32) -> Result<Self> {
        check_ranks(ranks)?;
        let device = CudaDevice::open(device)?;
        let local = LocalGroupState::new(ranks);
        let comms = ThreadBootstrap::group(ranks).into_iter().map(|bootstrap| {
            let rank = bootstrap.rank();
            let runtime = Runtime::Cuda(CudaRuntime::new(Arc::clone(&device), rank)?);
            Comm::new(rank, ranks, runtime, Some(bootstrap), Arc::clone(&local), ranks)
        });
        Ok(Self { comms: comms.collect::<Result<_>>()? })
    }

    /// GPUs that [`Self::on_gpu`] may be given.
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
        bootstrap: Option<ThreadBootstrap>,
        local: Arc<LocalGroupState>,
        ranks_on_device: u32,
    ) -> Result<Self> {
        let stream = runtime.create_stream()?;
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
            ranks_on_device,
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

    /// SMs of an operation when the configuration leaves them open: on a simulated GPU two, since every simulated thread
    /// costs host time; on a GPU up to 16, all ranks of it together leaving one SM free.
    pub fn default_num_sms(&self) -> u32 {
        match self.inner.runtime {
            Runtime::Sim(_) => 2,
            Runtime::Cuda(_) => (self.inner.runtime.sms().saturating_sub(1) / self.inner.ranks_on_device).clamp(1, 16),
        }
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
        spare.into_iter().try_for_each(|s| self.inner.runtime.free(s.address))
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

    /// Lets this rank's stream wait for an event of any rank on the same device.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`] or [`Error::Simulator`] when the device failed; [`Error::InvalidArgument`] for another runtime's event.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.inner.runtime.wait_event(self.inner.stream, &event.raw)
    }

    /// Milliseconds from one event to another, both reached; wall time on the simulated GPU.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when one is not reached yet.
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

/// The longest [`Comm::delay`].
const LONGEST_DELAY: Duration = Duration::from_secs(3600);

fn check_ranks(ranks: u32) -> Result<()> {
    if (1..=MAX_RANKS).contains(&ranks) {
        return Ok(());
    }
    Err(Error::argument("ranks", ranks, format!("a group has 1 to {MAX_RANKS} ranks in one NVLink domain")))
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
        let event = self.runtime.mark(self.stream).ok();
        let memory = self.take_spare().into_iter().map(|s| s.address).collect();
        self.local.leave(&self.runtime, event, memory);
    }
}
