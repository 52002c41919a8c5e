//! Streams and events, as their users name them.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Names a stream of one rank; made by [`Actor::create_stream`](crate::Actor::create_stream).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// The number of its machine.
    pub(crate) machine: u64,
    pub(crate) rank: u32,
    pub(crate) index: u32,
}

/// A point of a stream's order that others can wait for; made by [`Actor::record_event`](crate::Actor::record_event).
#[derive(Clone, Debug)]
pub struct Event {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    /// The number of the machine that it belongs to.
    machine: u64,
    reached: OnceLock<(Instant, u64)>,
}

impl Event {
    pub(crate) fn new(machine: u64) -> Self {
        Self { state: Arc::new(State { machine, reached: OnceLock::new() }) }
    }

    pub(crate) fn machine(&self) -> u64 {
        self.state.machine
    }

    /// Returns whether both are the same point.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// Marks the point as reached. The first time counts.
    pub(crate) fn reach(&self, virtual_ns: u64) {
        let _ = self.state.reached.set((Instant::now(), virtual_ns));
    }

    /// Returns whether all work before the event is done.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.state.reached.get().is_some()
    }

    /// Returns when the event was reached, on the host's clock.
    #[must_use]
    pub fn wall_time(&self) -> Option<Instant> {
        self.state.reached.get().map(|&(wall, _)| wall)
    }

    /// Returns when the event was reached, in virtual ns.
    #[must_use]
    pub fn virtual_ns(&self) -> Option<u64> {
        self.state.reached.get().map(|&(_, virtual_ns)| virtual_ns)
    }
}
