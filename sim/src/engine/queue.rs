//! What is queued: on streams, for SMs, and for workers.

use std::collections::VecDeque;
use std::sync::Arc;

use super::launch::Grid;
use super::stream::{Event, Stream};

/// Work of a stream.
pub(crate) enum Op {
    Kernel(Arc<Grid>),
    HostCall(Box<dyn FnOnce() + Send>),
    Record(Event),
    Wait(Event),
    /// The head, while a worker has its host call.
    UnderWay,
}

/// One stream's queue.
#[derive(Default)]
pub(crate) struct Queue {
    pub ops: VecDeque<Op>,
    /// Whether the head has started.
    pub started: bool,
}

/// A kernel some of whose blocks are not resident yet.
pub(crate) struct Placing {
    pub grid: Arc<Grid>,
    pub next: u32,
}

/// Work for a worker.
pub(crate) enum Ticket {
    Block { grid: Arc<Grid>, index: u32 },
    HostCall { stream: Stream, call: Box<dyn FnOnce() + Send> },
}

impl Placing {
    /// Blocks that are not resident yet.
    pub(crate) fn left(&self) -> u32 {
        self.grid.launch.grid - self.next
    }
}
