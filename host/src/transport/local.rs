//! Threads of one process: every rank's device memory is addressable by all, so a window is an address.
//!
//! Windows belong to the group. A rank that drops its buffer leaves it here with the event after its last work; the last rank
//! waits for all those events and frees everything, because until then a peer may still read a window.
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::runtime::{Mapped, RawEvent, Runtime};

/// What a rank leaves behind.
#[derive(Default)]
pub(crate) struct Estate {
    /// The point of the rank's stream after which the rank itself uses nothing of it any more.
    pub after: Vec<RawEvent>,
    /// Device memory.
    pub memory: Vec<u64>,
    /// Memory shared with the host.
    pub mapped: Vec<Mapped>,
}

impl Estate {
    fn absorb(&mut self, other: Self) {
        self.after.extend(other.after);
        self.memory.extend(other.memory);
        self.mapped.extend(other.mapped);
    }

    /// Frees everything once every rank's work is over. Where the device has failed, the memory stays with it.
    fn settle(self, runtime: &Runtime) {
        if self.after.iter().any(|event| runtime.synchronize_event(event).is_err()) {
            return;
        }
        for address in self.memory {
            let _ = runtime.free(address);
        }
        for mapped in self.mapped {
            let _ = runtime.free_mapped(mapped);
        }
    }
}

#[derive(Default)]
struct Pending {
    ranks_left: u32,
    estate: Estate,
}

/// What the ranks of a process share.
pub(crate) struct LocalGroupState {
    /// Unique in the process.
    id: u64,
    ranks: u32,
    buffers: Mutex<HashMap<u64, Pending>>,
    /// Tensors and streams of ranks that are gone.
    comms: Mutex<Pending>,
}

impl LocalGroupState {
    pub(crate) fn new(ranks: u32) -> Arc<Self> {
        static GROUPS: AtomicU64 = AtomicU64::new(1);
        let comms = Mutex::new(Pending { ranks_left: ranks, estate: Estate::default() });
        Arc::new(Self { id: GROUPS.fetch_add(1, Ordering::Relaxed), ranks, buffers: Mutex::default(), comms })
    }

    /// The id of the group's buffer `number`, unique in the process.
    pub(crate) fn buffer_id(&self, number: u64) -> u64 {
        self.id << 32 | number
    }

    /// Takes over a rank's part of buffer `id`; the last rank frees all of them.
    pub(crate) fn bury(&self, id: u64, runtime: &Runtime, estate: Estate) {
        let mut buffers = lock(&self.buffers);
        let pending =
            buffers.entry(id).or_insert_with(|| Pending { ranks_left: self.ranks, estate: Estate::default() });
        if let Some(estate) = pending.add(estate) {
            buffers.remove(&id);
            drop(buffers);
            estate.settle(runtime);
        }
    }

    /// Takes over what a rank's tensors left; the last rank frees it.
    pub(crate) fn leave(&self, runtime: &Runtime, after: Option<RawEvent>, memory: Vec<u64>) {
        let estate = Estate { after: after.into_iter().collect(), memory, mapped: Vec::new() };
        let last = lock(&self.comms).add(estate);
        if let Some(estate) = last {
            estate.settle(runtime);
        }
    }
}

impl Pending {
    /// Adds a rank's part; returns everything if it was the last.
    fn add(&mut self, estate: Estate) -> Option<Estate> {
        self.estate.absorb(estate);
        self.ranks_left = self.ranks_left.saturating_sub(1);
        (self.ranks_left == 0).then(|| std::mem::take(&mut self.estate))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
