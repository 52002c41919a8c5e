//! The machine: its books, its workers and its life.
//!
//! [`Core`] is what the workers share. [`Machine`] is the handle that users clone; when the last one goes, an actor's
//! included, the workers drop what is resident and end.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::actor::Actor;
use crate::arena::Arena;
use crate::config::{MachineConfig, Mode};
use crate::context::Seat;
use crate::error::SimError;
use crate::event::Event;
use crate::patience::Stillness;
use crate::stall::Quiet;
use crate::stream::{Op, Placing, Queue, SM_PARTS, Ticket};
use crate::watchdog::{Running, Watched};
use crate::{context, executor, schedule};

/// A simulated machine of several GPUs. A handle: clones are the same machine.
#[derive(Clone)]
pub struct Machine {
    handle: Arc<Handle>,
}

struct Handle {
    core: Arc<Core>,
    workers: Vec<JoinHandle<()>>,
}

/// What workers and actors share.
pub(crate) struct Core {
    /// No other machine of the process has it, also not a later one.
    pub id: u64,
    pub config: MachineConfig,
    pub arena: Arena,
    /// One for each worker.
    pub seats: Vec<Seat>,
    /// The number of the next launch.
    pub launches: AtomicU64,
    /// Virtual time in ns.
    pub clock: AtomicU64,
    /// Counts changes that anyone could see. A worker that finds it unchanged over its quiet rounds may sleep; when all
    /// have, the machine stands still.
    pub changes: AtomicU64,
    /// Whether workers must drop everything: the machine halted or ends.
    pub stop: AtomicBool,
    /// A hash over the choices of a seeded schedule.
    pub trace: AtomicU64,
    /// Whether a worker's inbox has mail.
    pub mail: Vec<AtomicBool>,
    books: Mutex<Books>,
    /// Workers wait here.
    pub work: Condvar,
    /// Actors wait here.
    pub host: Condvar,
    /// Who waits for the end of workers, or of writes, waits here.
    pub settled: Condvar,
}

/// The books under the lock.
pub(crate) struct Books {
    pub actors: Vec<ActorState>,
    pub streams: Vec<Vec<Queue>>,
    pub placing: Vec<VecDeque<Placing>>,
    pub free_parts: Vec<u64>,
    /// Finished blocks of the kernel at a stream's head.
    pub finished: HashMap<(u32, u32), u32>,
    pub inboxes: Vec<Vec<Ticket>>,
    pub loads: Vec<u64>,
    pub quiet: Vec<Quiet>,
    pub host_calls: usize,
    pub payloads: Vec<Option<Vec<u8>>>,
    pub outcomes: Vec<Option<Outcome>>,
    pub halt: Option<SimError>,
    pub shutdown: bool,
    /// Calls of host threads.
    pub calls: u64,
    /// Ranks whose host threads run and count as blocked, until they call again.
    pub overdue: Vec<bool>,
    pub stillness: Stillness,
    /// Kernels some of whose blocks have started, by their numbers.
    pub running: HashMap<u64, Running>,
    /// What each worker was last seen doing.
    pub watched: Vec<Watched>,
    /// When only host threads that run could last move the machine.
    pub waited: Instant,
    /// Workers that run nothing of anybody's any more, and those that run what cannot be ended.
    pub ended: Vec<bool>,
    pub lost: Vec<bool>,
    /// Host threads that write device memory, or give it back.
    pub touching: usize,
}

/// What was queued when the machine stopped. Its closures may own anything, the machine included.
pub(crate) struct Abandoned {
    _tickets: Vec<Vec<Ticket>>,
    _ops: Vec<VecDeque<Op>>,
    _placing: Vec<VecDeque<Placing>>,
}

/// How an exchange ended for a rank that waited in it.
pub(crate) type Outcome = Result<Arc<Vec<Vec<u8>>>, SimError>;

/// What a rank's host thread does.
pub(crate) enum ActorState {
    /// It has not come yet. It counts as running: ranks start in any order.
    Absent,
    Running,
    InSynchronize(u32),
    InEvent(Event),
    InExchange,
    /// Its actor said that it left, and counts as gone until it is used again.
    Left,
    Gone,
}

impl ActorState {
    /// Whether the machine waits for it: it runs, or it has not come yet.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self, Self::Absent | Self::Running)
    }

    /// Whether its rank has no host thread any more.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Left | Self::Gone)
    }
}

