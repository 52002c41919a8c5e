//! What becomes of a buffer's slots in a capture, and what its graphs know of it.
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ElasticBuffer;
use super::row_slots::RowSlots;
use super::state::State;
use crate::error::{Error, Result};

/// What graphs know of a buffer whose operations they have.
#[derive(Debug, Default)]
pub(crate) struct Life(Mutex<Now>);

#[derive(Debug, Default)]
struct Now {
    /// Its memory is gone, or is nobody's.
    over: bool,
    /// Ranks that it goes on without, a bit for each.
    masked: u64,
    /// A slot that the capture which goes on has not left as it found it yet.
    open: Option<Error>,
}

/// A capture that the buffer is in, or was in last.
#[derive(Debug)]
pub(crate) struct Captured {
    id: u64,
    /// The slots as they were.
    rows: RowSlots,
    next_routing: u32,
}

impl Life {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The buffer is closed or dropped.
    pub(crate) fn ends(&self) {
        self.now().over = true;
    }

    /// It goes on without these ranks.
    pub(crate) fn is_without(&self, masked: u64) {
        self.now().masked = masked;
    }

    /// The ranks that it goes on without.
    pub(crate) fn masked(&self) -> u64 {
        self.now().masked
    }

    /// What its last capture has left in another state than it found it; from then on it was told.
    pub(crate) fn take_open(&self) -> Option<Error> {
        self.now().open.take()
    }

    /// Checks that what was captured while it went on without `masked` may run.
    ///
    /// # Errors
    ///
    /// [`Error::StaleGraph`].
    pub(crate) fn check(&self, masked: u64) -> Result<()> {
        let now = self.now();
        let reason = if now.over {
            "a buffer that it has operations of is closed".to_owned()
        } else if now.masked != masked {
            let ranks = |bits: u64| (0..u64::BITS).filter(|rank| bits >> rank & 1 == 1).collect::<Vec<_>>();
            format!(
                "it was captured without ranks {:?}, and its buffer goes on without {:?}",
                ranks(masked),
                ranks(now.masked)
            )
        } else {
            return Ok(());
        };
        Err(Error::StaleGraph { reason })
    }
}

impl ElasticBuffer {
    /// Begins a call that enqueues something: says what is wrong with the buffer, if anything is, and takes note of where captures begin and end.
    ///
    /// Behind a capture the slots are what they were before, since nothing of it has run. A routing slot that it has taken holds whatever a launch
    /// of its graph leaves there, so handles of before are stale in it.
    ///
    /// # Errors
    ///
    /// As [`Self::check`]; [`Error::CaptureLeftOpen`] of a capture that is over; [`Error::InvalidArgument`] for what cannot be captured.
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.check()?;
        let inner = self.comm.inner();
        let capture = inner.runtime.capture(inner.stream)?;
        if self.captured.as_ref().map(|captured| captured.id) == capture {
            return Ok(());
        }
        if let Some(before) = self.captured.take() {
            self.rows = before.rows;
            self.routings.next = before.next_routing;
            if let Some(error) = self.life.take_open() {
                return Err(error);
            }
        }
        let Some(id) = capture else { return Ok(()) };
        if self.mirror.is_some() {
            let rule = "dispatches are told apart in the mirror by their numbers, which the host does not know of replays: capture \
                        operations of a buffer without one";
            return Err(Error::argument("counts_mirror", true, rule));
        }
        inner.streams.captures(&inner.runtime, id, inner.stream, &self.life);
        self.captured = Some(Captured { id, rows: self.rows.clone(), next_routing: self.routings.next });
        Ok(())
    }

    /// Takes note of the slots behind an operation.
    pub(crate) fn noted(&self) {
        if let Some(captured) = &self.captured {
            self.life.now().open = left_open(&captured.rows, &self.rows);
        }
    }

    /// Forgets what was captured: the slots are made anew.
    pub(super) fn forget_capture(&mut self) {
        self.captured = None;
        let _ = self.life.take_open();
    }
}

/// The first row slot that is in another state than it was.
fn left_open(before: &RowSlots, now: &RowSlots) -> Option<Error> {
    let differs = |slot: &u32| match (before.of(*slot).state, now.of(*slot).state) {
        (State::Idle { .. }, State::Idle { .. }) => false,
        (before, now) => before != now,
    };
    (0..before.len()).find(differs).map(|slot| {
        let [began, ended] = [before, now].map(|rows| rows.of(slot).state.to_string());
        Error::CaptureLeftOpen { slot, began, ended }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_left_as_it_was_found() {
        let idle = |combined| State::Idle { combined };
        let waits = |operation| State::Dispatched { operation, slot: 0, kept: false };
        let kept = State::Kept { operation: 3, slot: 1 };
        for (before, now, open) in [
            (idle(None), idle(Some(4)), false),
            (waits(3), waits(3), false),
            (waits(3), waits(4), true),
            (waits(3), idle(Some(3)), true),
            (idle(None), waits(3), true),
            (kept, kept, false),
            (idle(None), kept, true),
        ] {
            let [before, now] = [before, now].map(|state| {
                let mut rows = RowSlots::new(2);
                rows.of_mut(1).state = state;
                rows
            });
            let said = left_open(&before, &now);
            assert_eq!(said.is_some(), open, "{before} to {now}");
            if let Some(error) = said {
                assert!(matches!(error, Error::CaptureLeftOpen { slot: 1, .. }), "{error}");
            }
        }
    }

    #[test]
    fn a_graph_is_good_as_long_as_its_buffer_goes_on_with_the_same_ranks() {
        let life = Life::default();
        life.check(0).unwrap();
        life.is_without(0b10);
        let said = life.check(0).unwrap_err().to_string();
        assert!(said.contains("captured without ranks []") && said.contains("goes on without [1]"), "{said}");
        life.check(life.masked()).unwrap();
        life.ends();
        assert!(life.check(life.masked()).unwrap_err().to_string().contains("is closed"));
    }
}
