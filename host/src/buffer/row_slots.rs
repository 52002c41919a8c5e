//! Which dispatch holds which row slot, and what the host knows of the rows there.
use std::fmt;

use super::state::{Dispatched, State, stale};
use crate::error::{Error, Result};

/// What the host knows of a row slot.
#[derive(Clone, Debug)]
pub(crate) struct RowSlot {
    pub(crate) state: State,
    /// Its expert output region was lent back after the last combine.
    pub(crate) lent_early: bool,
    /// Rows that the dispatch there brought, once the host has read their number.
    pub(crate) received_rows: Option<u64>,
    /// Expert outputs that were handed over since the last combine; `None` where the caller's own work may write them.
    pub(crate) outputs: Option<u64>,
}

impl RowSlot {
    const UNUSED: Self =
        Self { state: State::Idle { combined: None }, lent_early: false, received_rows: None, outputs: None };

    /// Its operation is over for the host: it is combined, or given up.
    pub(crate) fn ends(&mut self, state: State) {
        *self = Self { state, ..Self::UNUSED };
    }
}

/// The row slots of a buffer.
#[derive(Clone, Debug)]
pub(crate) struct RowSlots {
    slots: Vec<RowSlot>,
    /// The slot of the next dispatch that names none, if it is free.
    next: u32,
}

/// A capture that the buffer is in, or was in last, and the slots as they were when it began.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(super) id: u64,
    pub(super) rows: RowSlots,
    /// The routing slot of the next dispatch that names none.
    pub(super) next_routing: u32,
}

impl fmt::Display for RowSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = &self.slots[..] {
            return only.state.fmt(f);
        }
        for (number, slot) in self.slots.iter().enumerate() {
            write!(f, "{}row slot {number} {}", if number == 0 { "" } else { ", " }, slot.state)?;
        }
        Ok(())
    }
}

