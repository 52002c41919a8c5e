//! The fast mode's workers.
//!
//! A worker goes round its resident blocks and runs every thread that can run. When a round changes nothing it goes
//! round some more, then says that it is quiet and sleeps a little, longer each time, until somebody changes something.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use crate::engine::books::{Books, Core};
use crate::engine::chance::Random;
use crate::engine::launch::Grid;
use crate::engine::queue::Ticket;
use crate::engine::stream::Stream;
use crate::engine::thread::context::{Failure, panic_text};
use crate::engine::time::progress::Quiet;
use crate::engine::time::standstill::QUIET_ROUNDS;
use crate::error::SimError;
use crate::worker::resident::{Bench, Resident, states};

/// The longest sleep between two looks at memory that a host thread or another worker may change.
const LONGEST_NAP: Duration = Duration::from_millis(1);

/// Runs worker `index` until the machine ends.
pub(crate) fn work(core: &Core, index: usize) {
    let mut bench = Bench::new(core, index, false, Random::new(0));
    let mut residents: Vec<Resident> = Vec::new();
    let (mut rounds, mut seen, mut nap) = (0, 0, Duration::ZERO);
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
                nap = (nap * 2).clamp(Duration::from_micros(50), LONGEST_NAP);
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
        core.pass_time(bench.take_elapsed());
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

/// Waits until somebody changes the books.
pub(crate) fn wait<'a>(core: &'a Core, books: MutexGuard<'a, Books>) -> MutexGuard<'a, Books> {
    core.work.wait(books).unwrap_or_else(PoisonError::into_inner)
}

/// Drops all blocks of a worker.
pub(crate) fn retire_all(residents: &mut Vec<Resident>, bench: &mut Bench) {
    for resident in residents.drain(..) {
        resident.retire(bench);
    }
}

/// After a stop: drops what is queued and waits for the machine's end.
pub(crate) fn wait_for_end(core: &Core, index: usize) {
    let mut books = core.lock();
    books.quiet[index] = Quiet::default();
    // Queued closures may own anything, the machine's last handle included, so they are dropped outside the lock.
    let abandoned = books.abandon();
    drop(books);
    drop(abandoned);
    core.ended(index);
    let mut books = core.lock();
    while !books.shutdown {
        books = wait(core, books);
    }
}

/// Runs a host call, and moves its stream on.
pub(crate) fn run_host_call(core: &Core, worker: usize, stream: Stream, call: Box<dyn FnOnce() + Send>) {
    core.seats[worker].reins().enter_host_call(stream.rank, stream.index);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    core.seats[worker].reins().leave();
    core.changed();
    let mut books = core.lock();
    books.host_calls -= 1;
    match result {
        Ok(()) if core.stop.load(Ordering::Acquire) => {}
        Ok(()) => core.finish_head(&mut books, stream),
        Err(payload) => {
            let message = panic_text(&*payload);
            core.halt(&mut books, SimError::HostCallFailed { rank: stream.rank, stream: stream.index, message });
        }
    }
}

/// A thread's failure, with its kernel's name.
pub(crate) fn kernel_failed(grid: &Grid, block: u32, thread: u32, failure: Failure) -> SimError {
    SimError::KernelFailed {
        kernel: grid.launch.kernel,
        launch: grid.number,
        rank: grid.stream.rank,
        block,
        thread,
        message: failure.message,
        location: failure.location,
    }
}
