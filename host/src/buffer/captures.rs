//! What becomes of a buffer's slots in a capture.
use super::ElasticBuffer;
use super::row_slots::{Captured, RowSlots};
use super::state::State;
use crate::error::{Error, Result};
use crate::life::Life;

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
        let capture = self.catch_up()?;
        if self.captured.as_ref().map(|captured| captured.id) == capture {
            return Ok(());
        }
        let inner = self.comm.inner();
        let Some(id) = capture else { return Ok(()) };
        if self.mirror.is_some() {
            let rule = "dispatches are told apart in the mirror by their numbers, which the host does not know of replays: capture \
                        operations of a buffer without one";
            return Err(Error::argument("counts_mirror", true, rule));
        }
        inner.streams.captures(&inner.runtime, id, inner.stream, &self.life);
        self.captured = Some(Captured { id, rows: self.rows.clone(), next_routing: self.routings.next });
        let _ = self.life.take_taken();
        Ok(())
    }

    /// Takes note of a capture that is over, and of graphs that were launched: before anything looks at the slots. Returns which capture the
    /// buffer's stream is in.
    ///
    /// # Errors
    ///
    /// [`Error::CaptureLeftOpen`]; [`Error::Cuda`].
    pub(crate) fn catch_up(&mut self) -> Result<Option<u64>> {
        let inner = self.comm.inner();
        let capture = inner.runtime.capture(inner.stream)?;
        let goes_on = self.captured.as_ref().map(|captured| captured.id) == capture;
        if let Some(before) = self.captured.take_if(|_| !goes_on) {
            self.rows = before.rows;
            self.routings.next = before.next_routing;
            if let Some(error) = self.life.take_open() {
                return Err(error);
            }
        }
        if capture.is_none() {
            let launched = self.life.take_launched();
            for slot in (0..self.rows.len()).filter(|slot| launched.rows >> slot & 1 == 1) {
                // What was lent, and handed over, was for the graph's dispatch.
                let row = self.rows.of_mut(slot);
                (row.lent_early, row.outputs, row.received_rows) = (false, None, None);
            }
            for (slot, operation) in launched.routings {
                self.routings.holds(slot, operation);
            }
        }
        Ok(capture)
    }

    /// Takes note of the slots behind an operation.
    pub(crate) fn noted(&self) {
        match &self.captured {
            Some(captured) => self.life.leaves(left_open(&captured.rows, &self.rows)),
            None => self.life.holds(self.rows.held()),
        }
    }

    /// Forgets what was captured: the slots are made anew.
    pub(super) fn forget_capture(&mut self) {
        self.captured = None;
        let _ = self.life.take_open();
        let _ = self.life.take_launched();
        self.life.holds(0);
    }

    /// The number of the capture that it is in, as of when the call [began](Self::begin).
    pub(crate) fn capture(&self) -> Option<u64> {
        self.captured.as_ref().map(|captured| captured.id)
    }

    /// Whether it is in a capture.
    pub(crate) fn is_captured(&self) -> bool {
        self.captured.is_some()
    }

    /// What graphs know of it.
    pub(crate) fn life(&self) -> &Life {
        &self.life
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
}
