//! A word of memory that host and device share, which any thread of the host stores to while kernels run.
use std::sync::atomic::{AtomicU64, Ordering};

use epoxide_sim::Machine;

use super::{Mapped, Runtime};

/// Such a word. Whoever has it sees to it that the memory is there.
pub(crate) enum HostWord {
    /// Of a machine, at this address, for this rank's kernels.
    Sim(Machine, u64, u32),
    Cuda(*mut u64),
}

// SAFETY: an address; every access to it is an atomic one.
unsafe impl Send for HostWord {}

impl Runtime {
    /// The word at the beginning of `mapped`, for kernels of this rank.
    pub(crate) fn host_word(&self, mapped: Mapped) -> HostWord {
        match self {
            Self::Sim(runtime) => HostWord::Sim(runtime.machine(), mapped.device, runtime.rank()),
            Self::Cuda(_) => HostWord::Cuda(mapped.host.cast()),
        }
    }

    /// Whether a rank of this simulated machine was killed.
    pub(crate) fn was_killed(&self, rank: u32) -> bool {
        matches!(self, Self::Sim(runtime) if runtime.machine().was_killed(rank))
    }
}

impl HostWord {
    /// Stores to it, without a driver call.
    pub(crate) fn store(&self, value: u64) {
        match self {
            // SAFETY: who has the word sees to it that it is allocated, and what else accesses it are whole words. A machine that has
            // halted has no kernel that waits.
            Self::Sim(machine, address, _) => drop(unsafe { machine.write(*address, &[value]) }),
            // SAFETY: who has the word sees to it that it is allocated; pinned memory is page-aligned, and what else accesses it does so
            // atomically.
            Self::Cuda(word) => unsafe { AtomicU64::from_ptr(*word) }.store(value, Ordering::Relaxed),
        }
    }

    /// Has a simulated machine store what `word` makes of a rank that is killed.
    pub(crate) fn attend(&self, word: fn(u32) -> u64) {
        if let Self::Sim(machine, address, rank) = self {
            machine.tell_deaths(*rank, *address, word);
        }
    }

    /// Ends that.
    pub(crate) fn dismiss(&self) {
        if let Self::Sim(machine, address, _) = self {
            machine.tell_no_deaths(*address);
        }
    }
}
