//! When the machine stands still: whether time jumps, or it is a deadlock.
//!
//! Each worker says how its quiet rounds ended: at which count of changes, with which earliest wake-up and deadline. If
//! all workers were quiet over the same count, then nothing changed since before the first of those rounds began, and
//! nothing will. A worker that did change something counts it before it can call itself quiet.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::arena::Arena;
use crate::block::{BlockState, Waiting, bits, ranges};
use crate::device::Space;
use crate::error::SimError;
use crate::machine::{ActorState, Books, Core};
use crate::mbarrier;
use crate::resident::Resident;

/// How many rounds without a change make a worker quiet. More than one, because a thread that looks at several flags in
/// turn may find another one set each time.
pub(crate) const QUIET_ROUNDS: u32 = 64;

/// The most lines of a worker's part of a report.
const REPORT_LINES: usize = 64;

/// What a worker knows when it has been quiet.
#[derive(Default)]
pub(crate) struct Quiet {
    /// Whether the worker has resident blocks; one without is always quiet.
    pub has_blocks: bool,
    /// The count of changes over its quiet rounds.
    changes: u64,
    wake: Option<u64>,
    deadline: Option<u64>,
    /// Who waits for what; only if no actor was running.
    report: Vec<String>,
}

impl Quiet {
    /// Whether the worker may still change something, given the count of changes.
    pub(crate) fn is_moving(&self, changes: u64) -> bool {
        self.has_blocks && self.changes != changes
    }
}

impl Core {
    /// Notes that `worker` was quiet while the count of changes was `changes`, and decides if it was the last.
    pub(crate) fn quiet(&self, books: &mut Books, worker: usize, changes: u64, residents: &mut [Resident]) {
        let now = self.clock.load(Ordering::Relaxed);
        let mut quiet = Quiet { has_blocks: true, changes, ..Quiet::default() };
        for resident in residents.iter_mut() {
            let (wake, deadline) = resident.state().earliest(now);
            quiet.wake = earlier(quiet.wake, wake);
            quiet.deadline = earlier(quiet.deadline, deadline);
        }
        if books.all_blocked() && quiet.wake.is_none() && quiet.deadline.is_none() {
            quiet.report = report(&self.arena, residents);
        }
        books.quiet[worker] = quiet;
        self.decide(books);
    }

