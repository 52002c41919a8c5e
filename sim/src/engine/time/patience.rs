//! Host threads that are busy elsewhere, and for how long the machine waits for them.
//!
//! The machine draws its conclusions only while every host thread is blocked or gone: one that runs may be about to launch what
//! the others wait for. A host thread that runs for ever would then keep everyone waiting for ever. So there is a patience, in
//! wall time: when nothing has moved for that long, those that run count as blocked until they call again. A seeded machine
//! halts instead: what it does next would depend on the host's clock.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::progress::Standing;
use crate::config::Mode;
use crate::engine::block::warp::ranges;
use crate::engine::books::{ActorState, Books, Core};
use crate::error::SimError;

/// How long nothing moves before a blocked host thread says for whom it waits.
const COMPLAINT: Duration = Duration::from_secs(10);

/// The least time between two such lines of one machine.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

impl Core {
    /// Whether a worker is at work, or has some to begin.
    pub(crate) fn is_busy(&self, books: &Books) -> bool {
        if !matches!(self.config.mode, Mode::Fast { .. }) {
            // It takes nothing up while a host thread runs.
            return self.seats[0].reins().doing().is_some();
        }
        let changes = self.changes.load(Ordering::Acquire);
        books.host_calls > 0
            || books.inboxes.iter().any(|inbox| !inbox.is_empty())
            || books.quiet.iter().any(|quiet| quiet.is_moving(changes))
    }

    /// How long nothing has moved.
    fn still_for(&self, books: &mut Books) -> Duration {
        let seeded = !matches!(self.config.mode, Mode::Fast { .. });
        let standing = Standing {
            changes: self.changes.load(Ordering::Acquire),
            clock: self.clock.virtual_ns(),
            calls: books.calls,
            turns: if seeded { self.seats[0].reins().turns() } else { 0 },
        };
        if self.is_busy(books) || books.stillness.standing != Some(standing) {
            books.stillness.standing = Some(standing);
            books.stillness.since = Instant::now();
        }
        books.stillness.since.elapsed()
    }

    /// Looks at the machine for a host thread that waits for it. Returns what there is to complain about.
    pub(crate) fn look(&self, books: &mut Books) -> Option<String> {
        self.watch(books);
        if books.halt.is_some() || books.all_blocked() {
            return None;
        }
        let still = self.still_for(books);
        if still >= self.config.patience {
            self.lose_patience(books);
            return None;
        }
        self.complaint(books, still)
    }

    /// Notes that only host threads that run can move the machine. `books.waited` says so to the watchdog.
    pub(crate) fn wait_for_hosts(&self, books: &mut Books) {
        books.waited = Instant::now();
        if matches!(self.config.mode, Mode::Fast { .. }) && self.still_for(books) >= self.config.patience {
            self.lose_patience(books);
        }
    }

    /// Goes on without the host threads that run.
    fn lose_patience(&self, books: &mut Books) {
        let patience = self.config.patience;
        if matches!(self.config.mode, Mode::Fast { .. }) {
            for rank in books.running_hosts() {
                books.overdue[rank as usize] = true;
            }
            // Workers look again, and their reports say who waits.
            self.changed();
            self.work.notify_all();
        } else {
            self.halt(books, SimError::HostBusy { ranks: books.running_hosts(), patience });
        }
    }

    /// Ends the exchange that waits for host threads that count as blocked although they run. False when there is none.
    pub(crate) fn end_exchange_without(&self, books: &mut Books) -> bool {
        let waits = books.actors.iter().any(|actor| matches!(actor, ActorState::InExchange));
        if !waits || !books.overdue.contains(&true) {
            return false;
        }
        let came = books.payloads.iter().map(Option::is_some);
        let ranks: Vec<u32> = (0..).zip(came).filter_map(|(rank, came)| (!came).then_some(rank)).collect();
        let patience = self.config.patience;
        self.end_exchange(books, |rank| SimError::PeerSilent { rank, ranks: ranks.clone(), patience });
        true
    }

    /// Ends the exchange for everyone in it with an error.
    pub(crate) fn end_exchange(&self, books: &mut Books, error: impl Fn(u32) -> SimError) {
        for rank in 0..books.actors.len() {
            if matches!(books.actors[rank], ActorState::InExchange) {
                books.payloads[rank] = None;
                books.outcomes[rank] = Some(Err(error(rank as u32)));
                books.actors[rank] = ActorState::Running;
            }
        }
        self.changed();
        self.host.notify_all();
    }

