//! Host threads that wait for a word of device memory to change: when they go on.
//!
//! Such a host thread is blocked, so kernels step and time may pass; but no time is jumped over a word that has changed. A seeded machine
//! looks after each burst of turns, so that one seed is one run; of a fast one the host thread looks itself, now and then.

use super::progress::Lookout;
use crate::engine::books::{ActorState, Books, Core};
use crate::memory::door::By;

impl Core {
    /// Whether a word is another one than was seen, or the time has come.
    pub(crate) fn is_over(&self, rank: u32, lookout: &Lookout) -> bool {
        let changed = |&(at, seen): &(u64, u64)| {
            let mut word = [0];
            // SAFETY: whoever looks out has promised that the words are written as whole words of 8 bytes, atomically.
            let read = unsafe { self.arena.read_words(By::Actor { rank }, at, &mut word) };
            // One that is not there any more is for its reader to be told of.
            read.is_err() || word[0] != seen
        };
        self.clock.now() >= lookout.until || lookout.words.iter().any(changed)
    }

    /// Marks the host threads as running whose wait is over; whether there were any.
    pub(crate) fn end_lookouts(&self, books: &mut Books) -> bool {
        let mut ended = false;
        for (rank, actor) in (0u32..).zip(&mut books.actors) {
            if matches!(actor, ActorState::InLookout(lookout) if self.is_over(rank, lookout)) {
                *actor = ActorState::Running;
                ended = true;
            }
        }
        if ended {
            self.changed();
            self.host.notify_all();
        }
        ended
    }
}

impl Books {
    /// When the first of those waits ends, whatever the words say.
    pub(crate) fn first_lookout(&self) -> Option<u64> {
        let until = |actor: &ActorState| match actor {
            ActorState::InLookout(lookout) => Some(lookout.until),
            _ => None,
        };
        self.actors.iter().filter_map(until).min()
    }
}
