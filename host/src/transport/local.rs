//! Threads of one process: every rank's device memory is addressable by all, so a window is an address.
//!
//! Windows belong to the group. A rank that drops its buffer leaves it here with the event after its last work; the last rank
//! of the group waits for all those events and frees everything, because until then a peer may still read a window, and on a
//! GPU freeing waits for the whole device, where a peer may be waiting for this rank.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::runtime::{Heap, Mapped, RawEvent, Reservation, Runtime};

/// What a rank leaves behind.
pub(crate) struct Estate {
    /// What frees it: ranks may be on different devices.
    pub heap: Heap,
    /// The points of the rank's stream after which the rank itself uses nothing of it any more; an error where there is no
    /// knowing.
    pub after: Vec<Result<RawEvent>>,
    /// SMs that the rank's work may fill until then.
    pub sms: Option<Reservation>,
    /// Device memory.
    pub memory: Vec<u64>,
    /// Memory shared with the host.
    pub mapped: Vec<Mapped>,
}

impl Estate {
    /// Nothing yet.
    pub(crate) fn of(runtime: &Runtime) -> Self {
        Self { heap: runtime.heap(), after: Vec::new(), sms: None, memory: Vec::new(), mapped: Vec::new() }
    }

    /// Frees it, as far as the device lets it.
    pub(crate) fn free(self) {
        // Nobody is left to tell of a failure; the memory stays with the device then.
        for address in self.memory {
            let _ = self.heap.free(address);
        }
        for mapped in self.mapped {
            let _ = self.heap.free_mapped(mapped);
        }
        drop(self.sms);
    }
}

/// Frees everything once every rank's work is over. Where a device has failed, all memory stays, and so do all devices: what
/// still runs on another one may use it.
fn settle(runtime: &Runtime, estates: Vec<Estate>) {
    let over = |event: &Result<RawEvent>| event.as_ref().is_ok_and(|event| runtime.synchronize_event(event).is_ok());
    let failed = estates.iter().flat_map(|estate| &estate.after).filter(|event| !over(event));
    // All are waited for, also behind a failure.
    if failed.count() == 0 {
        estates.into_iter().for_each(Estate::free);
    } else {
        std::mem::forget(estates);
    }
}

/// What the ranks of a process share.
pub(crate) struct LocalGroupState {
    /// Unique in the process.
    id: u64,
    left: Mutex<Left>,
}

struct Left {
    /// Ranks that are not gone.
    ranks: u32,
    estates: Vec<Estate>,
}

impl LocalGroupState {
    pub(crate) fn new(ranks: u32) -> Arc<Self> {
        static GROUPS: AtomicU64 = AtomicU64::new(1);
        let left = Mutex::new(Left { ranks, estates: Vec::new() });
        Arc::new(Self { id: GROUPS.fetch_add(1, Ordering::Relaxed), left })
    }

    /// The id of the group's buffer `number`, unique in the process.
    pub(crate) fn buffer_id(&self, number: u64) -> u64 {
        self.id << 32 | number
    }

    /// Takes over a rank's part of a buffer. Waits for nobody and frees nothing.
    pub(crate) fn bury(&self, estate: Estate) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).estates.push(estate);
    }

    /// Takes over what a rank's tensors left; the rank is gone, and the last one frees everything.
    pub(crate) fn leave(&self, runtime: &Runtime, estate: Estate) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.estates.push(estate);
        left.ranks = left.ranks.saturating_sub(1);
        if left.ranks == 0 {
            let estates = std::mem::take(&mut left.estates);
            drop(left);
            settle(runtime, estates);
        }
    }
}
