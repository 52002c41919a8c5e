//! Where a rank was that did not come: which operation it was seen to enter last, and whether it is in another row slot.
use epoxide_kernels::words::{Entry, Stamped};

use super::ElasticBuffer;
use crate::error::{Error, LastSeen, Result};
use crate::fault::kernel_name;
use crate::tensor::read;

impl ElasticBuffer {
    /// A wait for a peer that was in vain, with where that was: the operation that it has entered last, and the row slot, if it has entered an operation in
    /// another one, which this rank has not. It is looked for only where no work is waited for.
    pub(super) fn seen_elsewhere(&self, mut error: Error) -> Error {
        let inner = self.comm.inner();
        if !inner.runtime.is_idle(inner.stream) {
            return error;
        }
        match &mut error {
            Error::PeerTimeout { peer, row_slot, epoch, peer_row_slot, peer_last, .. }
            | Error::PeerAborted { origin: peer, row_slot, epoch, peer_row_slot, peer_last, .. } => {
                *peer_last = self.entered_last(*peer, *row_slot, *epoch).map(Box::new);
                *peer_row_slot = row_slot.and_then(|here| self.slot_entered_by(*peer, here).ok().flatten());
            }
            Error::PeerGone { rank, during: Some(during), .. } => {
                during.peer_last = self.entered_last(*rank, during.row_slot, during.epoch);
            }
            _ => {}
        }
        error
    }

    /// The last operation in this row slot that `peer` was seen to enter, when this rank was in `epoch`. The stream is idle.
    fn entered_last(&self, peer: u32, row_slot: Option<u32>, epoch: u64) -> Option<LastSeen> {
        if peer >= self.comm.size() {
            return None;
        }
        let words = self.window_row(self.layouts.window.entry, row_slot.unwrap_or(0));
        let ranks = u64::from(self.comm.size());
        // One ahead at most, and of before there are the words of two.
        for number in [epoch + 1, epoch, epoch.saturating_sub(1)].into_iter().filter(|number| *number > 0) {
            let word = words + ((number & 1) * ranks + u64::from(peer)) * 8;
            // SAFETY: a word of the buffer's own memory, which it has for every slot, parity and rank; kernels write whole words.
            let entered: Vec<u64> = unsafe { read(&self.comm, word, 1) }.ok()?;
            let entered = Stamped::from_word(*entered.first()?);
            if entered.is_of(number) {
                let kernel = kernel_name(Entry::from_payload(entered.payload).kind);
                return Some(LastSeen::Operation { kernel, epoch: number });
            }
        }
        Some(LastSeen::None)
    }

    /// The row slot, another than `here`, in which `peer` has entered an operation that this rank has not. The stream is idle.
    fn slot_entered_by(&self, peer: u32, here: u32) -> Result<Option<u32>> {
        let (w, p, ranks) = (&self.layouts.window, &self.layouts.private, u64::from(self.comm.size()));
        for slot in (0..self.rows.len()).filter(|slot| *slot != here) {
            // SAFETY: words of the buffer's own memory, which it has for every slot, parity and rank; kernels write whole words.
            let next = unsafe {
                let epoch: Vec<u64> = read(&self.comm, self.private_row(p.epoch, slot), 1)?;
                // Behind that of which this rank has called the send half.
                let in_flight = self.rows.of(slot).state.in_flight().is_some();
                epoch.first().copied().unwrap_or_default() + 1 + u64::from(in_flight)
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
