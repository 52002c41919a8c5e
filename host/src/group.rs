//! A group of ranks in one process.
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use epoxide_kernels::shape::MAX_RANKS;
use epoxide_sim::{Machine, MachineConfig, Mode};

use crate::comm::Comm;
use crate::error::{Error, Result};
use crate::rendezvous::{Member, Rendezvous, Simulated, Way};
use crate::runtime::cuda::{CudaDevice, CudaRuntime};
use crate::runtime::sim::SimRuntime;
use crate::runtime::{RawStream, Runtime};
use crate::sms::DefaultSms;
use crate::transport::local::LocalGroupState;

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
    /// Makes `ranks` simulated ranks. [`Self::on_machine`] takes a machine with another configuration: its memory, its SMs, how
    /// long it waits for host threads that are busy elsewhere, and how long a kernel may run.
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
    /// ```
    /// use std::time::Duration;
    /// use epoxide::{LocalGroup, Machine, MachineConfig, Mode};
    /// // A rank whose thread is busy for a minute is no reason to give up.
    /// let config = MachineConfig::new(2, Mode::Fast { workers: 0 }).with_patience(Duration::from_secs(60));
    /// let group = LocalGroup::on_machine(&Machine::new(config)?)?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Simulator`] when a rank of the machine is taken; [`Error::InvalidArgument`] when it has more than 64.
    pub fn on_machine(machine: &Machine) -> Result<Self> {
        let ranks = machine.config().ranks;
        check_ranks(ranks)?;
        let local = LocalGroupState::new();
        let comms = (0..ranks).map(|rank| {
            let runtime = SimRuntime::new(machine.actor(rank)?);
            let stream = runtime.create_stream()?;
            let rendezvous = Rendezvous::new(Way::Machine(Simulated::new(runtime.host_thread())));
            let (runtime, stream, local) = (Runtime::Sim(runtime), RawStream::Sim(stream), Arc::clone(&local));
            Comm::new(rank, ranks, runtime, stream, rendezvous, local, DefaultSms::simulated())
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
    /// not. The primary context of a GPU that a group was on stays until the process ends, with the memory that the driver takes for one.
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
    /// [`Error::NoDriver`], [`Error::DriverFailed`], [`Error::DriverTooOld`], [`Error::GpuTooOld`] when the kernels cannot run there,
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

    fn on_cuda(devices: &[u32], stream: impl Fn(&CudaRuntime) -> Result<u64>) -> Result<Self> {
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
        let shared: Vec<_> = gpus
            .iter()
            .map(|(device, gpu)| {
                let sharing = devices.iter().filter(|&d| d == device).count() as u32;
                (gpu.name().to_owned(), gpu.sms(), sharing)
            })
            .collect();
        let default_sms = DefaultSms::of_gpus(ranks, &shared);
        let local = LocalGroupState::new();
        let comms = Member::group(ranks).into_iter().zip(devices).map(|(member, device)| {
            let rank = member.rank();
            let runtime = CudaRuntime::new(Arc::clone(&gpus[device]), rank)?;
            let stream = RawStream::Cuda(stream(&runtime)?);
            let (runtime, rendezvous) = (Runtime::Cuda(runtime), Rendezvous::new(Way::Threads(member)));
            Comm::new(rank, ranks, runtime, stream, rendezvous, Arc::clone(&local), default_sms.clone())
        });
        Ok(Self { comms: comms.collect::<Result<_>>()? })
    }

    /// How many GPUs this process may use: their numbers are below.
    ///
    /// # Errors
    ///
    /// [`Error::NoDriver`], [`Error::DriverFailed`] or [`Error::DriverTooOld`].
    pub fn gpus() -> Result<u32> {
        CudaDevice::count()
    }

    /// The ranks, in order, to be moved to a thread each.
    pub fn into_comms(self) -> Vec<Comm> {
        self.comms
    }

    /// Runs `f` for every rank, each in a thread of its own, and returns what they return, in rank order. [`Self::try_run`] is for an
    /// `f` with errors of its own, and says which rank failed.
    ///
    /// A rank whose `f` fails or panics [gives up](Comm::abort): whatever waits for it, on the device too, ends at once.
    ///
    /// # Errors
    ///
    /// Of the ranks that failed by themselves, the error of the one that failed first; else of those that waited for another in
    /// vain.
    ///
    /// # Panics
    ///
    /// As [`Self::run_all`].
    pub fn run<T: Send>(self, f: impl Fn(Comm) -> Result<T> + Sync) -> Result<Vec<T>> {
        all_or_failures(self.run_ordered(f, Error::to_string)).map_err(|failed| {
            // A rank that was left alone says so too, but it is not what went wrong; and on the device, who gave up first is not
            // always who is told first.
            let consequence = |error: &Error| match error {
                Error::Bootstrap { .. } | Error::PeerAborted { .. } | Error::PeerGone { .. } => 2,
                Error::PeerTimeout { .. } => 1,
                _ => 0,
            };
            let failures = failed.into_failures();
            let cause = failures.into_iter().map(|(_, error)| error).min_by_key(consequence);
            cause.expect("a rank has failed")
        })
    }

    /// [`Self::run`] with errors of the caller's own type, into which ours turn by `?`.
    ///
    /// ```
    /// use epoxide::{LocalGroup, Mode};
    /// #[derive(Debug)]
    /// enum Wrong {
    ///     Epoxide(epoxide::Error),
    ///     Model(String),
    /// }
    /// impl From<epoxide::Error> for Wrong {
    ///     fn from(error: epoxide::Error) -> Self {
    ///         Self::Epoxide(error)
    ///     }
    /// }
    /// let group = LocalGroup::simulated(2, Mode::Fast { workers: 0 })?;
    /// let failed = group.try_run(|comm| {
    ///     if comm.rank() == 1 {
    ///         return Err(Wrong::Model("no weights for expert 3".to_owned()));
    ///     }
    ///     comm.barrier()?; // in vain, and after that
    ///     Ok(())
    /// });
    /// let (rank, cause) = failed.unwrap_err().into_first();
    /// assert!(rank == 1 && matches!(cause, Wrong::Model(_)));
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What every rank that failed returned, the one that failed first in front: what its peers say may be but the consequence.
    ///
    /// # Panics
    ///
    /// As [`Self::run_all`].
    pub fn try_run<T: Send, E: From<Error> + Send>(
        self,
        f: impl Fn(Comm) -> Result<T, E> + Sync,
    ) -> Result<Vec<T>, RanksFailed<E>> {
        // The caller's errors need not be of words.
        all_or_failures(self.run_ordered(f, |_| "it returned an error".to_owned()))
    }

    /// [`Self::run`], with every rank's own result. A rank whose `f` has returned is gone: nobody waits for it any more, even if
    /// what it returned still holds its [`Comm`].
    ///
    /// # Panics
    ///
    /// When `f` panics, once the other ranks have returned.
    pub fn run_all<T: Send>(self, f: impl Fn(Comm) -> Result<T> + Sync) -> Vec<Result<T>> {
        self.run_ordered(f, Error::to_string).into_iter().map(|(_, result)| result).collect()
    }

    /// Every rank's result, and how many had failed before it if it failed. `reason` says to the others why it gives up.
    fn run_ordered<T: Send, E: Send>(
        self,
        f: impl Fn(Comm) -> Result<T, E> + Sync,
        reason: impl Fn(&E) -> String + Sync,
    ) -> Vec<(u32, Result<T, E>)> {
        let failed = AtomicU32::new(0);
        let (f, failed, reason) = (&f, &failed, &reason);
        let run = move |comm: Comm| {
            let leaves = Leaves(comm.clone());
            let result = f(comm);
            // Before the rank leaves: what its peers fail by because of that comes after.
            let before = match &result {
                Ok(_) => 0,
                Err(error) => {
                    let before = failed.fetch_add(1, Ordering::Relaxed);
                    leaves.0.abort(&reason(error));
                    before
                }
            };
            drop(leaves);
            (before, result)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.comms.into_iter().map(|comm| scope.spawn(move || run(comm))).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        })
    }
}

/// All values, or all errors in the order in which they came.
fn all_or_failures<T, E>(results: Vec<(u32, Result<T, E>)>) -> Result<Vec<T>, RanksFailed<E>> {
    let mut failures = BTreeMap::new();
    let mut values = Vec::with_capacity(results.len());
    for (rank, (before, result)) in (0..).zip(results) {
        match result {
            Ok(value) => values.push(value),
            Err(error) => drop(failures.insert(before, (rank, error))),
        }
    }
    if failures.is_empty() { Ok(values) } else { Err(RanksFailed { failures: failures.into_values().collect() }) }
}

/// What the ranks that failed returned ([`LocalGroup::try_run`]), in the order in which they failed. There is at least one.
#[derive(Clone, Debug)]
pub struct RanksFailed<E> {
    failures: Vec<(u32, E)>,
}

impl<E> RanksFailed<E> {
    /// The ranks that failed and their errors, first the one that failed first.
    pub fn failures(&self) -> &[(u32, E)] {
        &self.failures
    }

    /// [`Self::failures`], owned.
    pub fn into_failures(self) -> Vec<(u32, E)> {
        self.failures
    }

    /// The rank that failed first, and its error.
    pub fn into_first(self) -> (u32, E) {
        self.failures.into_iter().next().expect("made with at least one")
    }
}

impl<E: fmt::Display> fmt::Display for RanksFailed<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (rank, error)) in self.failures.iter().enumerate() {
            write!(f, "{}rank {rank}: {error}", if number == 0 { "" } else { "; then " })?;
        }
        Ok(())
    }
}

impl<E: std::error::Error + 'static> std::error::Error for RanksFailed<E> {
    /// What the first error says is its cause: the error itself is in the text.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.failures.first().and_then(|(_, error)| error.source())
    }
}

/// A rank that leaves when its thread's work ends, also by a panic.
struct Leaves(Comm);

impl Drop for Leaves {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abort("it panicked");
        }
        self.0.leave();
    }
}

/// A stream of the caller's, on which a rank runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaStream {
    /// The GPU.
    pub device: u32,
    /// The `CUstream` as a number.
    pub stream: u64,
}

fn check_ranks(ranks: u32) -> Result<()> {
    if (1..=MAX_RANKS).contains(&ranks) {
        return Ok(());
    }
    Err(Error::argument("ranks", ranks, format!("a group has 1 to {MAX_RANKS} ranks in one NVLink domain")))
}
