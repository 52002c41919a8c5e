//! The seeded modes' worker: one deterministic, adversarial schedule per seed.
//!
//! After PCT (Burckhardt et al., "A randomized scheduler with probabilistic guarantees of finding bugs", 2010): ranks,
//! blocks and warps have random priorities, and now and then one is drawn anew, so that one rank, block or warp runs far
//! ahead of the others or stays far behind. Between two draws, short bursts of random lanes.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::duties::{kernel_failed, retire_all, run_host_call, wait, wait_for_end};
use crate::config::Death;
use crate::engine::books::{ActorState, Core};
use crate::engine::chance::{Chance, mix};
use crate::engine::queue::Ticket;
use crate::engine::thread::context::Failure;
use crate::engine::time::progress::Quiet;
use crate::engine::time::standstill::QUIET_ROUNDS;
use crate::worker::resident::{Bench, Resident, Turn, states};

/// The one worker of a seeded machine.
struct Scheduler<'a> {
    core: &'a Core,
    bench: Bench,
    random: Chance,
    residents: Vec<Resident>,
    rank_priorities: Vec<u64>,
    /// Bulk copies happen in one of this many bursts.
    copy_lag: u32,
    trace: u64,
    /// Counts what changed, so that a block's pollers are woken only when there may be something new to see.
    changes: u64,
    /// The count when everyone last looked in vain.
    settled: u64,
    rounds: u32,
    /// The machine's count of changes when this worker last knew of all of them.
    known: u64,
    /// A death that is yet to come.
    death: Option<Death>,
}

/// Runs the worker until the machine ends.
pub(crate) fn work(core: &Core, seed: u64) {
    let mut random = Chance::new(seed);
    let mut scheduler = Scheduler {
        core,
        bench: Bench::new(core, 0, true, random.fork()),
        residents: Vec::new(),
        rank_priorities: (0..core.config.ranks).map(|_| random.draw()).collect(),
        copy_lag: 1 << random.below(8),
        trace: mix(seed),
        changes: 0,
        settled: 0,
        rounds: 0,
        known: 0,
        death: core.config.death,
        random,
    };
    loop {
        if core.stop.load(Ordering::Acquire) {
            retire_all(&mut scheduler.residents, &mut scheduler.bench);
            return wait_for_end(core, 0);
        }
        if core.killed.load(Ordering::Acquire) {
            scheduler.bury();
        }
        let mail = scheduler.take_mail();
        // Host calls may change what blocks poll. Mail alone counts, so that a host thread that comes or goes while the
        // machine steps does not change the schedule.
        scheduler.changes += u64::from(!mail.is_empty());
        let called = mail.iter().any(|ticket| matches!(ticket, Ticket::HostCall { .. }));
        for ticket in mail {
            match ticket {
                Ticket::Block { grid, index } => scheduler.admit(grid, index),
                Ticket::HostCall { stream, call } => run_host_call(core, 0, stream, call),
            }
        }
        // A host call may have let a host thread go on, which may have enqueued work and be blocked again: nothing steps before that
        // work has begun, or time could pass the deadline of who waits for it.
        if !called {
            scheduler.step();
        }
    }
}

