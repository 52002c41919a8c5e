//! Ranks that are processes: a machine of which one rank is here.
//!
//! 1. Each process makes its own [`Machine`], of all ranks, of which it runs one ([`Machine::of_process`]).
//! 2. Its rank's whole device memory is one file without a name ([`Machine::own_part`]); processes pass theirs to each other at
//!    start-up, by whatever way they have, and map the others' ([`Machine::map_part`]).
//! 3. Addresses differ between processes: what is told of memory is a rank and an offset ([`Machine::locate`],
//!    [`Machine::address_of`]).
//! 4. Only device memory is shared. Books, streams, clocks and workers are each process's own, so one that dies leaves nothing
//!    locked, counted or queued.
//! 5. Host threads meet by the processes' own means: an [`exchange`](crate::Actor::exchange) finds that the others are gone.
//! 6. Time is the host's: a poll looks again by itself, and gives up at its deadline whatever the others do. Nothing that
//!    polls is called a deadlock; what never ends is the watchdog's.
//! 7. An access to another process's part is checked against that part's bounds; its allocations are known there only.
//! 8. The fast mode only, with one worker: a seeded schedule is of one process.

use std::os::fd::{AsFd, BorrowedFd};

use super::machine::Machine;
use crate::config::{MachineConfig, Mode};
use crate::error::SimError;

impl Machine {
    /// Builds the machine of a process that is rank `rank` of `config.ranks`, each a process with such a machine of its own. They
    /// reach each other's memory once each has given its [part](Self::own_part) to all others and
    /// [mapped](Self::map_part) theirs.
    ///
    /// Time is the host's, so deadlines are. All processes have the same configuration; the mode is
    /// [`Mode::Fast`](crate::Mode::Fast) with one worker, also for 0.
    ///
    /// # Errors
    ///
    /// As [`Machine::new`]; [`SimError::InvalidArgument`] for a rank that does not exist, a seeded mode, or more workers.
    pub fn of_process(config: MachineConfig, rank: u32) -> Result<Self, SimError> {
        let Mode::Fast { workers: 0 | 1 } = config.mode else {
            let rule = "Mode::Fast with one worker where ranks are processes";
            return Err(SimError::invalid("mode", format_args!("{:?}", config.mode), rule));
        };
        if rank >= config.ranks {
            return Err(SimError::invalid("rank", rank, format_args!("below the machine's {} ranks", config.ranks)));
        }
        Self::start(MachineConfig { mode: Mode::Fast { workers: 1 }, ..config }, Some(rank))
    }

    /// The rank that is in this process, where ranks are processes.
    #[must_use]
    pub fn process_rank(&self) -> Option<u32> {
        self.core().process
    }

    /// The file that holds this process's part of device memory, to be passed to the others; `None` where all ranks are in this
    /// process. It is closed on `exec`.
    #[must_use]
    pub fn own_part(&self) -> Option<BorrowedFd<'_>> {
        self.core().arena.shared().map(|shared| shared.file())
    }

    /// Maps the part of `rank`, which its process passed here. The file may be closed afterwards.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] for this process's own rank, one that is mapped, or one that does not exist, for a file that is no
    /// part of a machine with this configuration, and where all ranks are in this process; [`SimError::Host`] when the host refuses
    /// the mapping.
    pub fn map_part(&self, rank: u32, part: impl AsFd) -> Result<(), SimError> {
        self.check_rank(rank)?;
        self.core().arena.map(rank, part.as_fd())
    }

    /// Where a device address is: its rank, and how many bytes into that rank's device memory. Another process of the machine finds
    /// it by [`Self::address_of`]. `None` for what is no device memory.
    #[must_use]
    pub fn locate(&self, address: u64) -> Option<(u32, u64)> {
        self.core().arena.locate(address)
    }

    /// The address in this process of what [`Self::locate`] told in another.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] when there is no such rank, or its device memory ends before.
    pub fn address_of(&self, rank: u32, offset: u64) -> Result<u64, SimError> {
        self.check_rank(rank)?;
        let address = self.core().arena.address_of(rank, offset);
        address.ok_or_else(|| SimError::invalid("offset", offset, "inside a rank's device memory"))
    }

    /// Checks that `rank` is one of those in this process.
    pub(crate) fn check_here(&self, rank: u32) -> Result<(), SimError> {
        self.check_rank(rank)?;
        match self.process_rank() {
            Some(here) if here != rank => {
                Err(SimError::invalid("rank", rank, format_args!("{here}, the rank of this process")))
            }
            _ => Ok(()),
        }
    }
}
