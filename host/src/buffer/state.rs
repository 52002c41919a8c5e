//! Which operation a buffer is at, whether a handle is that one's, and whose routing lies in which slot.
use std::fmt;

use crate::error::{Error, Result};

/// The handle of one dispatch. What it brought is there until its combine, or until the next dispatch on its buffer; its *routing*, which
/// [`dispatch_again`](crate::ElasticBuffer::dispatch_again) replays, until another dispatch takes its [slot](Self::routing_slot).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatched {
    pub(crate) buffer: u64,
    pub(crate) operation: u64,
    /// The operation that made the routing: this one, or an earlier one that it replays.
    pub(crate) routing: u64,
    pub(crate) slot: u32,
    pub(crate) tokens: u32,
}

impl Dispatched {
    /// Tokens that this rank sent.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// The routing slot in which its routing lies.
    pub fn routing_slot(&self) -> u32 {
        self.slot
    }
}

/// What the last operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing is in flight; the last dispatch, if any, is combined.
    Idle { combined: Option<u64> },
    /// A dispatch whose rows were not combined yet.
    Dispatched { operation: u64, slot: u32 },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle { .. } => write!(f, "idle"),
            Self::Dispatched { operation, .. } => write!(f, "between dispatch {operation} and its combine"),
        }
    }
}

impl State {
    /// Checks that `handle` is that of the dispatch that the buffer with this id waits to combine.
    ///
    /// # Errors
    ///
    /// [`Error::WrongOrder`] for one that is combined already, [`Error::StaleHandle`] for any other.
    pub(crate) fn check(&self, buffer: u64, call: &'static str, handle: &Dispatched) -> Result<()> {
        let own = handle.buffer == buffer;
        let current = match *self {
            Self::Dispatched { operation, .. } if own && handle.operation == operation => return Ok(()),
            Self::Dispatched { operation, .. } => format!("operation {operation}"),
            Self::Idle { combined: Some(operation) } if own && handle.operation == operation => {
                let rule = "a dispatch comes before, and its rows are combined once";
                return Err(Error::WrongOrder { call, state: self.to_string(), rule });
            }
            Self::Idle { .. } => "no operation".to_owned(),
        };
        Err(stale(handle, handle.operation, buffer, current))
    }
}

fn stale(handle: &Dispatched, operation: u64, buffer: u64, current: String) -> Error {
    Error::StaleHandle {
        handle: format!("buffer {:#x}, operation {operation}", handle.buffer),
        buffer: format!("buffer {buffer:#x}, {current}"),
    }
}

/// Whose routing lies in which slot.
#[derive(Debug)]
pub(crate) struct Routings {
    /// `[slots]`: the operation that made it.
    made_by: Vec<Option<u64>>,
    /// The slot of the next dispatch that names none.
    next: u32,
}

impl Routings {
    pub(crate) fn new(slots: u32) -> Self {
        Self { made_by: vec![None; slots as usize], next: 0 }
    }

    /// The slot for a dispatch: the one that it `named`, or the next in turn.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] where there is no such slot; [`Error::SlotBusy`] where it is that of a dispatch which waits for its combine,
    /// if there are others.
    pub(crate) fn slot(&self, named: Option<u32>, state: State) -> Result<u32> {
        let slots = self.made_by.len() as u32;
        let slot = named.unwrap_or(self.next);
        if slot >= slots {
            let rule = format!("one of the buffer's {slots} routing slots, from 0");
            return Err(Error::argument("routing_slot", slot, rule));
        }
        match state {
            State::Dispatched { operation, slot: busy } if busy == slot && slots > 1 => {
                Err(Error::SlotBusy { slot, operation, slots })
            }
            _ => Ok(slot),
        }
    }

    /// Notes that `operation` has taken `slot`, which it `named` or not.
    pub(crate) fn take(&mut self, slot: u32, operation: u64, named: Option<u32>) {
        self.made_by[slot as usize] = Some(operation);
        if named.is_none() {
            self.next = (slot + 1) % self.made_by.len() as u32;
        }
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
    use super::*;

    const BUFFER: u64 = 0x1_0000_0002;

    fn said(state: State, buffer: u64, operation: u64) -> Option<String> {
        let handle = Dispatched { buffer, operation, routing: operation, slot: 0, tokens: 1 };
        state.check(BUFFER, "a call", &handle).err().map(|error| error.to_string())
    }

    #[test]
    fn a_handle_is_good_from_its_dispatch_to_its_combine() {
        let (waits, combined) = (State::Dispatched { operation: 4, slot: 0 }, State::Idle { combined: Some(4) });
        assert_eq!(said(waits, BUFFER, 4), None);
        let twice = said(combined, BUFFER, 4).expect("it is combined");
        assert!(twice.contains("its rows are combined once") && twice.contains("idle"), "{twice}");
    }

    #[test]
    fn a_stale_handle_is_told_apart_from_the_current_operation() {
        let handle = |buffer: u64, operation| format!("buffer {buffer:#x}, operation {operation}");
        for (state, current) in [
            (State::Dispatched { operation: 4, slot: 0 }, "operation 4"),
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
    fn slots_are_taken_in_turn_and_named_ones_do_not_move_it() {
        let idle = State::Idle { combined: None };
        let mut routings = Routings::new(3);
        let mut took = Vec::new();
        for (operation, named) in [None, None, Some(0), None, None, None].into_iter().enumerate() {
            let slot = routings.slot(named, idle).unwrap();
            routings.take(slot, operation as u64, named);
            took.push(slot);
        }
        assert_eq!(took, [0, 1, 0, 2, 0, 1]);
        let said = routings.slot(Some(3), idle).unwrap_err().to_string();
        assert_eq!(said, "routing_slot = 3: one of the buffer's 3 routing slots, from 0");
        let busy = State::Dispatched { operation: 9, slot: 2 };
        assert!(routings.slot(Some(1), busy).is_ok());
        assert!(matches!(routings.slot(None, busy), Err(Error::SlotBusy { slot: 2, operation: 9, slots: 3 })));
        // One slot is all there is, and a dispatch gives up the one before.
        assert_eq!(Routings::new(1).slot(None, State::Dispatched { operation: 9, slot: 0 }).unwrap(), 0);
    }
}
