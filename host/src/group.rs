//! A group of ranks in one process.
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use epoxide_kernels::layout::MAX_RANKS;
use epoxide_sim::{Machine, MachineConfig, Mode};

use crate::bootstrap::{Bootstrap, ThreadBootstrap};
use crate::comm::Comm;
use crate::error::{Error, Result};
use crate::runtime::cuda::{CudaDevice, CudaRuntime};
use crate::runtime::sim::SimRuntime;
use crate::runtime::{RawStream, Runtime};
use crate::transport::local::LocalGroupState;

/// SMs of an operation on the simulated GPU unless the configuration says otherwise.
const DEFAULT_SIMULATED_SMS: u32 = 2;
/// Most SMs of an operation on a GPU unless the configuration says otherwise.
const MOST_DEFAULT_SMS: u32 = 16;

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
    /// When `f` panics, once the other ranks have returned.
    pub fn run_all<T: Send>(self, f: impl Fn(Comm) -> Result<T> + Sync) -> Vec<Result<T>> {
        std::thread::scope(|scope| {
            let f = &f;
            let run = move |comm: Comm| {
                let _leaves = Leaves(comm.clone());
                f(comm)
            };
            let threads: Vec<_> = self.comms.into_iter().map(|comm| scope.spawn(move || run(comm))).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        })
    }
}

/// A rank that leaves when its thread's work ends, also by a panic.
struct Leaves(Comm);

impl Drop for Leaves {
    fn drop(&mut self) {
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
