//! Orders: in which order rows lie where they are received.
mod compact;

pub use compact::Compact;

use epoxide_dsl::prelude::*;

use crate::words::CountMatrix;

/// Which row is a copy's, as it is found in three steps: among the rows that a warp counts, that a rank sends, that a rank receives.
///
/// No step depends on timing, and a place costs steps of its token's selections, not of the ranks.
pub trait Order {
    /// Numbers copies among those of this warp for the same peer, in the order of the lanes; `peer` is where this lane's selection sends a
    /// copy. Warp-collective.
    #[track_caller]
    fn place(counted: Shared<u32>, peer: Option<Peer>) -> u32;

    /// The first row of this rank's at `peer`. Per thread.
    #[track_caller]
    fn base(counts: &CountMatrix, window: Window, number: u64, peer: Peer) -> u32;
}
