//! Ranks that a buffer goes on without.
use epoxide_kernels::entries::{stand_in, without_masked};

use crate::comm::OnStream;
use crate::config::{Layouts, masked_bytes};
use crate::error::Result;

/// Ranks that a buffer goes on without.
pub(crate) struct Masked {
    /// A bit for each.
    pub ranks: u64,
    /// Device memory: how many selections were dropped, [who is masked](MASK), and behind [so many bytes](crate::config::BEFORE_SELECTIONS) the selections of a dispatch without those.
    pub memory: u64,
    /// Of how many of those the user was told.
    pub told: u64,
}

/// Where kernels read in that memory who is masked: a bit for each.
pub(crate) const MASK: u64 = 8;

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
        let bytes = masked_bytes(&layouts.shape);
        let memory = inner.memory.allocate("selections without masked ranks", bytes, &[])?;
        Ok(Some(Self { ranks, memory, told: 0 }))
    }
}
