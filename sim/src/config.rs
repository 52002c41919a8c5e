//! What a machine looks like, and how it schedules.
//!
//! The defaults are those of one H200 node: 132 SMs a rank and 227 KiB of shared memory a block. The arena is address
//! space, not memory: pages come from the operating system when a kernel first touches them.

use crate::error::SimError;

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
    /// Device memory of all ranks together, in bytes of address space; every rank gets an equal part.
    pub arena_bytes: u64,
    /// The scheduling mode.
    pub mode: Mode,
}

/// How finely one rank's part of the arena is cut: parts begin and end on these boundaries.
pub(crate) const PART_ALIGNMENT: u64 = 2 << 20;

impl MachineConfig {
    /// Describes a machine of `ranks` H200-like GPUs with 64 GiB of address space for all of them.
    pub fn new(ranks: u32, mode: Mode) -> Self {
        Self { ranks, sms_per_rank: 132, shared_bytes_per_block: 232_448, arena_bytes: 64 << 30, mode }
    }

    /// Sets how many streaming multiprocessors each rank has.
    #[must_use]
    pub fn with_sms_per_rank(mut self, sms_per_rank: u32) -> Self {
        self.sms_per_rank = sms_per_rank;
        self
    }

    /// Sets the device memory of all ranks together, in bytes of address space.
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