impl Machine {
    /// Builds a machine and starts its workers.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] for a configuration out of range; [`SimError::Host`] when the host has no address
    /// space or thread left.
    pub fn new(config: MachineConfig) -> Result<Self, SimError> {
        config.validate()?;
        context::install_panic_hook();
        static MACHINES: AtomicU64 = AtomicU64::new(1);
        let workers = config.worker_count();
        let core = Arc::new(Core {
            id: MACHINES.fetch_add(1, Ordering::Relaxed),
            arena: Arena::new(&config)?,
            seats: (0..workers).map(|_| Seat::new(config.watchdog)).collect(),
            launches: AtomicU64::new(1),
            clock: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            trace: AtomicU64::new(0),
            mail: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            books: Mutex::new(Books::new(&config, workers)),
            work: Condvar::new(),
            host: Condvar::new(),
            settled: Condvar::new(),
            config,
        });
        // The handle exists before the threads do, so that a refused thread still ends those before it.
        let mut handle = Handle { core: Arc::clone(&core), workers: Vec::new() };
        for index in 0..workers {
            let core = Arc::clone(&core);
            let body = move || {
                let run = || match core.config.mode {
                    Mode::Fast { .. } => executor::work(&core, index),
                    Mode::Seeded { seed } => schedule::work(&core, seed),
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

    /// Registers the calling thread as the host thread of `rank`.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] when there is no such rank, or it has a host thread.
    pub fn actor(&self, rank: u32) -> Result<Actor, SimError> {
        self.check_rank(rank)?;
        let mut books = self.core().lock();
        let state = &mut books.actors[rank as usize];
        if !matches!(state, ActorState::Absent | ActorState::Gone) {
            return Err(SimError::invalid(
                "rank",
                rank,
                "a rank has one host thread at a time, and this one has its own",
            ));
        }
        *state = ActorState::Running;
        books.hear(rank);
        Ok(Actor::new(self.clone(), rank))
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

    /// Returns virtual time in ns.
    #[must_use]
    pub fn virtual_ns(&self) -> u64 {
        self.core().clock.load(Ordering::Relaxed)
    }

    /// Returns a hash over every choice of a seeded schedule so far: one seed, one hash. 0 in the fast mode.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.core().trace.load(Ordering::Relaxed)
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

impl Core {
    /// The books. Every holder leaves them whole before anything that may panic, so a poisoned lock is still good.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets virtual time pass. It ends at its largest value: a jump to a deadline there must not wrap it.
    pub(crate) fn pass_time(&self, elapsed: u64) {
        if elapsed > 0 {
            let later = |now: u64| Some(now.saturating_add(elapsed));
            let _ = self.clock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
        }
    }

    /// Says that something changed that anyone could see.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Stops the machine for good. The first reason counts.
    pub(crate) fn halt(&self, books: &mut Books, error: SimError) {
        if books.halt.is_some() {
            return;
        }
        books.halt = Some(error);
        self.stop.store(true, Ordering::Release);
        self.seats.iter().for_each(|seat| seat.reins().stop());
        for actor in &mut books.actors {
            if !actor.is_running() && !actor.is_gone() {
                *actor = ActorState::Running;
            }
        }
        self.work.notify_all();
        self.host.notify_all();
    }
}

impl Books {
    fn new(config: &MachineConfig, workers: usize) -> Self {
        let ranks = config.ranks as usize;
        Self {
            actors: (0..ranks).map(|_| ActorState::Absent).collect(),
            streams: (0..ranks).map(|_| Vec::new()).collect(),
            placing: (0..ranks).map(|_| VecDeque::new()).collect(),
            free_parts: vec![u64::from(config.sms_per_rank) * SM_PARTS; ranks],
            finished: HashMap::new(),
            inboxes: (0..workers).map(|_| Vec::new()).collect(),
            loads: vec![0; workers],
            quiet: (0..workers).map(|_| Quiet::default()).collect(),
            host_calls: 0,
            payloads: vec![None; ranks],
            outcomes: vec![None; ranks],
            halt: None,
            shutdown: false,
            calls: 0,
            overdue: vec![false; ranks],
            stillness: Stillness::new(),
            running: HashMap::new(),
            watched: vec![Watched::new(); workers],
            waited: Instant::now(),
            ended: vec![false; workers],
            lost: vec![false; workers],
            touching: 0,
        }
    }

    /// Takes out whatever is queued; the caller drops it once it has released the lock.
    pub(crate) fn abandon(&mut self) -> Abandoned {
        let called = self.inboxes.iter().flatten().filter(|ticket| matches!(ticket, Ticket::HostCall { .. }));
        self.host_calls -= called.count();
        Abandoned {
            _tickets: self.inboxes.iter_mut().map(std::mem::take).collect(),
            _ops: self.streams.iter_mut().flatten().map(|queue| std::mem::take(&mut queue.ops)).collect(),
            _placing: self.placing.iter_mut().map(std::mem::take).collect(),
        }
    }

    /// Whether every host thread is blocked or gone, or counts as blocked.
    pub(crate) fn all_blocked(&self) -> bool {
        !self.actors.iter().zip(&self.overdue).any(|(actor, overdue)| actor.is_running() && !overdue)
    }

    /// The worker with the fewest resident threads.
    pub(crate) fn lightest_worker(&self) -> usize {
        let lightest = self.loads.iter().enumerate().min_by_key(|&(_, load)| load);
        lightest.map_or(0, |(worker, _)| worker)
    }
}
