//! The end of a buffer: closed by all ranks together, or dropped, which leaves its memory to the group.
use super::ElasticBuffer;
use crate::error::{Error, Result};
use crate::mirror::Mirror;
use crate::rendezvous::meet;
use crate::runtime::Mapped;
use crate::transport::local::{LeftBehind, number};

impl ElasticBuffer {
    /// Waits for this rank's operations and for all that is on its streams, then for every rank, and frees the memory. Collective; a buffer that is dropped instead
    /// leaves its memory to the group, until the last rank's [`Comm`](crate::Comm) is gone.
    ///
    /// # Errors
    ///
    /// The fault of an operation, or [`Error::Bootstrap`] when another rank is gone.
    pub fn close(mut self) -> Result<()> {
        // Work of the caller's on other streams may use what was received.
        let all = self.comm.inner().memory.synchronize();
        let done = self.synchronize().and(all);
        let inner = self.comm.inner();
        let turn = inner.rendezvous.turn();
        // Also after a fault: the other ranks are coming here too.
        // The group's part of the id is each process's own.
        let own = number(self.id).to_le_bytes();
        let met = meet(&turn, "close", &own).and_then(|all| match all.iter().position(|number| *number != own) {
            None => Ok(()),
            Some(rank) => {
                Err(Error::Bootstrap { message: format!("rank {rank} closes another buffer than rank {}", inner.rank) })
            }
        });
        inner.alarm.dismiss(self.id);
        if met.is_ok() {
            // Every rank's stream was idle when it came: nobody uses this window, and no peer can be waiting for this rank
            // while the driver frees.
            let heap = inner.memory.heap();
            let tensors = inner.memory.give_back_unused();
            let mapped = self.mapped();
            // SAFETY: all ranks have met after their streams were idle, so no operation touches any of it; `self` is consumed, and
            // with `freed` set its `Drop` leaves nothing to the group that would free it again.
            let freed = unsafe {
                let mapped = mapped.into_iter().map(|mapped| heap.free_mapped(mapped)).fold(Ok(()), Result::and);
                let masked = self.masked.take().map_or(Ok(()), |masked| heap.free(masked.memory));
                [self.windows.free(&heap), heap.free(self.private), masked, mapped, tensors]
            };
            inner.release_sms(self.blocks);
            self.life.ends();
            self.freed = true;
            let left = meet(&turn, "closed", &[]).map(|_| ());
            return freed.into_iter().fold(done, Result::and).and(left);
        }
        done.and(met)
    }
}

impl ElasticBuffer {
    /// What it shares with the host.
    fn mapped(&self) -> Vec<Mapped> {
        [self.record].into_iter().chain(self.mirror.as_ref().map(Mirror::memory)).collect()
    }
}

impl Drop for ElasticBuffer {
    /// Leaves the memory to the group: a peer may still read it. Never waits for a peer.
    fn drop(&mut self) {
        if self.freed {
            return;
        }
        self.life.ends();
        let inner = self.comm.inner();
        inner.alarm.dismiss(self.id);
        let masked = self.masked.as_ref().map(|masked| masked.memory);
        let part = LeftBehind {
            after: inner.marks(),
            windows: vec![self.windows.window()],
            memory: [self.private].into_iter().chain(masked).collect(),
            mapped: self.mapped(),
            ..LeftBehind::of(&inner.runtime)
        };
        inner.local.take_over(part);
    }
}
