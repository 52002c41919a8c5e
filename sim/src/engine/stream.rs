//! Streams and launches: what is queued, what has started, which blocks are on SMs.
//!
//! A stream is first in, first out. A kernel at its head asks for SMs; its blocks become resident as SMs are free, in the
//! order in which a rank's kernels began. All of this is books under the machine's lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::MachineConfig;
use crate::engine::books::{ActorState, Books, Core};
use crate::engine::event::Event;
use crate::engine::time::watchdog::Running;
use crate::error::SimError;

/// Names a stream of one rank; made by [`Actor::create_stream`](crate::Actor::create_stream).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// The number of its machine.
    pub(crate) machine: u64,
    pub(crate) rank: u32,
    pub(crate) index: u32,
}

/// A kernel and how many threads run it.
#[derive(Clone)]
pub struct Launch {
    /// The kernel's name, for reports.
    pub kernel: &'static str,
    /// How many blocks.
    pub grid: u32,
    /// How many threads a block: a multiple of 32, at most 1024.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// How many of these blocks fit one SM.
    pub blocks_per_sm: u32,
    /// Whether all blocks must be resident together (a grid barrier needs it).
    pub cooperative: bool,
    /// What every thread runs.
    ///
    /// Its frames must hold only values that need no `Drop`: whoever launches it promises that
    /// ([`Actor::launch`](crate::Actor::launch)).
    pub entry: Arc<dyn Fn() + Send + Sync>,
}

/// A launch on its way through the machine.
pub(crate) struct Grid {
    pub launch: Launch,
    pub stream: Stream,
    /// Names the launch on its machine.
    pub number: u64,
    /// Whether it has run for longer than the watchdog lets it.
    pub overdue: Arc<AtomicBool>,
    /// What one block takes of a rank, in parts of an SM.
    cost: u64,
}

/// An SM in parts: divisible by every small `blocks_per_sm`, so that full SMs come out even.
pub(crate) const SM_PARTS: u64 = 720_720;

/// Work of a stream.
pub(crate) enum Op {
    Kernel(Arc<Grid>),
    HostCall(Box<dyn FnOnce() + Send>),
    Record(Event),
    Wait(Event),
    /// The head, while a worker has its host call.
    UnderWay,
}

/// One stream's queue.
#[derive(Default)]
pub(crate) struct Queue {
    pub ops: VecDeque<Op>,
    /// Whether the head has started.
    started: bool,
}

/// A kernel some of whose blocks are not resident yet.
pub(crate) struct Placing {
    grid: Arc<Grid>,
    next: u32,
}

/// Work for a worker.
pub(crate) enum Ticket {
    Block { grid: Arc<Grid>, index: u32 },
    HostCall { stream: Stream, call: Box<dyn FnOnce() + Send> },
}

impl Launch {
    /// Checks the launch against the machine's limits.
    pub(crate) fn validate(&self, config: &MachineConfig) -> Result<(), SimError> {
        if self.grid == 0 || self.grid > i32::MAX as u32 {
            return Err(SimError::invalid("grid", self.grid, "1 to 2147483647 blocks"));
        }
        if !(1..=1024).contains(&self.threads) || !self.threads.is_multiple_of(32) {
            return Err(SimError::invalid("threads", self.threads, "a multiple of 32, 32 to 1024"));
        }
        if self.shared_bytes > config.shared_bytes_per_block {
            let rule = format!("at most {} bytes a block", config.shared_bytes_per_block);
            return Err(SimError::invalid("shared_bytes", self.shared_bytes, rule));
        }
        if !(1..=32).contains(&self.blocks_per_sm) {
            return Err(SimError::invalid("blocks_per_sm", self.blocks_per_sm, "1 to 32"));
        }
        let capacity = u64::from(config.sms_per_rank) * u64::from(self.blocks_per_sm);
        if self.cooperative && u64::from(self.grid) > capacity {
            let rule = format!("a cooperative grid is resident as a whole: at most {capacity} blocks on this rank");
            return Err(SimError::invalid("grid", self.grid, rule));
        }
        Ok(())
    }
}

impl Grid {
    pub(crate) fn new(launch: Launch, stream: Stream, number: u64) -> Self {
        // Rounded down, so that sms_per_rank * blocks_per_sm blocks always fit.
        let cost = SM_PARTS / u64::from(launch.blocks_per_sm);
        Self { launch, stream, number, overdue: Arc::default(), cost }
    }
}

impl Core {
    /// Starts whatever can start: heads of streams, and blocks of kernels that have begun.
    pub(crate) fn advance(&self, books: &mut Books) {
        loop {
            let mut moved = false;
            for rank in 0..books.streams.len() {
                for index in 0..books.streams[rank].len() {
                    let stream = Stream { machine: self.id, rank: rank as u32, index: index as u32 };
                    while self.advance_stream(books, stream) {
                        moved = true;
                    }
                }
            }
            if !moved {
                break;
            }
        }
        self.place(books);
    }

