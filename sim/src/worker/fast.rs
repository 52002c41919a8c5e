//! The fast mode's workers.
//!
//! A worker goes round its resident blocks and runs every thread that can run. When a round changes nothing it goes
//! round some more, then says that it is quiet and sleeps a little, longer each time, until somebody changes something.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::duties::{kernel_failed, retire_all, run_host_call, wait, wait_for_end};
use crate::engine::books::Core;
use crate::engine::chance::Chance;
use crate::engine::launch::Grid;
use crate::engine::queue::Ticket;
use crate::engine::time::progress::Quiet;
use crate::engine::time::standstill::QUIET_ROUNDS;
use crate::worker::resident::{Bench, Resident, states};

/// The longest sleep between two looks at memory that a host thread or another worker may change.
const LONGEST_NAP: Duration = Duration::from_millis(1);

/// The longest where another process may change it, who wakes nobody here.
const LONGEST_NAP_AMONG_PROCESSES: Duration = Duration::from_micros(200);

/// Runs worker `index` until the machine ends.
pub(crate) fn work(core: &Core, index: usize) {
    let mut bench = Bench::new(core, index, false, Chance::none());
    let mut residents: Vec<Resident> = Vec::new();
    let (mut rounds, mut seen, mut nap) = (0, 0, Duration::ZERO);
    let longest_nap = if core.process.is_some() { LONGEST_NAP_AMONG_PROCESSES } else { LONGEST_NAP };
    loop {
        if core.stop.load(Ordering::Acquire) {
            retire_all(&mut residents, &mut bench);
            return wait_for_end(core, index);
        }
        if residents.is_empty() || core.mail[index].swap(false, Ordering::Acquire) {
            for ticket in take_mail(core, index, !residents.is_empty()) {
                match ticket {
                    Ticket::Block { grid, index } => residents.push(Resident::new(grid, index, 0)),
                    Ticket::HostCall { stream, call } => run_host_call(core, index, stream, call),
                }
            }
            rounds = 0;
            continue;
        }
        let changes = core.changes.load(Ordering::Acquire);
        if changes != seen {
            (rounds, seen, nap) = (0, changes, Duration::ZERO);
        }
        if go_round(core, index, &mut bench, &mut residents) {
            continue;
        }
        rounds += 1;
        if rounds < QUIET_ROUNDS {
            if rounds > QUIET_ROUNDS / 2 {
                std::thread::yield_now();
            }
            continue;
        }
        let mut books = core.lock();
        // Anything that changed since the quiet rounds began makes them worth nothing.
        if core.changes.load(Ordering::Acquire) == seen && !core.stop.load(Ordering::Acquire) {
            core.quiet(&mut books, index, seen, &states(&mut residents));
            if core.changes.load(Ordering::Acquire) == seen && !core.stop.load(Ordering::Acquire) {
                nap = (nap * 2).clamp(Duration::from_micros(50), longest_nap);
                drop(core.work.wait_timeout(books, nap).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }
}

/// Gives every resident block a round. Returns whether anything changed.
fn go_round(core: &Core, index: usize, bench: &mut Bench, residents: &mut Vec<Resident>) -> bool {
    let (mut changed, mut finished) = (false, false);
    for resident in residents.iter_mut() {
        match resident.run_round(bench) {
            Ok(did) => changed |= did,
            Err((thread, failure)) => {
                core.halt(&mut core.lock(), kernel_failed(&resident.grid, resident.index, thread, failure));
                return true;
            }
        }
        finished |= resident.is_finished();
        core.clock.pass(bench.take_elapsed());
        if core.stop.load(Ordering::Relaxed) {
            return true;
        }
    }
    if changed {
        // Before any lock is released: a worker that finds itself quiet afterwards sees it.
        core.changed();
    }
    if finished {
        let grids: Vec<Arc<Grid>> = residents
            .extract_if(.., |resident| resident.is_finished())
            .map(|resident| {
                let grid = Arc::clone(&resident.grid);
                resident.retire(bench);
                grid
            })
            .collect();
        let mut books = core.lock();
        for grid in &grids {
            core.finish_block(&mut books, index, grid);
        }
        // A kernel's closure may own the machine's last handle, whose end takes this lock: it is released first.
        drop(books);
        drop(grids);
    }
    changed
}

/// Takes the worker's tickets; waits for one unless it has blocks to run.
fn take_mail(core: &Core, index: usize, has_blocks: bool) -> Vec<Ticket> {
    let mut books = core.lock();
    loop {
        if core.stop.load(Ordering::Acquire) {
            return Vec::new();
        }
        let tickets = std::mem::take(&mut books.inboxes[index]);
        if has_blocks || !tickets.is_empty() {
            books.quiet[index].has_blocks = true;
            return tickets;
        }
        books.quiet[index] = Quiet::default();
        core.decide(&mut books);
        if books.inboxes[index].is_empty() && !core.stop.load(Ordering::Acquire) {
            books = wait(core, books);
        }
    }
}
