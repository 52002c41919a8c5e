//! A rank that did not come because it is in another row slot.
use epoxide_kernels::words::Stamped;

use super::ElasticBuffer;
use crate::error::{Error, Result};
use crate::tensor::read;

impl ElasticBuffer {
    /// A wait for a peer that was in vain, with the row slot that the peer is in, if it has entered an operation in another one, which this rank has
    /// not. It is looked for only where no work is waited for.
    pub(super) fn seen_elsewhere(&self, mut error: Error) -> Error {
        let inner = self.comm.inner();
        match &mut error {
            Error::PeerTimeout { peer, row_slot: Some(here), peer_row_slot, .. }
            | Error::PeerAborted { origin: peer, row_slot: Some(here), peer_row_slot, .. }
                if inner.runtime.is_idle(inner.stream) =>
            {
                *peer_row_slot = self.slot_entered_by(*peer, *here).ok().flatten();
            }
            _ => {}
        }
        error
    }

    /// The row slot, another than `here`, in which `peer` has entered an operation that this rank has not. The stream is idle.
    fn slot_entered_by(&self, peer: u32, here: u32) -> Result<Option<u32>> {
        let (w, p, ranks) = (&self.layouts.window, &self.layouts.private, u64::from(self.comm.size()));
        for slot in (0..self.rows.len()).filter(|slot| *slot != here) {
            // SAFETY: words of the buffer's own memory, which it has for every slot, parity and rank; kernels write whole words.
            let next = unsafe {
                let epoch: Vec<u64> = read(&self.comm, self.private_row(p.epoch, slot), 1)?;
                epoch.first().copied().unwrap_or_default() + 1
            };
            let word = self.window_row(w.entry, slot) + ((next & 1) * ranks + u64::from(peer)) * 8;
            // SAFETY: as above.
            let entered: Vec<u64> = unsafe { read(&self.comm, word, 1)? };
            if entered.iter().any(|word| Stamped::from_word(*word).is_of(next)) {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }
}
