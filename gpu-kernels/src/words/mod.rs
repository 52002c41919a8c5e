//! The words that ranks exchange, and the numbers that name kernels, phases and faults in them.
mod bad;
mod block_counts;
mod block_flags;
mod counts;
mod done;
mod entry;
mod flags;
mod known;
mod landings;
mod names;
mod numbers;
mod places;
mod routing;
mod selections;
mod source;
mod stamped;
mod wholes;
mod wide;

pub use bad::BadSelection;
pub use block_counts::BlockCounts;
pub use block_flags::BlockFlags;
pub use counts::CountMatrix;
pub use done::DoneCounters;
pub use entry::{Entry, EntryWords};
pub use flags::Flags;
pub use known::{Known, known_words};
pub use landings::Landings;
pub use names::{Code, Kind, Phase};
pub use numbers::Number;
pub use places::PlaceWords;
pub use routing::{Routing, no_routing};
pub use selections::{Selection, SelectionWords};
pub use source::Source;
pub use stamped::{Stamped, UNUSED_EVEN};
pub use wholes::WHOLE;

use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;

/// What every operation needs: the ranks, their words, the clock and the counters, all of one slot of the buffer.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct Operation {
    /// Where faults go; it holds the window.
    pub fault: fault::FaultChannel,
    /// Who is in which operation.
    pub entry: EntryWords,
    /// Combines whose reads of this rank's expert outputs are over, by peer.
    pub done: DoneCounters,
    /// `[1]`: the last operation's epoch. Advanced when all blocks know it.
    pub epoch: Global<u64>,
    /// `[1]`: how many combines there were.
    pub combines: Global<u64>,
    /// The grid's counters.
    pub grid: grid::GridCounters,
}

impl Operation {
    /// The window of all peers.
    #[inline(always)]
    pub fn window(&self) -> Window {
        self.fault.window
    }

    /// The epoch of the operation that begins.
    #[inline(always)]
    #[track_caller]
    pub fn next_epoch(&self) -> u64 {
        self.epoch.load_weak(0) + 1
    }
}
