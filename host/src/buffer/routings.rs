//! Whose routing lies in which slot.
use epoxide_kernels::words::Number;

use super::row_slots::RowSlots;
use super::state::{Dispatched, stale};
use crate::error::{Error, Result};

/// Whose routing lies in which slot.
#[derive(Debug)]
pub(crate) struct Routings {
    /// `[slots]`: the operation that made it.
    made_by: Vec<Option<u64>>,
    /// `[slots]`: the [`Number`] of the dispatch that made it, as the device counts them.
    numbers: Vec<u64>,
    /// `[row slots]`: how many dispatches there were into each.
    dispatches: Vec<u64>,
    /// The slot of the next dispatch that names none.
    pub(super) next: u32,
}

impl Routings {
    pub(crate) fn new(slots: u32, row_slots: u32) -> Self {
        let dispatches = vec![0; row_slots as usize];
        Self { made_by: vec![None; slots as usize], numbers: vec![0; slots as usize], dispatches, next: 0 }
    }

    /// The slot for a dispatch: the one that it `named`, or the next in turn; where there are several row slots, the next that no dispatch holds.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] where there is no such slot; [`Error::SlotBusy`] where it is that of a dispatch which waits for its combine, or
    /// whose rows are kept, if there are others.
    pub(crate) fn slot(&self, named: Option<u32>, rows: &RowSlots) -> Result<u32> {
        let slots = self.made_by.len() as u32;
        let slot = named.unwrap_or(self.next);
        if slot >= slots {
            let rule = format!("one of the buffer's {slots} routing slots, from 0");
            return Err(Error::argument("routing_slot", slot, rule));
        }
        let holder = |slot: u32| rows.holder(slot).filter(|_| slots > 1);
        let turn = if named.is_none() && rows.len() > 1 { slots } else { 1 };
        match (0..turn).map(|i| (slot + i) % slots).find(|slot| holder(*slot).is_none()) {
            Some(free) => Ok(free),
            None => Err(Error::SlotBusy { slot, operation: holder(slot).unwrap_or_default(), slots }),
        }
    }

    /// Notes that `operation`, in this row slot, has taken `slot`, which it `named` or not.
    pub(crate) fn take(&mut self, slot: u32, row_slot: u32, operation: u64, named: Option<u32>) {
        self.made_by[slot as usize] = Some(operation);
        let count = &mut self.dispatches[row_slot as usize];
        *count += 1;
        self.numbers[slot as usize] = Number { row_slot, count: *count }.to_word();
        if named.is_none() {
            self.next = (slot + 1) % self.made_by.len() as u32;
        }
    }

    /// Whether a slot has the routing that an operation made.
    pub(crate) fn is_of(&self, slot: u32, operation: u64) -> bool {
        self.made_by[slot as usize] == Some(operation)
    }

    /// A slot has the routing of an operation that was captured.
    pub(crate) fn holds(&mut self, slot: u32, operation: u64) {
        self.made_by[slot as usize] = Some(operation);
    }

    /// Goes on as if there had been so many dispatches into each row slot.
    pub(crate) fn count_from(&mut self, dispatches: u64) {
        self.dispatches.fill(dispatches);
    }

    /// The number of the dispatch whose routing is that of `handle`, which was [checked](Self::check).
    pub(crate) fn number(&self, handle: &Dispatched) -> u64 {
        self.numbers[handle.slot as usize]
    }

    /// Checks that the routing of `handle` lies in its slot of the buffer with this id.
    ///
    /// # Errors
    ///
    /// [`Error::StaleHandle`].
    pub(crate) fn check(&self, buffer: u64, handle: &Dispatched) -> Result<()> {
        let there = self.made_by.get(handle.slot as usize).copied().flatten();
        if handle.buffer == buffer && there == Some(handle.routing) {
            return Ok(());
        }
        let current = match there {
            Some(operation) => format!("operation {operation} in routing slot {}", handle.slot),
            None => format!("no operation in routing slot {}", handle.slot),
        };
        Err(stale(handle, handle.routing, buffer, current))
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::State;
    use super::*;

    fn waiting(states: &[State]) -> RowSlots {
        let mut rows = RowSlots::new(states.len() as u32);
        (0..).zip(states).for_each(|(slot, state)| rows.of_mut(slot).state = *state);
        rows
    }

    #[test]
    fn slots_are_taken_in_turn_and_named_ones_do_not_move_it() {
        let idle = RowSlots::new(1);
        let mut routings = Routings::new(3, 1);
        let mut took = Vec::new();
        for (operation, named) in [None, None, Some(0), None, None, None].into_iter().enumerate() {
            let slot = routings.slot(named, &idle).unwrap();
            routings.take(slot, 0, operation as u64, named);
            took.push(slot);
        }
        assert_eq!(took, [0, 1, 0, 2, 0, 1]);
        let said = routings.slot(Some(3), &idle).unwrap_err().to_string();
        assert_eq!(said, "routing_slot = 3: one of the buffer's 3 routing slots, from 0");
        let busy = waiting(&[State::Dispatched { operation: 9, slot: 2, kept: false }]);
        assert!(routings.slot(Some(1), &busy).is_ok());
        assert!(matches!(routings.slot(None, &busy), Err(Error::SlotBusy { slot: 2, operation: 9, slots: 3 })));
        // One slot is all there is, and a dispatch gives up the one before.
        let busy = waiting(&[State::Dispatched { operation: 9, slot: 0, kept: false }]);
        assert_eq!(Routings::new(1, 1).slot(None, &busy).unwrap(), 0);
    }

    #[test]
    fn with_several_row_slots_the_turn_passes_over_what_is_held() {
        let rows = waiting(&[State::Kept { operation: 3, slot: 0 }, State::Idle { combined: None }]);
        let routings = Routings::new(2, 2);
        assert_eq!(routings.slot(None, &rows).unwrap(), 1);
        assert!(matches!(routings.slot(Some(0), &rows), Err(Error::SlotBusy { slot: 0, operation: 3, slots: 2 })));
    }

    #[test]
    fn dispatches_are_counted_in_each_row_slot() {
        let mut routings = Routings::new(2, 2);
        for (slot, row_slot) in [(0, 0), (1, 1), (0, 1)] {
            routings.take(slot, row_slot, 7, None);
        }
        let of = |row_slot, count| Number { row_slot, count }.to_word();
        assert_eq!(routings.numbers, [of(1, 2), of(1, 1)]);
    }
}
