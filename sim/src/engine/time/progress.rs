//! What the machine's books know of how far everyone is.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::engine::launch::Grid;
use crate::engine::thread::reins::Doing;

/// What a worker knows when it has been quiet.
#[derive(Default)]
pub(crate) struct Quiet {
    /// Whether the worker has resident blocks; one without is always quiet.
    pub has_blocks: bool,
    /// The count of changes over its quiet rounds.
    pub changes: u64,
    pub wake: Option<u64>,
    pub deadline: Option<u64>,
    /// Whether a thread polls or sleeps: another process, or the host's time, may let it go on.
    pub hopes: bool,
    /// Who waits for what; only if no actor was running.
    pub report: Vec<String>,
}

impl Quiet {
    /// Whether the worker may still change something, given the count of changes.
    pub(crate) fn is_moving(&self, changes: u64) -> bool {
        self.has_blocks && self.changes != changes
    }
}

/// How far the machine and its host threads are: equal as long as nobody does anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub changes: u64,
    pub clock: u64,
    pub calls: u64,
    /// A seeded machine's steps, which are no changes.
    pub turns: u64,
}

/// Since when the machine stands where it does, and when, and where, it last complained.
pub(crate) struct Stillness {
    pub standing: Option<Standing>,
    pub since: Instant,
    pub complaint: Option<(Instant, Standing)>,
}

impl Stillness {
    pub(crate) fn new() -> Self {
        Self { standing: None, since: Instant::now(), complaint: None }
    }
}

/// What a host thread waits for that looks at device memory.
pub(crate) struct Lookout {
    /// Words, by address, and what they were.
    pub words: Vec<(u64, u64)>,
    /// When it goes on anyhow, in ns of virtual time.
    pub until: u64,
}

/// A kernel some of whose blocks have started.
pub(crate) struct Running {
    pub kernel: &'static str,
    pub rank: u32,
    pub began: Instant,
    /// Tells its blocks that it must end.
    pub overdue: Arc<AtomicBool>,
}

/// What a worker was in the middle of, and since when.
#[derive(Clone, Copy)]
pub(crate) struct Watched {
    pub doing: Option<Doing>,
    pub since: Instant,
}

impl Running {
    pub(crate) fn new(grid: &Grid) -> Self {
        let overdue = Arc::clone(&grid.overdue);
        Self { kernel: grid.launch.kernel, rank: grid.stream.rank, began: Instant::now(), overdue }
    }
}

impl Watched {
    pub(crate) fn new() -> Self {
        Self { doing: None, since: Instant::now() }
    }
}
