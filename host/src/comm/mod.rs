//! A rank: its device, its streams, and its way to the other ranks.
mod launch;
mod masks;
mod membership;
mod nccl;
mod on_gpu;
mod process;
mod run;
mod streams;
mod tensors;

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use epoxide_kernels::dequantize::dequantize;
use epoxide_kernels::measure::copy::copy;
use epoxide_kernels::measure::delay::{DelayArgs, delay};
use epoxide_kernels::quantize::quantize;

use self::membership::Membership;
use crate::alarm::Alarm;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::gone::Gone;
use crate::kernels::Loaded;
use crate::memory::Memory;
use crate::processes::without_masked;
use crate::rendezvous::{Rendezvous, Turn, meet};
use crate::runtime::{RawEvent, RawStream, Runtime};
use crate::sms::{DefaultSms, ReservedSms};
use crate::streams::Streams;
use crate::transport::local::{LeftBehind, LocalGroupState};

/// One rank of a group: cheap to clone, and what buffers and tensors are made from.
///
/// What is made by a handle runs on the handle's stream, in order: at first the rank's own. A handle for a further stream is made by
/// [`Self::on_new_stream`] or [`Self::on_cuda_stream`].
///
/// ```
/// use epoxide::{LocalGroup, Mode};
///
/// LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
///     let (here, there) = (comm.rank(), comm.size() - 1 - comm.rank());
///     // Device memory, lent by the rank's pool, and back in it when it is dropped.
///     let squares = comm.tensor(&[here * here, 4, 9])?;
///     assert_eq!(squares.to_vec()?, [here, 4, 9]);
///     // A few bytes to every rank, from host to host.
///     assert_eq!(comm.all_gather(&[here as u8])?[there as usize], [there as u8]);
///     // What follows on this stream is behind what was enqueued before.
///     let event = comm.record()?;
///     comm.wait(&event)?;
///     comm.synchronize()
/// })?;
/// # Ok::<(), epoxide::Error>(())
/// ```
#[derive(Clone)]
pub struct Comm {
    inner: OnStream,
}

/// A rank, on one of its streams.
#[derive(Clone)]
pub(crate) struct OnStream {
    shared: Arc<CommInner>,
    pub stream: RawStream,
    /// The stream's among the rank's.
    pub stream_number: u32,
}

impl Deref for OnStream {
    type Target = CommInner;

    fn deref(&self) -> &CommInner {
        &self.shared
    }
}

pub(crate) struct CommInner {
    pub rank: u32,
    pub size: u32,
    pub runtime: Arc<Runtime>,
    pub streams: Arc<Streams>,
    pub local: Arc<LocalGroupState>,
    /// Who is gone, and how this rank's kernels hear of it.
    pub alarm: Arc<Alarm>,
    default_sms: DefaultSms,
    pub rendezvous: Rendezvous,
    sms: Mutex<ReservedSms>,
    pub memory: Memory,
    /// Kernels of the caller's own.
    kernels: Mutex<Loaded>,
    /// Buffers made so far: the same number on every rank, since making one is collective.
    buffers_made: Mutex<u64>,
    /// Who shares windows, as it changes.
    membership: Membership,
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
        mut runtime: Runtime,
        stream: RawStream,
        rendezvous: Rendezvous,
        local: Arc<LocalGroupState>,
        default_sms: DefaultSms,
    ) -> Result<Self> {
        if default_sms.has_sharing() {
            runtime.keep_launches_apart();
        }
        runtime.prepare(&delay, 0)?;
        runtime.prepare(&copy, 0)?;
        runtime.prepare(&quantize, 0)?;
        runtime.prepare(&dequantize, 0)?;
        // From here on the rank is there, and leaves when it is dropped.
        local.join();
        let alarm = Alarm::new();
        local.hear(Arc::clone(&alarm));
        let runtime = Arc::new(runtime);
        let streams = Streams::new(stream);
        let memory = Memory::new(Arc::clone(&runtime), Arc::clone(&streams));
        let inner = CommInner {
            rank,
            size,
            runtime,
            streams,
            local,
            alarm,
            default_sms,
            rendezvous,
            sms: Mutex::default(),
            memory,
            kernels: Mutex::default(),
            buffers_made: Mutex::default(),
            membership: Membership::default(),
        };
        Ok(Self { inner: OnStream { shared: Arc::new(inner), stream, stream_number: 0 } })
    }

    pub(crate) fn inner(&self) -> &OnStream {
        &self.inner
    }

    /// Says that this rank's host thread will not come to a collective call any more.
    pub(crate) fn leave(&self) {
        self.inner.rendezvous.leave();
    }

    /// Whether `other` is the same rank of the same group.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner.shared, &other.inner.shared)
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

    /// SMs of an operation for a configuration that leaves them open, the same on every rank: on a simulated GPU two, since every
    /// simulated thread costs host time; on GPUs that the planner knows what it says for the configuration's most tokens
    /// ([`plan::fewest_sms`](crate::plan::fewest_sms)); on others up to 16. They are never more than the ranks of a GPU can have while they
    /// leave one SM free.
    pub fn default_num_sms(&self, config: &Config) -> u32 {
        self.inner.default_sms.of(config)
    }

    /// Gives `payload` to every rank and returns everyone's, in rank order, nothing of those that are [masked](Self::mask). Collective.
    ///
    /// # Errors
    ///
    /// [`Error::Bootstrap`] or [`Error::Simulator`] when another rank is gone.
    pub fn all_gather(&self, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
        let turn = self.inner.rendezvous.turn();
        Ok(without_masked(turn.masked(), turn.all_gather(payload)?))
    }

    /// Waits on the host until every rank is here. Collective.
    ///
    /// # Errors
    ///
    /// As [`Self::all_gather`].
    pub fn barrier(&self) -> Result<()> {
        self.all_gather(&[]).map(|_| ())
    }

    /// Gives up: whatever waits for this rank, or on it, ends with [`Error::PeerGone`] and this reason, on the device within about a
    /// millisecond. From any thread, and not collective; it waits for nobody. Operations of this rank that wait end too, and buffers
    /// that had such an operation are poisoned.
    pub fn abort(&self, reason: &str) {
        let how = Gone::Aborted { reason: reason.to_owned() };
        self.inner.local.raise(self.inner.rank, &how);
        self.inner.rendezvous.abort(reason);
    }

    /// Waits until everything enqueued on this handle's stream is done.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
    pub fn synchronize(&self) -> Result<()> {
        let inner = &self.inner;
        inner.runtime.synchronize(inner.stream)?;
        // On a GPU, giving back may wait for the whole of it, where a peer may be waiting for this rank.
        if inner.runtime.gives_back_freely() { inner.memory.give_back_unused() } else { Ok(()) }
    }

    /// Holds this handle's stream for a while (of virtual time on the simulated GPU): for tests of uneven ranks.
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

    /// The stream of this handle, a `CUstream` as a number, for work of the caller's own in the same order; `None` on the simulated GPU.
    ///
    /// The driver's queue of a stream holds about a thousand launches, and one into a full queue waits with the context locked, so
    /// that no other rank on the GPU can launch what this one waits for. Epoxide's own calls keep at most 112 entries ahead of the
    /// stream, [`Self::launch`] among them: with more than about seven launches by other ways for each of them, [`Self::synchronize`] from
    /// time to time.
    pub fn cuda_stream(&self) -> Option<u64> {
        self.inner.stream.cuda()
    }
}