    /// If the machine stands still: jumps to what comes next, or declares a deadlock.
    pub(crate) fn decide(&self, books: &mut Books) {
        let changes = self.changes.load(Ordering::Acquire);
        let busy = books.host_calls > 0 || books.inboxes.iter().any(|inbox| !inbox.is_empty());
        if books.halt.is_some() || books.shutdown || busy || books.quiet.iter().any(|quiet| quiet.is_moving(changes)) {
            return;
        }
        let at_work = |quiet: &&Quiet| quiet.has_blocks;
        let all_blocked = books.all_blocked();
        let mut next = books.quiet.iter().filter(at_work).map(|quiet| quiet.wake).fold(None, earlier);
        if all_blocked {
            next = books.quiet.iter().filter(at_work).map(|quiet| quiet.deadline).fold(next, earlier);
        }
        if let Some(time) = next {
            self.clock.fetch_max(time, Ordering::Relaxed);
            self.changed();
            self.work.notify_all();
            return;
        }
        if !all_blocked {
            self.wait_for_hosts(books);
            return;
        }
        if books.overdue.contains(&true) && (self.end_exchange_without(books) || !books.is_waited_for()) {
            // Whoever runs may still launch what is missing, as long as nobody waits for it. No kernel is to blame for that time.
            books.waited = Instant::now();
            return;
        }
        let stuck = books.quiet.iter().any(|quiet| quiet.has_blocks);
        let waited_for = books.actors.iter().any(|actor| !actor.is_gone());
        if stuck || waited_for {
            let blocks = books.quiet.iter().filter(at_work).flat_map(|quiet| quiet.report.iter().cloned());
            let hosts = actors(books, self.config.patience);
            let report: Vec<String> = blocks.chain(hosts).chain(queued(books)).collect();
            self.halt(books, SimError::Deadlock { report: report.join("\n") });
        }
    }
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// One line for each group of threads that wait for the same thing.
fn report(arena: &Arena, residents: &mut [Resident]) -> Vec<String> {
    let mut lines = Vec::new();
    for resident in residents.iter_mut() {
        if lines.len() >= REPORT_LINES {
            lines.push("  and more blocks".to_string());
            break;
        }
        let state = resident.state();
        let place = format!("  kernel {}, rank {}, block {}", state.kernel, state.rank, state.index);
        let more = (REPORT_LINES - lines.len()).max(1);
        lines.extend(waits(arena, state).into_iter().take(more).map(|(warps, lanes, what)| {
            format!("{place}, warp {}, lanes {}: {what}", ranges(warps.into_iter()), ranges(bits(lanes)))
        }));
    }
    lines
}

/// Groups a block's waiting threads: warps, lanes, and what they wait for.
fn waits(arena: &Arena, state: &BlockState) -> Vec<(Vec<u32>, u32, String)> {
    let mut groups: Vec<(Vec<u32>, u32, String)> = Vec::new();
    for (warp, lanes) in (0u32..).zip(state.lanes.chunks(32)) {
        let mut kinds: Vec<(u32, String)> = Vec::new();
        for (lane, waiting) in lanes.iter().map(|lane| describe(arena, state, warp, &lane.waiting)).enumerate() {
            let Some(what) = waiting else { continue };
            match kinds.iter_mut().find(|(_, known)| *known == what) {
                Some((mask, _)) => *mask |= 1 << lane,
                None => kinds.push((1 << lane, what)),
            }
        }
        for (mask, what) in kinds {
            match groups.iter_mut().find(|(_, lanes, known)| *lanes == mask && *known == what) {
                Some((warps, ..)) => warps.push(warp),
                None => groups.push((vec![warp], mask, what)),
            }
        }
    }
    groups
}

/// What one thread waits for; `None` when it has returned.
fn describe(arena: &Arena, state: &BlockState, warp: u32, waiting: &Waiting) -> Option<String> {
    Some(match waiting {
        Waiting::Exited => return None,
        Waiting::Start => "not started".to_string(),
        Waiting::Preempted { .. } => "ready to run".to_string(),
        Waiting::Warp { op, mask, location } => {
            let meets = &state.warps[warp as usize].meets;
            let arrived = meets.iter().find(|meet| meet.mask == *mask).map_or(0, |meet| meet.arrived);
            let missing = ranges(bits(mask & !arrived));
            format!("in {} with mask {mask:#010x} at {location}, waiting for lanes {missing}", op.name())
        }
        Waiting::Barrier { id, location } => {
            let barrier = &state.barriers[*id as usize];
            format!("at barrier {id} at {location}, where {} of {} threads are", barrier.arrived, barrier.expected)
        }
        Waiting::Poll { wait, location } => format!(
            "polling {} of peer {} at {location}: expected {}, seen {} in the {} bytes at {}{}",
            wait.what,
            wait.peer,
            wait.expected,
            wait.seen,
            wait.bytes,
            match wait.word.space {
                Space::Global => arena.describe(wait.word.at),
                Space::Shared => format!("shared offset {:#x}", wait.word.at),
            },
            wait.deadline_ns.map_or_else(String::new, |time| format!(", deadline {time} ns of virtual time"))
        ),
        Waiting::Sleep { until, location } => format!("asleep until {until} ns of virtual time at {location}"),
        Waiting::Mbarrier { at, parity, location } => {
            format!("waiting for mbarrier {at:#x}, parity {parity}, at {location}: {}", mbarrier::describe(state, *at))
        }
    })
}

/// One line for each host thread that is blocked, or counts as blocked.
fn actors(books: &Books, patience: Duration) -> Vec<String> {
    let line = |(rank, actor): (u32, &ActorState)| {
        let what = match actor {
            ActorState::Absent | ActorState::Running if !books.overdue[rank as usize] => return None,
            ActorState::Absent => format!("has not come for {patience:?} of wall time"),
            ActorState::Running => format!("runs elsewhere, and nothing moved for {patience:?} of wall time"),
            ActorState::InSynchronize(stream) => format!("synchronizes stream {stream}"),
            ActorState::InEvent(_) => "waits for an event".to_string(),
            ActorState::InExchange => "is in an exchange".to_string(),
            ActorState::Left | ActorState::Gone => "is gone".to_string(),
        };
        Some(format!("  host thread of rank {rank} {what}"))
    };
    (0u32..).zip(&books.actors).filter_map(line).collect()
}

/// One line for each kernel with blocks that found no SM.
fn queued(books: &Books) -> Vec<String> {
    let waiting = books.placing.iter().flatten();
    waiting
        .map(|placing| {
            let (kernel, rank, left, grid) = placing.describe();
            format!("  kernel {kernel}, rank {rank}: {left} of {grid} blocks wait for a free SM")
        })
        .collect()
}