    /// What a host thread says that waits while nothing moves, if running host threads are why.
    fn complaint(&self, books: &mut Books, still: Duration) -> Option<String> {
        if still < COMPLAINT || books.halt.is_some() || books.all_blocked() {
            return None;
        }
        let standing = books.stillness.standing?;
        if let Some((at, told)) = books.stillness.complaint
            && (told == standing || at.elapsed() < COMPLAINT_INTERVAL)
        {
            return None;
        }
        books.stillness.complaint = Some((Instant::now(), standing));
        let ranks = ranges(books.running_hosts().into_iter());
        Some(format!(
            "simulated GPU: waiting for the host thread of rank(s) [{ranks}], which neither waits nor is gone"
        ))
    }
}

impl Books {
    /// The ranks whose host threads run, or have not come.
    fn running_hosts(&self) -> Vec<u32> {
        (0..).zip(&self.actors).filter(|(_, actor)| actor.is_running()).map(|(rank, _)| rank).collect()
    }

    /// Whether a host thread waits for the machine.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.actors.iter().any(|actor| !actor.is_running() && !actor.is_gone())
    }

    /// Notes a call of a rank's host thread: it is no longer overdue.
    pub(crate) fn hear(&mut self, rank: u32) {
        self.calls += 1;
        self.overdue[rank as usize] = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MachineConfig;
    use crate::host::Machine;

    /// The machine's stillness, as if it had lasted for `time` already.
    fn still(core: &Core, books: &mut Books, time: Duration) -> Duration {
        core.still_for(books);
        books.stillness.since -= time;
        core.still_for(books)
    }

    #[test]
    fn who_waits_for_a_running_host_thread_says_so_once() {
        for mode in [Mode::Seeded { seed: 0 }, Mode::Fast { workers: 2 }] {
            let machine = Machine::new(MachineConfig::new(3, mode)).expect("a machine");
            let _running = machine.actor(1).expect("free");
            let core = machine.core();
            let mut books = core.lock();
            // Rank 0 waits, rank 1 runs, rank 2 has not come.
            books.actors[0] = ActorState::InExchange;
            let look = |books: &mut Books| {
                let still = still(core, books, COMPLAINT);
                core.complaint(books, still)
            };
            let complaint = look(&mut books).expect("somebody is to blame");
            let expected =
                "simulated GPU: waiting for the host thread of rank(s) [1-2], which neither waits nor is gone";
            assert_eq!(complaint, expected);
            assert_eq!(look(&mut books), None, "once is enough");
            core.changed();
            let still = core.still_for(&mut books);
            assert_eq!(core.complaint(&mut books, still), None, "a step was made");
            assert_eq!(look(&mut books), None, "once a minute at most");
            books.stillness.complaint = None;
            core.seats[0].reins().enter_host_call(0, 0);
            books.host_calls = 1;
            assert_eq!(look(&mut books), None, "a host call is under way");
            core.seats[0].reins().leave();
            books.host_calls = 0;
            assert!(look(&mut books).is_some());
            books.stillness.complaint = None;
            books.actors[1] = ActorState::Left;
            books.actors[2] = ActorState::Gone;
            assert_eq!(look(&mut books), None, "nobody runs");
            books.actors[0] = ActorState::Absent;
            books.actors[1] = ActorState::Running;
        }
    }

    #[test]
    fn a_call_of_a_host_thread_is_a_sign_of_life() {
        let machine = Machine::new(MachineConfig::new(2, Mode::Fast { workers: 1 })).expect("a machine");
        let (actor, _other) = (machine.actor(0).expect("free"), machine.actor(1).expect("free"));
        let core = machine.core();
        let minute = Duration::from_secs(60);
        assert!(still(core, &mut core.lock(), minute) >= minute);
        let _stream = actor.create_stream();
        assert!(core.still_for(&mut core.lock()) < minute, "it called");
        let mut books = core.lock();
        assert!(still(core, &mut books, minute) >= minute);
        core.wait_for_hosts(&mut books);
        assert!(books.all_blocked() && books.overdue == [true, true]);
        drop(books);
        let _stream = actor.create_stream();
        assert!(!core.lock().all_blocked(), "it runs again");
        assert_eq!(core.lock().overdue, [false, true]);
    }
}
