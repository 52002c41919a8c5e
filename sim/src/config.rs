//! What a machine looks like, and how it schedules.
//!
//! The defaults are those of one H200 node: 132 SMs a rank and 227 KiB of shared memory a block. The arena is address
//! space, not memory: pages come from the operating system when a kernel first touches them.

use std::time::Duration;

use crate::error::SimError;
use crate::mutation::Mutation;

/// Chooses how the machine orders the simulated threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Runs as fast as the host can, on several workers. Order depends on the host.
    Fast {
        /// How many worker threads, at most 1024; 0 takes every core.
        workers: usize,
    },
    /// Runs one adversarial, deterministic schedule on one worker.
    ///
    /// The machine then steps only while every rank's host thread is blocked or gone.
    Seeded {
        /// Names the schedule.
        seed: u64,
    },
}

/// Describes a machine before it is built.
///
/// ```
/// # use epoxide_sim::{MachineConfig, Mode};
/// let config = MachineConfig::new(8, Mode::Seeded { seed: 3 }).with_sms_per_rank(4).with_arena_bytes(1 << 30);
/// assert_eq!((config.ranks, config.sms_per_rank), (8, 4));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MachineConfig {
    /// How many ranks (GPUs).
    pub ranks: u32,
    /// How many streaming multiprocessors each rank has.
    pub sms_per_rank: u32,
    /// The most dynamic shared memory a block may ask for, in bytes.
    pub shared_bytes_per_block: u32,
    /// Device memory of all ranks together, in bytes; every rank gets an equal part. It is address space until it is touched, but
    /// for a 1024th of each allocation, where the simulator keeps what it knows of it.
    pub arena_bytes: u64,
    /// The scheduling mode.
    pub mode: Mode,
    /// For how long of wall time a machine that stands still waits for host threads that are busy elsewhere.
    ///
    /// After that they count as blocked until they call again: in the fast mode deadlines pass, exchanges end with
    /// [`SimError::PeerSilent`], and a deadlock is one. A seeded machine halts with [`SimError::HostBusy`], because it would no
    /// longer be one seed, one run.
    pub patience: Duration,
    /// For how long of wall time a kernel may run.
    ///
    /// After that it fails as if it had broken a rule, with thread and source line. What never calls the simulator cannot be
    /// ended: it is named on standard error, the machine halts with [`SimError::Endless`], and the host thread that it runs
    /// on is left to it. A call on a stream that never returns ends the machine the same way. Who drops the machine waits no
    /// longer for either.
    pub watchdog: Duration,
    /// A step that the machine leaves out, for tests of tests.
    pub mutation: Option<Mutation>,
    /// When a rank is killed, in a seeded schedule.
    pub death: Option<Death>,
}

/// A rank that is killed in the middle of a seeded schedule, as by [`Machine::kill`](crate::Machine::kill): with the same seed and the
/// same host threads it is the same death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// The rank.
    pub rank: u32,
    /// After how many turns of the machine's threads ([`Machine::turns`](crate::Machine::turns)).
    pub turn: u64,
}

/// How finely one rank's part of the arena is cut: parts begin and end on these boundaries.
pub(crate) const PART_ALIGNMENT: u64 = 2 << 20;

/// No host can be told from a busy one in less.
const SHORTEST: Duration = Duration::from_millis(1);

impl MachineConfig {
    /// Describes a machine of `ranks` H200-like GPUs with 64 GiB of device memory for all of them, a patience of 30 seconds and
    /// a watchdog of 10 minutes.
    pub fn new(ranks: u32, mode: Mode) -> Self {
        Self {
            ranks,
            sms_per_rank: 132,
            shared_bytes_per_block: 232_448,
            arena_bytes: 64 << 30,
            mode,
            patience: Duration::from_secs(30),
            watchdog: Duration::from_secs(600),
            mutation: None,
            death: None,
        }
    }

    /// Sets how many streaming multiprocessors each rank has.
    #[must_use]
    pub fn with_sms_per_rank(mut self, sms_per_rank: u32) -> Self {
        self.sms_per_rank = sms_per_rank;
        self
    }

    /// Sets the device memory of all ranks together, in bytes.
    #[must_use]
    pub fn with_arena_bytes(mut self, arena_bytes: u64) -> Self {
        self.arena_bytes = arena_bytes;
        self
    }

    /// Sets the most dynamic shared memory a block may ask for, in bytes.
    #[must_use]
    pub fn with_shared_bytes_per_block(mut self, shared_bytes_per_block: u32) -> Self {
        self.shared_bytes_per_block = shared_bytes_per_block;
        self
    }

    /// Sets for how long of wall time a machine that stands still waits for host threads that are busy elsewhere.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sets for how long of wall time a kernel may run.
    #[must_use]
    pub fn with_watchdog(mut self, watchdog: Duration) -> Self {
        self.watchdog = watchdog;
        self
    }

    /// Leaves out a step, to see that a test notices.
    #[must_use]
    pub fn with_mutation(mut self, mutation: Mutation) -> Self {
        self.mutation = Some(mutation);
        self
    }

    /// Kills a rank in the middle of a seeded schedule.
    #[must_use]
    pub fn with_death(mut self, death: Death) -> Self {
        self.death = Some(death);
        self
    }

    /// Checks every field against its rule.
    pub(crate) fn validate(&self) -> Result<(), SimError> {
        if !(1..=1024).contains(&self.ranks) {
            return Err(SimError::invalid("ranks", self.ranks, "1 to 1024"));
        }
        if !(1..=65_536).contains(&self.sms_per_rank) {
            return Err(SimError::invalid("sms_per_rank", self.sms_per_rank, "1 to 65536"));
        }
        if self.shared_bytes_per_block > 1 << 24 {
            return Err(SimError::invalid("shared_bytes_per_block", self.shared_bytes_per_block, "at most 16 MiB"));
        }
        if self.part_bytes() == 0 || self.arena_bytes > 1 << 46 {
            return Err(SimError::invalid("arena_bytes", self.arena_bytes, "at least 2 MiB a rank, at most 64 TiB"));
        }
        for (argument, time) in [("patience", self.patience), ("watchdog", self.watchdog)] {
            if time < SHORTEST {
                return Err(SimError::invalid(
                    argument,
                    format_args!("{time:?}"),
                    format_args!("at least {SHORTEST:?}"),
                ));
            }
        }
        if let Some(Death { rank, .. }) = self.death {
            if rank >= self.ranks {
                return Err(SimError::invalid(
                    "death",
                    rank,
                    format_args!("one of the machine's {} ranks", self.ranks),
                ));
            }
            if !matches!(self.mode, Mode::Seeded { .. }) {
                return Err(SimError::invalid(
                    "death",
                    rank,
                    "of a seeded machine: a turn means nothing in the fast mode",
                ));
            }
        }
        match self.mode {
            Mode::Fast { workers } if workers > 1024 => Err(SimError::invalid("workers", workers, "at most 1024")),
            Mode::Fast { .. } | Mode::Seeded { .. } => Ok(()),
        }
    }

    /// The bytes of one rank's part of the arena.
    pub(crate) fn part_bytes(&self) -> u64 {
        self.arena_bytes / u64::from(self.ranks) / PART_ALIGNMENT * PART_ALIGNMENT
    }

    /// How many workers the mode asks for.
    pub(crate) fn worker_count(&self) -> usize {
        match self.mode {
            Mode::Fast { workers: 0 } => std::thread::available_parallelism().map_or(1, usize::from),
            Mode::Fast { workers } => workers,
            Mode::Seeded { .. } => 1,
        }
    }
}
