//! The handle on a machine that users clone, and the life of its workers: when the last handle goes, an actor's included, the
//! workers drop what is resident and end.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use crate::config::{MachineConfig, Mode};
use crate::engine::books::{ActorState, Core, Mourner};
use crate::engine::thread::context;
use crate::error::SimError;
use crate::worker::{fast, seeded};

/// A simulated machine of several GPUs. A handle: clones are the same machine.
#[derive(Clone)]
pub struct Machine {
    handle: Arc<Handle>,
}

struct Handle {
    core: Arc<Core>,
    workers: Vec<JoinHandle<()>>,
}

impl Machine {
    /// Builds a machine and starts its workers.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] for a configuration out of range; [`SimError::Host`] when the host has no address
    /// space or thread left.
    pub fn new(config: MachineConfig) -> Result<Self, SimError> {
        Self::start(config, None)
    }

    /// [`Self::new`], of all ranks or as the process of one of them.
    pub(crate) fn start(config: MachineConfig, process: Option<u32>) -> Result<Self, SimError> {
        config.validate()?;
        context::install_panic_hook();
        let core = Arc::new(Core::new(config, process)?);
        // The handle exists before the threads do, so that a refused thread still ends those before it.
        let mut handle = Handle { core: Arc::clone(&core), workers: Vec::new() };
        for index in 0..core.seats.len() {
            let core = Arc::clone(&core);
            let body = move || {
                let run = || match core.config.mode {
                    Mode::Fast { .. } => fast::work(&core, index),
                    Mode::Seeded { seed } => seeded::work(&core, seed),
                };
                // A defect of the simulator itself must not leave its users waiting.
                if let Err(payload) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
                    let message = context::panic_text(&*payload);
                    core.halt(&mut core.lock(), SimError::Host { what: "a worker thread, which panicked", message });
                }
                core.ended(index);
            };
            let spawned = std::thread::Builder::new().name(format!("sim-worker-{index}")).spawn(body);
            let spawned =
                spawned.map_err(|error| SimError::Host { what: "a worker thread", message: error.to_string() })?;
            handle.workers.push(spawned);
        }
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Returns the machine's configuration.
    #[must_use]
    pub fn config(&self) -> &MachineConfig {
        &self.core().config
    }

    /// Declares which ranks will have a host thread; the others count as gone, not as not yet there.
    ///
    /// Without this call the machine waits for the host threads of all ranks before it draws conclusions.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] when a rank does not exist.
    pub fn expect_actors(&self, ranks: &[u32]) -> Result<(), SimError> {
        for &rank in ranks {
            self.check_rank(rank)?;
        }
        let mut books = self.core().lock();
        for (rank, state) in (0u32..).zip(&mut books.actors) {
            if matches!(state, ActorState::Absent) && !ranks.contains(&rank) {
                *state = ActorState::Gone;
            }
        }
        self.core().changed();
        self.core().work.notify_all();
        Ok(())
    }

    /// Returns virtual time in ns. Of a machine that is one process among several: the host's, since the machine began.
    #[must_use]
    pub fn virtual_ns(&self) -> u64 {
        self.core().clock.now()
    }

    /// Kills a rank of a seeded machine, as if it were a process that is killed: its kernels stop where they are, its streams too, its
    /// host thread can call nothing any more ([`SimError::Killed`]), and its memory stays as it is. The others see that its host
    /// thread is gone, and no more.
    ///
    /// From the host thread of any rank it is the same death with the same seed; so is [`MachineConfig::death`], in the middle of a
    /// kernel.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] when there is no such rank, or in the fast mode.
    pub fn kill(&self, rank: u32) -> Result<(), SimError> {
        self.check_rank(rank)?;
        if !matches!(self.config().mode, Mode::Seeded { .. }) {
            return Err(SimError::invalid("mode", format_args!("{:?}", self.config().mode), "Mode::Seeded"));
        }
        let mut books = self.core().lock();
        self.core().kill(&mut books, rank);
        Ok(())
    }

    /// Has a word of `rank`'s memory hear of ranks that are killed: `word` of each is stored there, at the moment of its death, as a watch of
    /// processes would that was as fast as can be. Until [`Self::tell_no_deaths`], or the memory is gone.
    pub fn tell_deaths(&self, rank: u32, at: u64, word: fn(u32) -> u64) {
        self.core().lock().mourners.push(Mourner { rank, at, word });
    }

    /// Ends what [`Self::tell_deaths`] began for the word at this address.
    pub fn tell_no_deaths(&self, at: u64) {
        self.core().lock().mourners.retain(|mourner| mourner.at != at);
    }

    /// Returns whether a rank was killed.
    #[must_use]
    pub fn was_killed(&self, rank: u32) -> bool {
        matches!(self.core().lock().actors.get(rank as usize), Some(ActorState::Killed))
    }

    /// Returns how many turns the threads of a seeded machine have had so far, its host calls counted in. 0 in the fast mode.
    #[must_use]
    pub fn turns(&self) -> u64 {
        match self.config().mode {
            Mode::Seeded { .. } => self.core().seats[0].reins().turns(),
            Mode::Fast { .. } => 0,
        }
    }

    /// Returns a hash over every choice of a seeded schedule so far: one seed, one hash. 0 in the fast mode.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.core().trace.load(Ordering::Relaxed)
    }

    /// Returns the names of all kernels that this process has launched on the machine so far.
    #[must_use]
    pub fn launched_kernels(&self) -> BTreeSet<&'static str> {
        self.core().lock().kernels.clone()
    }

    pub(crate) fn core(&self) -> &Core {
        &self.handle.core
    }

    pub(crate) fn check_rank(&self, rank: u32) -> Result<(), SimError> {
        let ranks = self.config().ranks;
        if rank < ranks {
            Ok(())
        } else {
            Err(SimError::invalid("rank", rank, format!("below the machine's {ranks} ranks")))
        }
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("config", self.config()).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut books = self.core.lock();
        books.shutdown = true;
        self.core.stop.store(true, Ordering::Release);
        // Queued closures may own anything, so they are dropped after the lock is.
        let abandoned = books.abandon();
        drop(books);
        self.core.work.notify_all();
        drop(abandoned);
        // The last handle may die inside a host call, on a worker. That one ends by itself.
        let here = std::thread::current().id();
        let workers: Vec<(usize, JoinHandle<()>)> =
            self.workers.drain(..).enumerate().filter(|(_, worker)| worker.thread().id() != here).collect();
        let mut books = self.core.lock();
        while workers.iter().any(|&(index, _)| !books.ended[index] && !books.lost[index]) {
            self.core.watch(&mut books);
            books = self.core.settled.wait_timeout(books, self.core.tick()).unwrap_or_else(PoisonError::into_inner).0;
        }
        let ended = books.ended.clone();
        drop(books);
        for (index, worker) in workers {
            // One that is lost keeps what it needs of the machine, and ends by itself if it ever does.
            if ended[index] {
                // A worker that panicked has nothing left to end.
                let _ = worker.join();
            }
        }
    }
}