impl RowSlots {
    pub(crate) fn new(slots: u32) -> Self {
        Self { slots: (0..slots).map(|_| RowSlot::UNUSED).collect(), next: 0 }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    /// One of them.
    pub(crate) fn of(&self, slot: u32) -> &RowSlot {
        &self.slots[slot as usize]
    }

    /// Those that a dispatch holds, a bit for each.
    pub(crate) fn held(&self) -> u64 {
        let held = self.slots.iter().map(|slot| u64::from(slot.state.operation().is_some()));
        held.rev().fold(0, |bits, held| bits << 1 | held)
    }

    /// One of them.
    pub(crate) fn of_mut(&mut self, slot: u32) -> &mut RowSlot {
        &mut self.slots[slot as usize]
    }

    /// The slot for a dispatch: the one that it `named`, or the next free one in turn.
    ///
    /// A dispatch that waits for its combine holds its slot, where there are others; with one slot the next dispatch gives it up. One whose rows
    /// are kept holds it in any case, and so does one of which a half is missing.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] where there is no such slot; [`Error::RowSlotBusy`] where it is held, or, where none is named, all are;
    /// [`Error::InFlight`] where that is by halves.
    pub(crate) fn choose(&self, named: Option<u32>) -> Result<u32> {
        let slots = self.len();
        if let Some(slot) = named.filter(|slot| *slot >= slots) {
            let rule = format!("one of the buffer's {slots} row slots, from 0");
            return Err(Error::argument("row_slot", slot, rule));
        }
        let wanted = named.unwrap_or(self.next);
        let others = if named.is_none() { slots } else { 1 };
        let free = |slot: &u32| match self.of(*slot).state {
            State::Idle { .. } => true,
            State::Dispatched { kept, .. } => slots == 1 && !kept,
            State::Kept { .. } | State::Sent { .. } | State::CombineSent { .. } => false,
        };
        if let Some(slot) = (0..others).map(|i| (wanted + i) % slots).find(free) {
            return Ok(slot);
        }
        self.check_received("dispatch", wanted)?;
        let state = self.of(wanted).state;
        let (operation, kept) = (state.operation().unwrap_or_default(), matches!(state, State::Kept { .. }));
        Err(Error::RowSlotBusy { slot: wanted, operation, kept, slots })
    }

    /// Checks that no half of an operation in `slot` is missing.
    ///
    /// # Errors
    ///
    /// [`Error::InFlight`].
    pub(crate) fn check_received(&self, call: &'static str, slot: u32) -> Result<()> {
        let state = self.of(slot).state;
        match (state.in_flight(), state.operation()) {
            (Some(sent), Some(operation)) => Err(Error::InFlight { call, sent, slot, operation, slots: self.len() }),
            _ => Ok(()),
        }
    }

    /// [`Self::check_received`] of all slots.
    ///
    /// # Errors
    ///
    /// [`Error::InFlight`], of the first.
    pub(crate) fn check_all_received(&self, call: &'static str) -> Result<()> {
        (0..self.len()).try_for_each(|slot| self.check_received(call, slot))
    }

    /// The next slot in turn that no dispatch holds.
    pub(crate) fn next_idle(&self) -> Option<u32> {
        self.idle().next()
    }

    /// The next of these whose expert outputs were lent early.
    pub(crate) fn next_lent(&self) -> Option<u32> {
        self.idle().find(|slot| self.of(*slot).lent_early)
    }

    /// The slots that no dispatch holds, in turn.
    fn idle(&self) -> impl Iterator<Item = u32> {
        let slots = self.len();
        let turn = (0..slots).map(move |i| (self.next + i) % slots);
        turn.filter(|slot| matches!(self.of(*slot).state, State::Idle { .. }))
    }

    /// Notes that a dispatch has taken `slot`, which it `named` or not.
    pub(crate) fn take(&mut self, slot: u32, state: State, named: Option<u32>) {
        if named.is_none() {
            self.next = (slot + 1) % self.len();
        }
        let row_slot = self.of_mut(slot);
        row_slot.state = state;
        row_slot.received_rows = None;
    }

    /// The operation that holds the routing in `routing_slot`.
    pub(crate) fn holder(&self, routing_slot: u32) -> Option<u64> {
        let mut states = self.slots.iter().map(|slot| slot.state);
        states.find(|state| state.routing() == Some(routing_slot)).and_then(State::operation)
    }

    /// Checks that `handle` is that of a dispatch of the buffer with this id, which waits for its combine.
    ///
    /// # Errors
    ///
    /// [`Error::WrongOrder`] for one that is combined already, [`Error::StaleHandle`] for any other.
    pub(crate) fn check(&self, buffer: u64, call: &'static str, handle: &Dispatched) -> Result<()> {
        self.look(buffer, call, handle, false)
    }

    /// Checks that the rows of `handle` are there to be read: it waits for its combine, or its rows are kept.
    ///
    /// # Errors
    ///
    /// As [`Self::check`].
    pub(crate) fn check_rows(&self, buffer: u64, call: &'static str, handle: &Dispatched) -> Result<()> {
        self.look(buffer, call, handle, true)
    }

    fn look(&self, buffer: u64, call: &'static str, handle: &Dispatched, to_read: bool) -> Result<()> {
        let own = handle.buffer == buffer;
        let slot = if own { handle.row_slot } else { 0 };
        let state = self.of(slot).state;
        let same = own && state.operation_there() == Some(handle.operation);
        match state {
            State::Dispatched { .. } if same => return Ok(()),
            State::Kept { .. } | State::CombineSent { kept: true, .. } if same && to_read => return Ok(()),
            State::CombineSent { .. } if same => {
                let rule = "the send half of its combine was called: peers read its outputs, and may send the next rows, until combine_receive";
                return Err(Error::WrongOrder { call, state: self.to_string(), rule });
            }
            State::Kept { .. } | State::Idle { .. } if same => {
                let rule = "a dispatch comes before, and its rows are combined once";
                return Err(Error::WrongOrder { call, state: self.to_string(), rule });
            }
            _ => {}
        }
        let current = match state.operation() {
            Some(operation) => format!("operation {operation}"),
            None => "no operation".to_owned(),
        };
        let of_slot = if self.len() > 1 && own { format!(" in row slot {slot}") } else { String::new() };
        Err(stale(handle, handle.operation, buffer, current + &of_slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUFFER: u64 = 0x1_0000_0002;

    fn waits(operation: u64, slot: u32) -> State {
        State::Dispatched { operation, slot, kept: false }
    }

    fn slots(states: &[State]) -> RowSlots {
        let mut slots = RowSlots::new(states.len() as u32);
        states.iter().zip(&mut slots.slots).for_each(|(state, slot)| slot.state = *state);
        slots
    }

    fn handle(buffer: u64, operation: u64, row_slot: u32) -> Dispatched {
        Dispatched { buffer, operation, routing: operation, slot: 0, row_slot, tokens: 1 }
    }

    fn said(state: State, buffer: u64, operation: u64) -> Option<String> {
        let slots = slots(&[state]);
        slots.check(BUFFER, "a call", &handle(buffer, operation, 0)).err().map(|error| error.to_string())
    }

    #[test]
    fn a_handle_is_good_from_its_dispatch_to_its_combine() {
        let (waits, combined) = (waits(4, 0), State::Idle { combined: Some(4) });
        assert_eq!(said(waits, BUFFER, 4), None);
        let twice = said(combined, BUFFER, 4).expect("it is combined");
        assert!(twice.contains("its rows are combined once") && twice.contains("idle"), "{twice}");
    }

    #[test]
    fn kept_rows_are_read_and_not_combined_again() {
        let slots = slots(&[State::Kept { operation: 4, slot: 0 }]);
        let of = handle(BUFFER, 4, 0);
        slots.check_rows(BUFFER, "recv_view", &of).unwrap();
        let twice = slots.check(BUFFER, "combine", &of).unwrap_err().to_string();
        assert!(twice.contains("combined once") && twice.contains("keeping the rows of operation 4"), "{twice}");
    }

    #[test]
    fn a_stale_handle_is_told_apart_from_the_current_operation() {
        let handle = |buffer: u64, operation| format!("buffer {buffer:#x}, operation {operation}");
        for (state, current) in [
            (waits(4, 0), "operation 4"),
            (State::Idle { combined: Some(4) }, "no operation"),
            (State::Idle { combined: None }, "no operation"),
        ] {
            // An earlier one of this buffer, and the same operation of another.
            for (buffer, operation) in [(BUFFER, 3), (BUFFER + 1, 4)] {
                let said = said(state, buffer, operation).expect("it is stale");
                assert!(said.contains(&handle(buffer, operation)), "{said}");
                assert!(said.contains(&format!("buffer {BUFFER:#x}, {current}")), "{said}");
            }
        }
    }

    #[test]
    fn a_stale_handle_is_told_what_is_in_its_own_slot() {
        let slots = slots(&[waits(4, 0), waits(5, 1)]);
        slots.check(BUFFER, "a call", &handle(BUFFER, 5, 1)).unwrap();
        let said = slots.check(BUFFER, "a call", &handle(BUFFER, 3, 1)).unwrap_err().to_string();
        assert!(said.contains("operation 5 in row slot 1 is current"), "{said}");
        // Another buffer may have more slots than this.
        slots.check(BUFFER, "a call", &handle(BUFFER + 1, 4, 7)).unwrap_err();
    }

    #[test]
    fn free_slots_are_taken_in_turn_and_named_ones_do_not_move_it() {
        let mut slots = RowSlots::new(3);
        let mut took = Vec::new();
        for (operation, named) in [None, Some(1), None].into_iter().enumerate() {
            let slot = slots.choose(named).unwrap();
            slots.take(slot, waits(operation as u64, slot), named);
            took.push(slot);
        }
        assert_eq!(took, [0, 1, 2], "the turn passes over a slot that is held");
        assert!(slots.next_idle().is_none());
        let busy = |named| slots.choose(named).unwrap_err();
        assert!(matches!(busy(None), Error::RowSlotBusy { slot: 0, operation: 0, kept: false, slots: 3 }));
        assert!(matches!(busy(Some(2)), Error::RowSlotBusy { slot: 2, operation: 2, .. }));
        assert_eq!(busy(Some(3)).to_string(), "row_slot = 3: one of the buffer's 3 row slots, from 0");
        assert_eq!((slots.holder(1), slots.holder(7)), (Some(1), None));
        slots.of_mut(1).ends(State::Idle { combined: Some(1) });
        assert_eq!((slots.choose(None).unwrap(), slots.next_idle()), (1, Some(1)));
        assert_eq!(slots.holder(1), None);
    }

    #[test]
    fn one_slot_is_given_up_unless_its_rows_are_kept() {
        assert_eq!(slots(&[waits(9, 0)]).choose(None).unwrap(), 0);
        let asked = State::Dispatched { operation: 9, slot: 0, kept: true };
        for (state, kept) in [(asked, false), (State::Kept { operation: 9, slot: 0 }, true)] {
            let busy = slots(&[state]).choose(None).unwrap_err();
            assert!(matches!(busy, Error::RowSlotBusy { slot: 0, operation: 9, slots: 1, kept: k } if k == kept));
        }
    }
}
