//! Ranks that a buffer goes on without.
use epoxide_kernels::entries::{stand_in, without_masked};

use crate::comm::OnStream;
use crate::config::Layouts;
use crate::error::Result;

/// Ranks that a buffer goes on without.
pub(crate) struct Masked {
    /// A bit for each.
    pub ranks: u64,
    /// Device memory: how many selections were dropped, [who is masked](MASK), and the [selections](SELECTIONS) of a dispatch without those.
    pub memory: u64,
    /// Of how many of those the user was told.
    pub told: u64,
}

/// Where kernels read in that memory who is masked: a bit for each.
pub(crate) const MASK: u64 = 8;

/// Where the selections lie in that memory.
pub(crate) const SELECTIONS: u64 = 256;

impl Masked {
    /// What a buffer needs whose group has masked ranks, or which is `ready` for them; else nothing. Within a collective call.
    ///
    /// # Errors
    ///
    /// [`crate::Error::OutOfMemory`]; [`crate::Error::Cuda`].
    pub(crate) fn of(inner: &OnStream, layouts: &Layouts, ready: bool) -> Result<Option<Self>> {
        let ranks = inner.rendezvous.masked();
        if ranks == 0 && !ready {
            return Ok(None);
        }
        inner.runtime.prepare(&stand_in, 0)?;
        inner.runtime.prepare(&without_masked, 0)?;
        let selections = u64::from(layouts.shape.max_tokens) * u64::from(layouts.shape.top_k);
        let memory = inner.memory.allocate("selections without masked ranks", SELECTIONS + 4 * selections, &[])?;
        Ok(Some(Self { ranks, memory, told: 0 }))
    }
}