    /// Moves one stream's head on; false when it must wait.
    fn advance_stream(&self, books: &mut Books, stream: Stream) -> bool {
        let queue = &mut books.streams[stream.rank as usize][stream.index as usize];
        if queue.started {
            return false;
        }
        match queue.ops.front_mut() {
            None | Some(Op::UnderWay) => false,
            Some(Op::Record(event)) => {
                event.reach(self.clock.load(Ordering::Relaxed));
                let event = event.clone();
                queue.ops.pop_front();
                for actor in &mut books.actors {
                    if matches!(actor, ActorState::InEvent(waited) if waited.is_same(&event)) {
                        *actor = ActorState::Running;
                    }
                }
                self.popped(books, stream);
                self.host.notify_all();
                true
            }
            Some(Op::Wait(event)) => {
                let reached = event.is_complete();
                if reached {
                    queue.ops.pop_front();
                    self.popped(books, stream);
                }
                reached
            }
            Some(Op::Kernel(grid)) => {
                queue.started = true;
                let grid = Arc::clone(grid);
                books.placing[stream.rank as usize].push_back(Placing { grid, next: 0 });
                true
            }
            Some(head) => {
                queue.started = true;
                if let Op::HostCall(call) = std::mem::replace(head, Op::UnderWay) {
                    let worker = books.lightest_worker();
                    books.host_calls += 1;
                    self.hand_out(books, worker, Ticket::HostCall { stream, call });
                }
                true
            }
        }
    }

    /// Makes blocks resident while SMs are free.
    fn place(&self, books: &mut Books) {
        for rank in 0..books.placing.len() {
            while let Some(Placing { grid, next }) = books.placing[rank].front() {
                let (grid, next) = (Arc::clone(grid), *next);
                let asked =
                    if grid.launch.cooperative { u64::from(grid.launch.grid - next) * grid.cost } else { grid.cost };
                if books.free_parts[rank] < asked {
                    break;
                }
                books.free_parts[rank] -= grid.cost;
                if next == 0 {
                    books.running.insert(grid.number, Running::new(&grid));
                }
                if next + 1 == grid.launch.grid {
                    books.placing[rank].pop_front();
                } else {
                    books.placing[rank][0].next = next + 1;
                }
                let worker = books.lightest_worker();
                books.loads[worker] += u64::from(grid.launch.threads);
                self.hand_out(books, worker, Ticket::Block { grid, index: next });
            }
        }
    }

    /// Puts a ticket into a worker's inbox.
    fn hand_out(&self, books: &mut Books, worker: usize, ticket: Ticket) {
        books.inboxes[worker].push(ticket);
        self.mail[worker].store(true, Ordering::Release);
        self.changed();
        self.work.notify_all();
    }

    /// Books the end of a block that ran on `worker`.
    pub(crate) fn finish_block(&self, books: &mut Books, worker: usize, grid: &Arc<Grid>) {
        let Stream { rank, index, .. } = grid.stream;
        books.loads[worker] -= u64::from(grid.launch.threads);
        books.free_parts[rank as usize] += grid.cost;
        let finished = books.finished.entry((rank, index)).or_insert(0);
        *finished += 1;
        if *finished == grid.launch.grid {
            books.finished.remove(&(rank, index));
            books.running.remove(&grid.number);
            self.finish_head(books, grid.stream);
        } else {
            self.place(books);
        }
    }

    /// Books the end of the op at the head of a stream.
    pub(crate) fn finish_head(&self, books: &mut Books, stream: Stream) {
        let queue = &mut books.streams[stream.rank as usize][stream.index as usize];
        queue.ops.pop_front();
        queue.started = false;
        self.popped(books, stream);
        self.changed();
        self.advance(books);
    }

    /// Marks the actor that waits for this stream as running if the stream is empty. Under the lock, before anyone wakes
    /// it, so that a seeded machine cannot step in between.
    fn popped(&self, books: &mut Books, stream: Stream) {
        if !books.streams[stream.rank as usize][stream.index as usize].ops.is_empty() {
            return;
        }
        let actor = &mut books.actors[stream.rank as usize];
        if matches!(actor, ActorState::InSynchronize(index) if *index == stream.index) {
            *actor = ActorState::Running;
            self.host.notify_all();
        }
    }
}

impl Placing {
    /// Kernel, rank, blocks that are not resident yet, blocks of the grid.
    pub(crate) fn describe(&self) -> (&'static str, u32, u32, u32) {
        let launch = &self.grid.launch;
        (launch.kernel, self.grid.stream.rank, launch.grid - self.next, launch.grid)
    }
}
