//! Moving on what is queued: heads of streams, blocks of kernels as SMs are free, and what follows when they end.
//!
//! A stream is first in, first out. A kernel at its head asks for SMs; its blocks become resident as SMs are free, in the
//! order in which a rank's kernels began. All of this is books under the machine's lock.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::books::{ActorState, Books, Core};
use super::launch::Grid;
use super::queue::{Op, Placing, Ticket};
use super::stream::Stream;
use super::time::progress::Running;

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
                event.reach(self.clock.now());
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
                    books.running.insert(grid.key(), Running::new(&grid));
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
            books.running.remove(&grid.key());
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
