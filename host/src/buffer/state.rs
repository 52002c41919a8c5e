//! Which dispatch a handle is of, and which operation a row slot is at.
use std::fmt;

use crate::error::Error;

/// The handle of one dispatch. What it brought lies in its [row slot](Self::row_slot), until its combine or until it is
/// [released](crate::ElasticBuffer::release) ([`Config::with_row_slots`](crate::Config::with_row_slots) has the rules); its *routing*, which
/// [`dispatch_again`](crate::ElasticBuffer::dispatch_again) replays, until another dispatch takes its [slot](Self::routing_slot).
///
/// It holds nothing: dropping it frees no slot, and a call that takes one whose rows or routing are gone says so.
///
/// ```
/// use epoxide::{CombineInput, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, LocalGroup, Mode, bf16};
///
/// LocalGroup::simulated(1, Mode::Fast { workers: 0 })?.run(|comm| {
///     let mut buffer = ElasticBuffer::new(&comm, Config::new(2, 1, 8, 1).with_routing_slots(2))?;
///     let (x, weights) = (comm.tensor(&[bf16::ONE; 8])?, comm.tensor(&[1.0f32])?);
///     let mut dispatch = |expert: i64| {
///         let handle = buffer.dispatch(&DispatchInput::new(1, &x, &comm.tensor(&[expert])?, &weights))?;
///         let mut y = comm.empty::<bf16>(8)?;
///         buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
///         Ok::<_, Error>(handle)
///     };
///     let [first, second, third] = [dispatch(0)?, dispatch(1)?, dispatch(0)?];
///     assert_eq!([&first, &second, &third].map(|handle| handle.routing_slot()), [0, 1, 0]);
///     // The third has the first's routing slot.
///     assert!(matches!(buffer.dispatch_again(&first, &x), Err(Error::StaleHandle { .. })));
///     let again = buffer.dispatch_again(&second, &x)?;
///     assert_eq!((again.routing_slot(), again.tokens()), (1, 1));
///     buffer.close()
/// })?;
/// # Ok::<(), epoxide::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatched {
    pub(crate) buffer: u64,
    pub(crate) operation: u64,
    /// The operation that made the routing: this one, or an earlier one that it replays.
    pub(crate) routing: u64,
    pub(crate) slot: u32,
    pub(crate) row_slot: u32,
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

    /// The row slot in which its rows lie.
    pub fn row_slot(&self) -> u32 {
        self.row_slot
    }

    pub(crate) fn slots(&self) -> Slots {
        Slots { row: self.row_slot, routing: self.slot, keeps: false }
    }
}

/// Where an operation is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slots {
    /// Rows, words and counters.
    pub(crate) row: u32,
    /// What was sent where.
    pub(crate) routing: u32,
    /// Whether it is a combine behind which rows stay.
    pub(crate) keeps: bool,
}

/// What stands with the slot in the entry words of a combine behind which rows stay, where they have fixed places: so that ranks that do not agree on
/// it find that. There are fewer routing slots there.
pub(crate) const KEEPS: u32 = 0x80;

/// What the last operation in a row slot was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing is in flight; the last dispatch, if any, is combined or given up.
    Idle { combined: Option<u64> },
    /// A dispatch whose rows were not combined yet; `kept` if they are to stay there after it.
    Dispatched { operation: u64, slot: u32, kept: bool },
    /// A dispatch that was sent, and not received yet.
    Sent { operation: u64, slot: u32, kept: bool },
    /// A dispatch whose combine was sent, and not received yet.
    CombineSent { operation: u64, slot: u32, kept: bool },
    /// A dispatch whose rows were combined, and stay until they are released.
    Kept { operation: u64, slot: u32 },
}

impl State {
    /// The dispatch that holds the slot.
    pub(crate) fn operation(self) -> Option<u64> {
        match self {
            Self::Idle { .. } => None,
            Self::Dispatched { operation, .. }
            | Self::Sent { operation, .. }
            | Self::CombineSent { operation, .. }
            | Self::Kept { operation, .. } => Some(operation),
        }
    }

    /// The last dispatch there, which may be combined.
    pub(crate) fn operation_there(self) -> Option<u64> {
        match self {
            Self::Idle { combined } => combined,
            held => held.operation(),
        }
    }

    /// The routing slot of the dispatch that holds it.
    pub(crate) fn routing(self) -> Option<u32> {
        match self {
            Self::Idle { .. } => None,
            Self::Dispatched { slot, .. }
            | Self::Sent { slot, .. }
            | Self::CombineSent { slot, .. }
            | Self::Kept { slot, .. } => Some(slot),
        }
    }

    /// The operation of which the send half was called, and the receive half not.
    pub(crate) fn in_flight(self) -> Option<&'static str> {
        match self {
            Self::Sent { .. } => Some("dispatch"),
            Self::CombineSent { .. } => Some("combine"),
            _ => None,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle { .. } => write!(f, "idle"),
            Self::Dispatched { operation, .. } => write!(f, "between dispatch {operation} and its combine"),
            Self::Sent { operation, .. } => write!(f, "between the halves of dispatch {operation}"),
            Self::CombineSent { operation, .. } => {
                write!(f, "between the halves of the combine of dispatch {operation}")
            }
            Self::Kept { operation, .. } => write!(f, "keeping the rows of operation {operation}"),
        }
    }
}

pub(super) fn stale(handle: &Dispatched, operation: u64, buffer: u64, current: String) -> Error {
    Error::StaleHandle {
        handle: format!("buffer {:#x}, operation {operation}", handle.buffer),
        buffer: format!("buffer {buffer:#x}, {current}"),
    }
}
