//! The death of a rank: as if its process had been killed, in one process.
//!
//! Its kernels stop where they are, with what they had in flight; what is queued of it is dropped; its host thread finds that it is
//! gone, whatever it calls. Its memory stays as it is, and peers may go on reading and writing it. The others are told nothing but
//! that its host thread is gone, and their kernels what a word says that was given for it (`Machine::tell_deaths`).
//!
//! Between two turns of a seeded schedule, so that the same seed is the same death.

use std::sync::atomic::Ordering;

use super::books::{ActorState, Books, Core};
use super::queue::{Op, Placing, Ticket};
use crate::error::SimError;
use crate::memory::door::By;

/// What was queued of a rank that was killed. Its closures may own anything, the machine included.
pub(crate) struct Buried {
    _tickets: Vec<Ticket>,
    _ops: Vec<Op>,
    _placing: Vec<Placing>,
}

impl Core {
    /// Kills a rank: from here on its host thread can do nothing, and nothing new of it begins. The worker
    /// [buries](Self::bury) the rest.
    pub(crate) fn kill(&self, books: &mut Books, rank: u32) {
        if matches!(books.actors[rank as usize], ActorState::Killed) {
            return;
        }
        books.actors[rank as usize] = ActorState::Killed;
        books.payloads[rank as usize] = None;
        for mourner in books.mourners.iter().filter(|mourner| mourner.rank != rank) {
            // SAFETY: who gave the word has promised that it is allocated, and that what else accesses it are whole words.
            let told = unsafe { self.arena.write_words(By::Anyone, mourner.at, &[(mourner.word)(rank)]) };
            // One that is not there any more is nobody's.
            let _ = told;
        }
        self.changed();
        let gone = |(rank, actor): (u32, &ActorState)| actor.is_gone().then_some(rank);
        let ranks: Vec<u32> = (0..).zip(&books.actors).filter_map(gone).collect();
        self.killed.store(true, Ordering::Release);
        // Who waits in an exchange, and the rank's own host thread, wherever it waits.
        self.end_exchange(books, |rank| SimError::PeerGone { rank, ranks: ranks.clone() });
        self.work.notify_all();
    }

    /// Drops what is queued of ranks that were killed; the caller drops that once it has released the lock, and the blocks that it has
    /// of them.
    pub(crate) fn bury(&self, books: &mut Books) -> Buried {
        self.killed.store(false, Ordering::Release);
        let dead: Vec<bool> = books.actors.iter().map(|actor| matches!(actor, ActorState::Killed)).collect();
        let is_dead = |rank: u32| dead[rank as usize];
        let mut buried = Buried { _tickets: Vec::new(), _ops: Vec::new(), _placing: Vec::new() };
        for (worker, inbox) in books.inboxes.iter_mut().enumerate() {
            let of_dead = |ticket: &mut Ticket| match ticket {
                Ticket::Block { grid, .. } => is_dead(grid.stream.rank),
                Ticket::HostCall { stream, .. } => is_dead(stream.rank),
            };
            for ticket in inbox.extract_if(.., of_dead) {
                match &ticket {
                    Ticket::Block { grid, .. } => books.loads[worker] -= u64::from(grid.launch.threads),
                    Ticket::HostCall { .. } => books.host_calls -= 1,
                }
                buried._tickets.push(ticket);
            }
        }
        for rank in (0..dead.len()).filter(|&rank| dead[rank]) {
            for queue in &mut books.streams[rank] {
                queue.started = false;
                buried._ops.extend(queue.ops.drain(..));
            }
            buried._placing.extend(books.placing[rank].drain(..));
        }
        books.finished.retain(|&(rank, _), _| !is_dead(rank));
        books.running.retain(|_, running| !is_dead(running.rank));
        self.changed();
        buried
    }
}
