//! Which operation a buffer is at, and whether a handle is that one's.
use std::fmt;

use crate::error::{Error, Result};

/// The handle of one dispatch: valid on its buffer until its combine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatched {
    pub(crate) buffer: u64,
    pub(crate) operation: u64,
    pub(crate) tokens: u32,
}

impl Dispatched {
    /// Tokens that this rank sent.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }
}

/// What the last operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing is in flight; the last dispatch, if any, is combined.
    Idle { combined: Option<u64> },
    /// A dispatch whose rows were not combined yet.
    Dispatched { operation: u64 },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle { .. } => write!(f, "idle"),
            Self::Dispatched { operation } => write!(f, "between dispatch {operation} and its combine"),
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
            Self::Dispatched { operation } if own && handle.operation == operation => return Ok(()),
            Self::Dispatched { operation } => format!("operation {operation}"),
            Self::Idle { combined: Some(operation) } if own && handle.operation == operation => {
                let rule = "a dispatch comes before, and its rows are combined once";
                return Err(Error::WrongOrder { call, state: self.to_string(), rule });
            }
            Self::Idle { .. } => "no operation".to_owned(),
        };
        Err(Error::StaleHandle {
            handle: format!("buffer {:#x}, operation {}", handle.buffer, handle.operation),
            buffer: format!("buffer {buffer:#x}, {current}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUFFER: u64 = 0x1_0000_0002;

    fn said(state: State, buffer: u64, operation: u64) -> Option<String> {
        let handle = Dispatched { buffer, operation, tokens: 1 };
        state.check(BUFFER, "a call", &handle).err().map(|error| error.to_string())
    }

    #[test]
    fn a_handle_is_good_from_its_dispatch_to_its_combine() {
        let (waits, combined) = (State::Dispatched { operation: 4 }, State::Idle { combined: Some(4) });
        assert_eq!(said(waits, BUFFER, 4), None);
        let twice = said(combined, BUFFER, 4).expect("it is combined");
        assert!(twice.contains("its rows are combined once") && twice.contains("idle"), "{twice}");
    }

    #[test]
    fn a_stale_handle_is_told_apart_from_the_current_operation() {
        let handle = |buffer: u64, operation| format!("buffer {buffer:#x}, operation {operation}");
        for (state, current) in [
            (State::Dispatched { operation: 4 }, "operation 4"),
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
}
