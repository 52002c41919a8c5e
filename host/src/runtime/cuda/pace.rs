//! How far a rank's host thread may run ahead of its streams, each for itself.
//!
//! The driver's queue of a stream holds about a thousand launches, and a launch into a full one waits inside the driver, with
//! the context locked: no other rank of the process can launch meanwhile, and if the stream waits for one of them, none ever
//! will. So a rank waits for its own stream before its queue can be full, outside the driver's lock, where its peers go on. Kernels
//! that callers launch through `Comm::launch` are counted as ours are. What they launch on the stream by other ways is not: the bound
//! leaves them seven such launches for each of ours.
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use super::event::CudaEvent;
use crate::error::Result;

/// Entries (launches, events and waits) between two marks.
const STRIDE: u32 = 16;
/// Marks that may lie ahead of the stream: the queue holds at most `STRIDE * (MARKS + 1)` entries, and their marks.
const MARKS: usize = 6;

/// What a rank has enqueued on each stream since that was last known to have come by.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<HashMap<u64, Ahead<CudaEvent>>>);

#[derive(Debug)]
struct Ahead<M> {
    entries: u32,
    marks: VecDeque<M>,
}

impl<M> Default for Ahead<M> {
    fn default() -> Self {
        Self { entries: 0, marks: VecDeque::new() }
    }
}

impl<M> Ahead<M> {
    /// Counts an entry; the mark to wait for before it is enqueued, if any. `mark` enqueues one.
    ///
    /// # Errors
    ///
    /// That of `mark`.
    fn count(&mut self, mark: impl FnOnce() -> Result<M>) -> Result<Option<M>> {
        if self.entries < STRIDE {
            self.entries += 1;
            return Ok(None);
        }
        self.marks.push_back(mark()?);
        self.entries = 1;
        Ok(if self.marks.len() > MARKS { self.marks.pop_front() } else { None })
    }
}

impl Pace {
    /// Counts an entry of `stream`; the mark to wait for before it is enqueued, if any. `mark` enqueues one there.
    ///
    /// # Errors
    ///
    /// That of `mark`.
    pub(super) fn count(&self, stream: u64, mark: impl FnOnce() -> Result<CudaEvent>) -> Result<Option<CudaEvent>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(stream).or_default().count(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_never_holds_more_than_the_driver_takes() {
        // The stream stands still but for the waits: entry `i` is done once a mark after it was waited for.
        let (mut ahead, mut enqueued, mut done, mut most) = (Ahead::default(), 0u32, 0u32, 0u32);
        for _ in 0..10_000 {
            let oldest = ahead.count(|| Ok(enqueued)).expect("marks are numbers here");
            done = oldest.map_or(done, |mark| mark);
            enqueued += 1;
            most = most.max(enqueued - done);
        }
        assert_eq!(most, STRIDE * (MARKS as u32 + 1));
        assert!(8 * most + MARKS as u32 <= 1000, "a queue holds about a thousand entries, ours and the caller's");
    }

    #[test]
    fn a_short_run_waits_for_nothing() {
        let mut ahead = Ahead::default();
        assert!((0..STRIDE * MARKS as u32).all(|_| matches!(ahead.count(|| Ok(())), Ok(None))));
    }
}
