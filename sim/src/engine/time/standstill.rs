//! When the machine stands still: whether time jumps, or it is a deadlock.
//!
//! Each worker says how its quiet rounds ended: at which count of changes, with which earliest wake-up and deadline. If
//! all workers were quiet over the same count, then nothing changed since before the first of those rounds began, and
//! nothing will. A worker that did change something counts it before it can call itself quiet.
//!
//! Where ranks are processes, a thread that polls may wait for another process, of which nothing is known here: while one does,
//! or sleeps, nothing is concluded. A wait without a deadline is then the watchdog's.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::progress::Quiet;
use crate::check::stall;
use crate::engine::block::state::BlockState;
use crate::engine::books::{Books, Core};
use crate::error::SimError;

/// How many rounds without a change make a worker quiet. More than one, because a thread that looks at several flags in
/// turn may find another one set each time.
pub(crate) const QUIET_ROUNDS: u32 = 64;

impl Core {
    /// Notes that `worker` was quiet while the count of changes was `changes`, and decides if it was the last.
    pub(crate) fn quiet(&self, books: &mut Books, worker: usize, changes: u64, blocks: &[&BlockState]) {
        let now = self.clock.now();
        let mut quiet = Quiet { has_blocks: true, changes, ..Quiet::default() };
        for state in blocks {
            let (wake, deadline) = state.earliest(now);
            quiet.wake = earlier(quiet.wake, wake);
            quiet.deadline = earlier(quiet.deadline, deadline);
            quiet.hopes |= self.clock.is_real() && state.hopes();
        }
        if books.all_blocked() && !quiet.hopes && quiet.wake.is_none() && quiet.deadline.is_none() {
            quiet.report = stall::blocks(&self.arena, blocks);
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
        if self.end_lookouts(books) {
            return;
        }
        if books.quiet.iter().any(|quiet| quiet.hopes) {
            // The other processes do what they do, and time passes: workers look again by themselves.
            return;
        }
        let at_work = |quiet: &&Quiet| quiet.has_blocks;
        let all_blocked = books.all_blocked();
        let mut next = books.quiet.iter().filter(at_work).map(|quiet| quiet.wake).fold(None, earlier);
        if all_blocked {
            next = books.quiet.iter().filter(at_work).map(|quiet| quiet.deadline).fold(next, earlier);
            next = earlier(next, books.first_lookout());
        }
        if let Some(time) = next {
            self.clock.jump(time);
            self.end_lookouts(books);
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
            let hosts = stall::hosts(books, self.config.patience);
            let report: Vec<String> = blocks.chain(hosts).chain(stall::queued(books)).collect();
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
