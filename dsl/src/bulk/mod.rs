//! Bulk asynchronous copies between global and shared memory (TMA, one dimension), with their obligations as tokens.
//!
//! A [`Stage`] is a piece of shared memory that one warp owns. Its life is a cycle, and each arrow is a warp collective,
//! because a value of one lane proves nothing about the other 31:
//!
//! ```text
//!   Free ──load──▶ Loading ──wait──▶ Source ──(store, by any lane)──▶ recycle ──▶ Free
//!     │               └─wait_to_edit─┐ ▲
//!     └───edit───▶ Editable ◀────────┘ │
//!                      └─────seal──────┘
//! ```
//!
//! An [`Outbox`] is two pieces that a warp fills in turn, so that it writes one row while another is copied out.
//!
//! Lengths and addresses are multiples of 16 bytes.
mod outbox;
mod stage;

pub use outbox::{Outbox, Turn};
pub use stage::Stage;

use crate::{arch, block};

/// Nobody reads the stage any more: it may be filled.
#[derive(Debug)]
pub struct Free(());
/// This warp's ordinary accesses may read and write the stage, and nothing else does.
#[derive(Debug)]
#[must_use]
pub struct Editable(());
/// A bulk load into the stage is on its way.
#[derive(Debug)]
#[must_use]
pub struct Loading(());
/// The stage's bytes are visible to the async proxy: bulk stores may read them.
#[derive(Debug)]
#[must_use]
pub struct Source(());
/// All bulk stores of a *block* are complete and its ordinary stores ordered: a flag that publishes them may follow.
#[derive(Debug)]
#[must_use]
pub struct Landed(());

impl Free {
    /// Gives the stage to this warp's ordinary accesses.
    #[inline(always)]
    pub fn edit(self) -> Editable {
        Editable(())
    }
}

/// Waits until every bulk store of every thread of the block is complete, orders the ordinary ones, and returns the proof that
/// a flag needs. Block-collective.
#[inline(always)]
#[track_caller]
pub fn land() -> Landed {
    arch::bulk_commit();
    // The complete wait, not `.read`: the flag that follows says that the bytes have arrived.
    arch::bulk_wait_complete();
    // The copies were made by the async proxy; the flag is a generic store.
    arch::fence_proxy_async();
    block::sync();
    Landed(())
}

/// [`land`] for a block that made no bulk copies: orders its ordinary accesses. Block-collective.
#[inline(always)]
#[track_caller]
pub fn land_without_copies() -> Landed {
    block::sync();
    Landed(())
}
