//! The machine's books: what workers and actors share, and what of it is under the lock.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::launch::SM_PARTS;
use super::queue::{Op, Placing, Queue, Ticket};
use super::stream::Event;
use super::thread::context::Seat;
use super::time::clock::Clock;
use super::time::progress::{Lookout, Quiet, Running, Stillness, Watched};
use crate::config::MachineConfig;
use crate::error::SimError;
use crate::memory::arena::Arena;

/// What workers and actors share.
pub(crate) struct Core {
    /// No other machine of the process has it, also not a later one.
    pub id: u64,
    pub config: MachineConfig,
    pub arena: Arena,
    /// The one rank that is here, of a machine whose ranks are processes.
    pub process: Option<u32>,
    /// One for each worker.
    pub seats: Vec<Seat>,
    pub clock: Clock,
    /// Counts changes that anyone could see. A worker that finds it unchanged over its quiet rounds may sleep; when all
    /// have, the machine stands still.
    pub changes: AtomicU64,
    /// Whether workers must drop everything: the machine halted or ends.
    pub stop: AtomicBool,
    /// Host threads that wait for a word of device memory: a seeded machine looks for them.
    pub lookouts: AtomicUsize,
    /// Whether a rank was killed of which something may still be there.
    pub killed: AtomicBool,
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
    /// How often each rank has launched.
    pub launches: Vec<u64>,
    /// The names of all kernels that were launched.
    pub kernels: BTreeSet<&'static str>,
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
    /// Kernels some of whose blocks have started, by their keys.
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
    /// Who is told of ranks that are killed.
    pub mourners: Vec<Mourner>,
    /// For each rank those, a bit for each, that it goes on without: they were killed.
    pub masked: Vec<u64>,
}

/// A word of a rank's memory by which its kernels hear of ranks that are killed.
pub(crate) struct Mourner {
    pub rank: u32,
    pub at: u64,
    /// What is stored there of such a rank.
    pub word: fn(u32) -> u64,
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
    InLookout(Lookout),
    /// Its actor said that it left, and counts as gone until it is used again.
    Left,
    Gone,
    /// Its rank was killed: it counts as gone for good, whatever the thread does.
    Killed,
}

impl ActorState {
    /// Whether the machine waits for it: it runs, or it has not come yet.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self, Self::Absent | Self::Running)
    }

    /// Whether its rank has no host thread any more.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Left | Self::Gone | Self::Killed)
    }
}

impl Core {
    /// A machine that nobody has touched, with a place for each worker: of all ranks, or the process of one of them.
    pub(crate) fn new(config: MachineConfig, process: Option<u32>) -> Result<Self, SimError> {
        static MACHINES: AtomicU64 = AtomicU64::new(1);
        let workers = config.worker_count();
        Ok(Self {
            id: MACHINES.fetch_add(1, Ordering::Relaxed),
            arena: Arena::new(&config, process)?,
            process,
            seats: (0..workers).map(|_| Seat::new(config.watchdog)).collect(),
            clock: if process.is_some() { Clock::real() } else { Clock::simulated() },
            changes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            lookouts: AtomicUsize::new(0),
            killed: AtomicBool::new(false),
            trace: AtomicU64::new(0),
            mail: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            books: Mutex::new(Books::new(&config, process, workers)),
            work: Condvar::new(),
            host: Condvar::new(),
            settled: Condvar::new(),
            config,
        })
    }

    /// The books. Every holder leaves them whole before anything that may panic, so a poisoned lock is still good.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn new(config: &MachineConfig, process: Option<u32>, workers: usize) -> Self {
        let ranks = config.ranks as usize;
        // Nobody waits here for a host thread of another process.
        let actor = |rank| if process.is_none_or(|here| here == rank) { ActorState::Absent } else { ActorState::Gone };
        Self {
            actors: (0..config.ranks).map(actor).collect(),
            streams: (0..ranks).map(|_| Vec::new()).collect(),
            launches: vec![0; ranks],
            kernels: BTreeSet::new(),
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
            mourners: Vec::new(),
            masked: vec![0; ranks],
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
