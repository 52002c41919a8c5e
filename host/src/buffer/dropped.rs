//! What buffers had that all ranks have dropped goes to the next one.
//!
//! A rank that drops a buffer leaves its part to the group, because a peer may still read it. When ranks meet to make another buffer, each tells
//! which ones it has dropped and has no work left on; of those that all tell, nobody uses anything.
use std::collections::BTreeSet;

use crate::comm::OnStream;
use crate::error::Result;
use crate::rendezvous::{Turn, meet};

/// Frees this rank's parts of the buffers that all have dropped. Within a collective call, in which all ranks are: freeing waits for the device.
///
/// # Errors
///
/// Those of [`meet`].
pub(super) fn take_back(inner: &OnStream, turn: &Turn<'_>) -> Result<()> {
    let own: Vec<u8> = inner.local.dropped(inner.rank).into_iter().flat_map(u64::to_le_bytes).collect();
    // A rank that the group goes on without, and that may live, may write to windows of before.
    let own = if inner.has_strangers() { Vec::new() } else { own };
    let all = meet(turn, "dropped buffers", &own)?;
    let numbers = |told: &Vec<u8>| -> BTreeSet<u64> {
        told.as_chunks::<8>().0.iter().map(|number| u64::from_le_bytes(*number)).collect()
    };
    let of_all = all.iter().map(numbers).reduce(|all, one| &all & &one).unwrap_or_default();
    let of_all: Vec<u64> = of_all.into_iter().collect();
    for part in inner.local.take_back(inner.rank, &of_all) {
        if let Some(of) = part.of {
            inner.release_sms(of.blocks);
        }
        // SAFETY: every rank has dropped the buffer, and its streams are past all work on it, so nobody uses this part; it was just taken out
        // of what the group frees.
        unsafe { part.free() };
    }
    Ok(())
}
