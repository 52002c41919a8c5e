//! How a rank went that is gone.
use std::fmt;

/// How a rank went that is a process of its own: what [`Error::PeerGone`](crate::Error::PeerGone) says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gone {
    /// It left in order, with all that it had of the group dropped.
    Left,
    /// It gave up, and said why.
    #[non_exhaustive]
    Aborted {
        /// What it said.
        reason: String,
    },
    /// Its process ended, and it had not left.
    Ended,
    /// Its connection ended, and it had not left. Its process may be there still: it is on another host, or has closed what it had open.
    Disconnected,
    /// It goes on without this rank, which it has [masked](crate::Comm::mask); [`Comm::unmask`](crate::Comm::unmask) waits to be let in again.
    Masked,
    /// It sent what no rank sends.
    #[non_exhaustive]
    Garbled {
        /// What is wrong with it.
        what: String,
    },
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left => write!(f, "it has left the group"),
            Self::Aborted { reason } => write!(f, "it gave up: {reason}"),
            Self::Ended => write!(f, "its process ended without a word"),
            Self::Disconnected => write!(f, "its connection ended without a word"),
            Self::Masked => write!(f, "it goes on without this rank, which it has masked"),
            Self::Garbled { what } => write!(f, "it sent what no rank sends ({what})"),
        }
    }
}
