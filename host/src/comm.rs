//! A rank: its device, its stream, and its way to the other ranks.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use epoxide_kernels::dequantize::dequantize;
use epoxide_kernels::measure::copy::copy;
use epoxide_kernels::measure::delay::{DelayArgs, delay};
use epoxide_kernels::quantize::quantize;

use crate::bootstrap::{Bootstrap, ThreadBootstrap};
use crate::error::{Error, Result};
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
    reserved: Mutex<ReservedSms>,
    /// Held by the thread of this rank that is in a collective call.
    collective: Mutex<()>,
    /// Memory of dropped tensors.
    spare: Mutex<Vec<Spare>>,
    /// Buffers made so far: the same number on every rank, since making one is collective.
    pub buffers_made: Mutex<u64>,
}

/// What a rank has reserved of its device's SMs: as many as its largest buffer needs, since its stream runs one operation at a
/// time.
#[derive(Default)]
struct ReservedSms {
    /// SMs of an operation of each buffer that was neither refused nor closed. One that was dropped may still be at work.
    buffers: Vec<u32>,
    /// Nothing on the simulated GPU, where a rank has a device of its own.
    claim: Option<Reservation>,
}

impl ReservedSms {
    fn most(&self) -> u32 {
        self.buffers.iter().copied().max().unwrap_or(0)
    }
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

impl Comm {
    pub(crate) fn new(
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
            collective: Mutex::default(),
            spare: Mutex::default(),
            buffers_made: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn inner(&self) -> &CommInner {
        &self.inner
    }

    /// Says that this rank's host thread will not come to a collective call any more.
    pub(crate) fn leave(&self) {
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
        let _turn = self.inner.collective();
        self.inner.gather(payload)
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
    ///
    /// The driver's queue of a stream holds about a thousand launches, and one into a full queue waits with the context locked, so
    /// that no other rank on the GPU can launch what this one waits for. Epoxide's own calls keep at most 112 entries ahead of the
    /// stream: with more than about seven launches of the caller's for each of them, [`Self::synchronize`] from time to time.
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
    /// Reserves SMs for a buffer whose operations have `blocks` blocks. What was reserved stays so if this fails.
    pub(crate) fn reserve_sms(&self, blocks: u32) -> Result<()> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let most = reserved.most().max(blocks);
        match &mut reserved.claim {
            Some(claim) => claim.resize(most)?,
            claim => *claim = self.runtime.reserve_sms(most)?,
        }
        reserved.buffers.push(blocks);
        Ok(())
    }

    /// Gives back what [`Self::reserve_sms`] took for a buffer with no work left.
    pub(crate) fn release_sms(&self, blocks: u32) {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = reserved.buffers.iter().position(|b| *b == blocks) {
            reserved.buffers.swap_remove(i);
        }
        let most = reserved.most();
        if let Some(claim) = &mut reserved.claim {
            claim.shrink(most);
        }
    }

    /// A collective call's turn: a rank's threads make them one after another.
    pub(crate) fn collective(&self) -> MutexGuard<'_, ()> {
        self.collective.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Comm::all_gather`] within a collective call that has its turn.
    pub(crate) fn gather(&self, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
        match (&self.runtime, &self.bootstrap) {
            (Runtime::Sim(runtime), _) => runtime.exchange(payload),
            (_, Some(bootstrap)) => bootstrap.all_gather(payload),
            (_, None) => unreachable!("only simulated ranks have no bootstrap"),
        }
    }

    fn take_spare(&self) -> Vec<Spare> {
        std::mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The longest [`Comm::delay`].
const LONGEST_DELAY: Duration = Duration::from_secs(3600);

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
            after: vec![self.runtime.mark(self.stream)],
            sms: self.reserved.get_mut().unwrap_or_else(PoisonError::into_inner).claim.take(),
            memory: self.take_spare().into_iter().map(|s| s.address).collect(),
            ..Estate::of(&self.runtime)
        };
        self.local.leave(&self.runtime, estate);
    }
}
