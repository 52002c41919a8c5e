//! How far a rank's host thread may run ahead of its streams, each for itself.
//!
//! The driver's queue of a stream holds about a thousand launches, and a launch into a full one waits inside the driver, with
//! the context locked: no other rank of the process can launch meanwhile, and if the stream waits for one of them, none ever
//! will. So a rank waits for its own stream before its queue can be full, outside the driver's lock, where its peers go on. Kernels
//! that callers launch through `Comm::launch` are counted as ours are. What they launch on the stream by other ways is not: the bound
//! leaves them seven such launches for each of ours.
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::event::CudaEvent;
use crate::error::Result;

/// Entries (launches, events and waits) between two marks.
const STRIDE: u32 = 16;
/// Marks that may lie ahead of the stream: the queue holds at most `STRIDE * (MARKS + 1)` entries, and their marks.
const MARKS: usize = 6;

/// What a rank has enqueued on each stream since that was last known to have come by.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Vec<(u64, Ahead<CudaEvent>)>>);

#[derive(Debug)]
struct Ahead<M> {
    entries: u32,
    /// Those that were waited for: they mark another point.
    spare: Vec<M>,
    /// Each with the entries between it and the one before.
    marks: VecDeque<(M, u32)>,
    /// Entries before the last mark that lie ahead of the stream.
    marked: u32,
}

impl<M> Default for Ahead<M> {
    fn default() -> Self {
        Self { entries: 0, spare: Vec::new(), marks: VecDeque::new(), marked: 0 }
    }
}

impl<M> Ahead<M> {
    /// Counts what is as long as so many entries; the mark to wait for before it is enqueued, if any. `mark` enqueues one, of those to spare if
    /// there is any, unless it must not.
    /// Of what is longer than the queue may be, two are enqueued at once: a graph is more than its launch, and the next is to be ready.
    ///
    /// # Errors
    ///
    /// That of `mark`.
    fn count(&mut self, entries: u32, mark: impl FnOnce(&mut Vec<M>) -> Result<Option<M>>) -> Result<Option<M>> {
        if self.entries == 0 || self.entries + entries <= STRIDE {
            self.entries += entries;
            return Ok(None);
        }
        if let Some(mark) = mark(&mut self.spare)? {
            self.marks.push_back((mark, self.entries));
            self.marked += self.entries;
        }
        self.entries = entries;
        let mut oldest = None;
        while self.marked > STRIDE * MARKS as u32 && self.marks.len() > 1 {
            oldest = self.marks.pop_front().map(|(mark, entries)| {
                self.marked -= entries;
                mark
            });
        }
        Ok(oldest)
    }
}

impl Pace {
    /// Counts what is as long as so many entries of `stream`; the mark to wait for before it is enqueued, if any, which is [given
    /// back](Self::give_back) then. `mark` enqueues one there, of those to spare if there is any, unless it must not.
    ///
    /// # Errors
    ///
    /// That of `mark`.
    pub(super) fn count(
        &self,
        stream: u64,
        entries: u32,
        mark: impl FnOnce(&mut Vec<CudaEvent>) -> Result<Option<CudaEvent>>,
    ) -> Result<Option<CudaEvent>> {
        self.of(stream, |ahead| ahead.count(entries, mark))
    }

    /// Takes back a mark of `stream` that was waited for.
    pub(super) fn give_back(&self, stream: u64, mark: CudaEvent) {
        self.of(stream, |ahead| ahead.spare.push(mark));
    }

    fn of<T>(&self, stream: u64, f: impl FnOnce(&mut Ahead<CudaEvent>) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // They are few, and most ranks have one.
        let at = all.iter().position(|(other, _)| *other == stream).unwrap_or_else(|| {
            all.push((stream, Ahead::default()));
            all.len() - 1
        });
        f(&mut all[at].1)
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
            let oldest = ahead.count(1, |_| Ok(Some(enqueued))).expect("marks are numbers here");
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
        assert!((0..STRIDE * MARKS as u32).all(|_| matches!(ahead.count(1, |_| Ok(Some(()))), Ok(None))));
    }

    #[test]
    fn graphs_count_as_their_kernels_do_and_two_are_always_ahead() {
        for (entries, most) in [(19, 6), (40, 3), (1000, 2)] {
            let (mut ahead, mut done) = (Ahead::default(), 0);
            let mut longest = 0;
            for launch in 0..100 {
                done = ahead.count(entries, |_| Ok(Some(launch))).expect("marks are numbers here").unwrap_or(done);
                longest = longest.max(launch + 1 - done);
            }
            assert_eq!(longest, most, "{entries}");
        }
    }

    #[test]
    fn marks_are_used_again() {
        let (mut ahead, mut made) = (Ahead::default(), 0);
        for _ in 0..10_000 {
            let mark = |spare: &mut Vec<u32>| {
                Ok(Some(spare.pop().unwrap_or_else(|| {
                    made += 1;
                    made
                })))
            };
            if let Some(oldest) = ahead.count(1, mark).expect("marks are numbers here") {
                ahead.spare.push(oldest);
            }
        }
        assert_eq!(made, MARKS as u32 + 1);
    }

    #[test]
    fn what_is_captured_is_not_waited_for() {
        let mut ahead = Ahead::<()>::default();
        assert!((0..10_000).all(|_| matches!(ahead.count(1, |_| Ok(None)), Ok(None))));
    }
}
