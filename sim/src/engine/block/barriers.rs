//! Where threads and copies of a block are waited for: its 16 barriers, and its mbarriers.

use std::panic::Location;

/// One of a block's hardware barriers.
pub(crate) struct Barrier {
    /// How many threads must arrive; meaningful while some have.
    pub expected: u32,
    pub arrived: u32,
    /// Whether this phase carries a vote, and the vote so far.
    pub votes: bool,
    pub vote: bool,
    /// The vote of the last complete phase.
    pub result: bool,
    /// Warps with a waiting lane, and the lanes.
    pub warps: u32,
    pub lanes: [u32; 32],
    /// Where the first thread of the phase arrived.
    pub location: &'static Location<'static>,
}

impl Barrier {
    /// A barrier at which nobody has arrived.
    #[track_caller]
    pub(crate) fn new() -> Self {
        Self {
            expected: 0,
            arrived: 0,
            votes: false,
            vote: false,
            result: false,
            warps: 0,
            lanes: [0; 32],
            location: Location::caller(),
        }
    }
}

/// One mbarrier.
#[derive(Clone, Debug)]
pub(crate) struct Mbarrier {
    pub at: u32,
    pub arrivals: u32,
    pub pending: u32,
    /// Announced minus delivered bytes. A copy may be faster than its announcement, so this may be negative.
    pub bytes: i64,
    /// How many phases are complete.
    pub phase: u64,
    /// How many phases somebody has found complete.
    pub seen: u64,
    /// The phase of the last load, and where that was issued.
    pub loaded: Option<(u64, &'static Location<'static>)>,
}

impl Mbarrier {
    /// An object whose first phase begins.
    pub(crate) fn new(at: u32, arrivals: u32) -> Self {
        Self { at, arrivals, pending: arrivals, bytes: 0, phase: 0, seen: 0, loaded: None }
    }

    /// Completes the phase if all has come that it takes.
    pub(crate) fn complete_if_due(&mut self) -> bool {
        let due = self.pending == 0 && self.bytes == 0;
        if due {
            self.pending = self.arrivals;
            self.phase += 1;
        }
        due
    }

    /// Books a load that is issued.
    pub(crate) fn load(&mut self, location: &'static Location<'static>) {
        self.loaded = Some((self.phase, location));
    }

    /// Where the object lies and where its last load was issued, if nobody has waited for it.
    pub(crate) fn in_flight(&self) -> Option<(u32, &'static Location<'static>)> {
        let (phase, location) = self.loaded?;
        (phase >= self.seen).then_some((self.at, location))
    }

    /// What its phase lacks, for a report.
    pub(crate) fn missing(&self) -> String {
        format!("{} of {} arrivals and {} bytes missing", self.pending, self.arrivals, self.bytes)
    }
}