impl CommInner {
    /// The id of the next buffer, unique in the process and, but for the group's part of it, the same on every rank. Within a
    /// collective call.
    pub(crate) fn next_buffer_id(&self) -> u64 {
        let mut made = self.buffers_made.lock().unwrap_or_else(PoisonError::into_inner);
        *made += 1;
        self.local.buffer_id(*made)
    }

    /// How a rank went of which the device says that it is gone, if this rank knows.
    pub(crate) fn how_it_went(&self, rank: u32) -> Option<Gone> {
        if self.runtime.was_killed(rank) { Some(Gone::Ended) } else { self.alarm.how(rank) }
    }

    /// Points of all the rank's streams, behind what is on them.
    pub(crate) fn marks(&self) -> Vec<Result<RawEvent>> {
        self.streams.all().into_iter().map(|stream| self.runtime.mark(stream)).collect()
    }

    /// Checks that the SMs of ranks that share a GPU as processes fit on it together, with `blocks` for a new buffer. Within a collective
    /// call; where no GPU is shared so, it does nothing.
    pub(crate) fn add_up_sms(&self, turn: &Turn<'_>, blocks: u32) -> Result<()> {
        let Some(shared) = self.default_sms.shared() else { return Ok(()) };
        let own = self.sms.lock().unwrap_or_else(PoisonError::into_inner).with(blocks);
        shared.check(&meet(turn, "SMs", &own.to_le_bytes())?, turn.masked())
    }

    /// Reserves SMs for a buffer whose operations have `blocks` blocks. What was reserved stays so if this fails.
    pub(crate) fn reserve_sms(&self, blocks: u32) -> Result<()> {
        self.sms.lock().unwrap_or_else(PoisonError::into_inner).reserve(&self.runtime, blocks)
    }

    /// Reserves SMs, as long as the rank lives, for kernels of the caller's own whose blocks must run together.
    fn keep_sms(&self, sms: u32) -> Result<()> {
        self.sms.lock().unwrap_or_else(PoisonError::into_inner).keep(&self.runtime, sms)
    }

    /// Gives back what [`Self::reserve_sms`] took for a buffer with no work left.
    pub(crate) fn release_sms(&self, blocks: u32) {
        self.sms.lock().unwrap_or_else(PoisonError::into_inner).release(blocks);
    }
}

/// The longest [`Comm::delay`].
const LONGEST_DELAY: Duration = Duration::from_secs(3600);

impl Drop for CommInner {
    /// Leaves what is still allocated to the group, whose last rank frees it: the stream may be busy with an operation
    /// that waits for a peer, and a drop never does.
    fn drop(&mut self) {
        self.rendezvous.end();
        let own = LeftBehind {
            rank: Some(self.rank),
            after: self.marks(),
            streams: self.runtime.leave_streams(),
            sms: self.sms.get_mut().unwrap_or_else(PoisonError::into_inner).leave(),
            // All of it is unused: a tensor holds its rank.
            tensors: self.memory.leave(),
            ..LeftBehind::of(&self.runtime)
        };
        self.local.leave(&self.runtime, own);
    }
}
