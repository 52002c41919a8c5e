//! Who is gone, and the abort words by which kernels that wait for such a rank hear of it.
//!
//! Every buffer has a word in memory that host and device share, beside its fault record. Whoever learns that a rank is gone (the watch of
//! ranks that are processes, a rank that gives up) raises the alarm: a plain store into each of those words, and no driver call, which
//! another thread's could hold up. A wait whose flag is missing reads its buffer's word now and then (`epoxide_dsl::wait`), and ends. What the
//! user is told of how the rank went is from here, not from the device.
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use epoxide_dsl::fault::{Abort, CODE_GONE};

use crate::gone::Gone;
use crate::runtime::HostWord;

/// How long who hears of a rank by a peer waits for the word of its own watch: a process on a GPU takes some 50 ms to end.
const FOR_THE_WATCH: Duration = Duration::from_millis(500);

/// One rank's.
#[derive(Default)]
pub(crate) struct Alarm {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// In the order in which it was heard.
    gone: Vec<(u32, Gone)>,
    /// What is in the words: 0, or of the first rank that is gone and had not left in order.
    word: u64,
    /// Ranks that the group goes on without, a bit for each.
    masked: u64,
    /// By buffer.
    words: Vec<(u64, HostWord)>,
}

impl Alarm {
    /// An alarm that nobody has raised.
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Says that a rank is gone: whatever waits for anybody ends, unless it left in order, when it has posted all that others wait for.
    pub(crate) fn raise(&self, rank: u32, how: &Gone) {
        let mut state = self.state();
        if state.gone.iter().any(|(gone, _)| *gone == rank) {
            return;
        }
        state.gone.push((rank, how.clone()));
        if state.word == 0 && state.raises(rank, how) {
            state.word = word_of(rank);
            // Under the lock: nobody frees a word meanwhile.
            state.words.iter().for_each(|(_, word)| word.store(state.word));
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Takes on the word of a buffer.
    ///
    /// # Safety
    ///
    /// The word stays allocated until it is [dismissed](Self::dismiss), and only kernels touch it, which load it.
    pub(crate) unsafe fn attend(&self, buffer: u64, word: HostWord) {
        let mut state = self.state();
        if state.word != 0 {
            word.store(state.word);
        }
        word.attend(word_of);
        state.words.push((buffer, word));
    }

    /// Lets go of the word of a buffer: from here on it is not stored to.
    pub(crate) fn dismiss(&self, buffer: u64) {
        let mut state = self.state();
        for (_, word) in state.words.extract_if(.., |(of, _)| *of == buffer) {
            word.dismiss();
        }
    }

    /// Goes on without these ranks, a bit for each: they raise nothing any more. And with all others: that one goes on without this rank is over. Words
    /// that were stored stay until they are [refreshed](Self::refresh).
    pub(crate) fn mask(&self, ranks: u64) {
        let mut state = self.state();
        state.masked = ranks;
        state.gone.retain(|(rank, how)| *how != Gone::Masked || ranks >> rank & 1 == 1);
        let first = state.gone.iter().find(|(rank, how)| state.raises(*rank, how)).map(|(rank, _)| *rank);
        state.word = first.map_or(0, word_of);
    }

    /// Stores to the word of a buffer what there is to say now.
    pub(crate) fn refresh(&self, buffer: u64) {
        let state = self.state();
        state.words.iter().filter(|(of, _)| *of == buffer).for_each(|(_, word)| word.store(state.word));
    }

    /// How a rank went of which the device says that it is gone; `None` if this rank does not hear of it by itself.
    pub(crate) fn how(&self, rank: u32) -> Option<Gone> {
        let deadline = Instant::now() + FOR_THE_WATCH;
        let mut state = self.state();
        loop {
            if let Some((_, how)) = state.gone.iter().find(|(gone, _)| *gone == rank) {
                return Some(how.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether whatever waits for anybody ends because of that rank.
    fn raises(&self, rank: u32, how: &Gone) -> bool {
        *how != Gone::Left && self.masked >> rank & 1 == 0
    }
}

/// The word for kernels: that `rank` is gone.
fn word_of(rank: u32) -> u64 {
    Abort { code: CODE_GONE, origin: 0xffff, peer: rank }.to_word()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn every_buffer_s_word_is_stored_once_and_one_that_left_in_order_raises_nothing() {
        let words = [AtomicU64::new(0), AtomicU64::new(0)];
        let alarm = Alarm::new();
        // SAFETY: the words outlive the alarm's use of them.
        let attend = |i: usize| unsafe { alarm.attend(i as u64, HostWord::Cuda(words[i].as_ptr())) };
        let said = || words.each_ref().map(|word| word.load(Ordering::Relaxed));
        attend(0);
        alarm.raise(4, &Gone::Left);
        assert_eq!(said(), [0, 0]);
        alarm.raise(2, &Gone::Ended);
        alarm.raise(3, &Gone::Disconnected);
        assert_eq!((Abort::from_word(said()[0]).peer, Abort::from_word(said()[0]).code), (2, CODE_GONE));
        // A buffer that is made afterwards hears of it too.
        attend(1);
        assert_eq!(said()[1], said()[0]);
        assert_eq!([2, 3, 4].map(|rank| alarm.how(rank)), [Gone::Ended, Gone::Disconnected, Gone::Left].map(Some));
        alarm.dismiss(0);
        words[0].store(0, Ordering::Relaxed);
        alarm.raise(5, &Gone::Ended);
        assert_eq!(said()[0], 0, "it may be freed");
    }
}
