//! Bulk copies that a block has issued: those that have not happened yet, and what is known of each thread's stores.

use std::panic::Location;

use crate::device::BulkReduction;
use crate::memory::door::Ends;

/// A copy that was issued and has not happened.
pub(crate) struct PendingCopy {
    pub thread: u32,
    pub ends: Ends,
    pub bytes: u32,
    pub kind: Kind,
}

/// What a thread knows of its bulk stores.
#[derive(Clone, Copy, Default)]
pub(crate) struct Stores {
    /// How many groups it has committed.
    pub committed: u32,
    /// How many groups have had their sources read, as far as it has waited.
    pub read: u32,
    /// The group of its last store, and where that was issued.
    pub last: Option<(u32, &'static Location<'static>)>,
}

impl Stores {
    /// Where the last store was issued, if nobody waited until its source was read.
    pub(crate) fn in_flight(&self) -> Option<&'static Location<'static>> {
        self.last.and_then(|(group, location)| (group >= self.read).then_some(location))
    }
}

/// Which way a copy goes.
pub(crate) enum Kind {
    /// Into shared memory; delivers its bytes to this mbarrier.
    Load { mbarrier: u32 },
    /// Out of shared memory, in the thread's group of this number; the source as it was, once it has been read.
    Store { group: u32, snapshot: Option<Vec<u64>>, reduction: Option<BulkReduction> },
}
