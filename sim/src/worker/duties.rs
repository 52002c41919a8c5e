//! What a worker does in either mode: it waits, runs calls of the host's, tells of failures, and ends.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use super::resident::{Bench, Resident};
use crate::engine::books::{Books, Core};
use crate::engine::launch::Grid;
use crate::engine::stream::Stream;
use crate::engine::thread::context::{Failure, panic_text};
use crate::engine::time::progress::Quiet;
use crate::error::SimError;

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