impl Scheduler<'_> {
    /// Waits until every host thread is blocked, moves the streams on, and takes what they give.
    fn take_mail(&mut self) -> Vec<Ticket> {
        let core = self.core;
        let mut books = core.lock();
        core.trace.store(self.trace, Ordering::Relaxed);
        loop {
            if core.stop.load(Ordering::Acquire) || core.killed.load(Ordering::Acquire) {
                return Vec::new();
            }
            if books.all_blocked() {
                core.advance(&mut books);
                self.known = core.changes.load(Ordering::Acquire);
                // Moving a stream may have unblocked its host thread, and then nothing steps.
                if books.all_blocked() {
                    let tickets = std::mem::take(&mut books.inboxes[0]);
                    if !tickets.is_empty() || !self.residents.is_empty() {
                        return tickets;
                    }
                    books.quiet[0] = Quiet::default();
                    core.decide(&mut books);
                    if core.stop.load(Ordering::Acquire) {
                        return Vec::new();
                    }
                }
            }
            books = wait(core, books);
            // No kernel had a turn meanwhile, so none of this counts as its time.
            books.waited = Instant::now();
        }
    }

    /// Takes a block in, with random priorities. Its shared memory holds what nobody wrote.
    fn admit(&mut self, grid: std::sync::Arc<crate::engine::launch::Grid>, index: u32) {
        let fill = u128::from(self.random.draw()) << 64 | u128::from(self.random.draw());
        let warps = grid.launch.threads / 32;
        let mut resident = Resident::new(grid, index, fill);
        resident.priority = self.random.draw();
        resident.warp_priorities = (0..warps).map(|_| self.random.draw() as u32).collect();
        self.residents.push(resident);
    }

    /// Runs bursts until a block is finished, the machine stands still or it stops.
    fn step(&mut self) {
        self.rounds = 0;
        while !self.residents.is_empty() && !self.core.stop.load(Ordering::Relaxed) {
            if self.core.killed.load(Ordering::Acquire) {
                return;
            }
            if self.random.one_in(32) {
                self.draw_anew();
            }
            let chosen = self.choose();
            let Some(chosen) = chosen else {
                if self.stand_still() {
                    return;
                }
                continue;
            };
            if self.burst(chosen) || self.ends_lookouts() {
                return;
            }
            if self.random.one_in(8) {
                let place = self.random.below(self.residents.len() as u32) as usize;
                self.wake(place);
            }
            if self.random.one_in(self.copy_lag) {
                let place = self.random.below(self.residents.len() as u32) as usize;
                self.finish_copy(place);
            }
        }
    }

    /// Lets a block's waiting threads look again, but its pollers only if something changed since they last could: however
    /// many they are, in the end they all wait, and then time may pass or the machine is stuck.
    fn wake(&mut self, place: usize) {
        let now = self.core.clock.now();
        let resident = &mut self.residents[place];
        let news = std::mem::replace(&mut resident.looked_at, self.changes) != self.changes;
        let state = resident.state();
        if news {
            state.wake_pollers();
            state.wake_mbarrier_waiters();
        }
        state.wake_sleepers(now);
    }

    /// The ready block that the priorities favour; now and then any ready one.
    fn choose(&mut self) -> Option<usize> {
        if self.random.one_in(8) {
            let start = self.random.below(self.residents.len() as u32) as usize;
            let count = self.residents.len();
            return (0..count)
                .map(|step| (start + step) % count)
                .find(|&place| self.residents[place].state().ready_warps != 0);
        }
        let ranks = &self.rank_priorities;
        let ready = self.residents.iter_mut().enumerate().filter_map(|(place, resident)| {
            let ready = resident.state().ready_warps != 0;
            ready.then(|| ((ranks[resident.grid.stream.rank as usize], resident.priority), place))
        });
        ready.max().map(|(_, place)| place)
    }

    /// Gives lanes of one warp of a block some turns. True when the outer loop must look at the books.
    fn burst(&mut self, place: usize) -> bool {
        let core = self.core;
        let resident = &mut self.residents[place];
        resident.enter(&mut self.bench);
        let ready = resident.state().ready_warps;
        let priorities = &resident.warp_priorities;
        let favoured = crate::engine::block::warp::bits(ready).max_by_key(|&warp| priorities[warp as usize]);
        let warp = if self.random.one_in(8) { self.random.bit_of(ready) } else { favoured.unwrap_or(0) };
        let longest = 1 << self.random.below(8);
        let turns = 1 + self.random.below(longest);
        for _ in 0..turns {
            if let Some(Death { rank, turn }) = self.death
                && core.seats[0].reins().turns() >= turn
            {
                self.death = None;
                core.kill(&mut core.lock(), rank);
                break;
            }
            let lanes = resident.state().warps[warp as usize].ready;
            if lanes == 0 {
                break;
            }
            let lane = self.random.bit_of(lanes);
            resident.state().warps[warp as usize].ready &= !(1 << lane);
            let thread = warp * 32 + lane;
            let who = u64::from(resident.grid.stream.rank) << 42 | u64::from(resident.index) << 10 | u64::from(thread);
            self.trace = mix(self.trace ^ who);
            match resident.resume(&mut self.bench, thread) {
                Turn::Changed => self.changes += 1,
                Turn::Unchanged => {}
                Turn::Failed(failure) => {
                    resident.leave(&mut self.bench);
                    self.fail(place, thread, failure);
                    return true;
                }
            }
        }
        resident.leave(&mut self.bench);
        let state = resident.state();
        if state.warps[warp as usize].ready == 0 {
            state.ready_warps &= !(1 << warp);
        }
        core.clock.pass(self.bench.take_elapsed());
        if !resident.is_finished() {
            return false;
        }
        let resident = self.residents.swap_remove(place);
        let grid = std::sync::Arc::clone(&resident.grid);
        resident.retire(&mut self.bench);
        core.trace.store(self.trace, Ordering::Relaxed);
        // The lock is released before `grid` is dropped, whose closure may own the machine's last handle.
        core.finish_block(&mut core.lock(), 0, &grid);
        true
    }

    /// Lets host threads go on whose word has changed; true when there were any, before whom nothing steps.
    fn ends_lookouts(&self) -> bool {
        self.core.lookouts.load(Ordering::Acquire) != 0 && self.core.end_lookouts(&mut self.core.lock())
    }

    /// Nothing is ready: lets a late copy happen, or everyone look again, or time jump. True when the outer loop must look
    /// at the books: the machine stopped, or a host thread came while the machine was stepping.
    fn stand_still(&mut self) -> bool {
        let count = self.residents.len();
        let start = self.random.below(count as u32) as usize;
        if (0..count).any(|step| self.finish_copy((start + step) % count)) {
            return false;
        }
        if std::mem::replace(&mut self.settled, self.changes) != self.changes {
            self.rounds = 0;
        }
        self.rounds += 1;
        let now = self.core.clock.now();
        let mut woken = false;
        for resident in &mut self.residents {
            resident.looked_at = self.changes;
            let state = resident.state();
            state.wake_pollers();
            state.wake_mbarrier_waiters();
            state.wake_sleepers(now);
            woken |= state.ready_warps != 0;
        }
        if woken && self.rounds <= QUIET_ROUNDS {
            return false;
        }
        let mut books = self.core.lock();
        self.core.trace.store(self.trace, Ordering::Relaxed);
        let changes = self.core.changes.load(Ordering::Acquire);
        self.core.quiet(&mut books, 0, changes, &states(&mut self.residents));
        self.rounds = 0;
        let host_came = std::mem::replace(&mut self.known, self.core.changes.load(Ordering::Acquire)) != changes;
        self.core.stop.load(Ordering::Acquire) || !books.all_blocked() || host_came
    }

    /// Lets a random late copy of a block happen; false when it has none.
    fn finish_copy(&mut self, place: usize) -> bool {
        let state = self.residents[place].state();
        let count = state.copies.len() as u32;
        if count > 0 {
            state.complete_copy(self.random.below(count) as usize);
            self.changes += 1;
        }
        count > 0
    }

    /// Draws one priority anew.
    fn draw_anew(&mut self) {
        let rank = self.random.below(self.rank_priorities.len() as u32) as usize;
        let place = self.random.below(self.residents.len() as u32) as usize;
        let resident = &mut self.residents[place];
        match self.random.below(3) {
            0 => self.rank_priorities[rank] = self.random.draw(),
            1 => resident.priority = self.random.draw(),
            _ => {
                let warp = self.random.below(resident.warp_priorities.len() as u32) as usize;
                resident.warp_priorities[warp] = self.random.draw() as u32;
            }
        }
    }

    /// Drops all that is there of ranks that were killed.
    fn bury(&mut self) {
        let core = self.core;
        let mut books = core.lock();
        let buried = core.bury(&mut books);
        let is_dead =
            |resident: &mut Resident| matches!(books.actors[resident.grid.stream.rank as usize], ActorState::Killed);
        let dead: Vec<Resident> = self.residents.extract_if(.., is_dead).collect();
        for resident in &dead {
            books.loads[0] -= u64::from(resident.grid.launch.threads);
        }
        // What is dropped may own the machine's last handle.
        drop(books);
        dead.into_iter().for_each(|resident| resident.retire(&mut self.bench));
        drop(buried);
        self.changes += 1;
    }

    fn fail(&mut self, place: usize, thread: u32, failure: Failure) {
        let resident = &self.residents[place];
        let error = kernel_failed(&resident.grid, resident.index, thread, failure);
        self.core.trace.store(self.trace, Ordering::Relaxed);
        self.core.halt(&mut self.core.lock(), error);
    }
}
