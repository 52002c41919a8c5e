//! The end of a buffer: closed by all ranks together, or dropped, which leaves its memory to the group.
use std::time::{Duration, Instant};

use super::ElasticBuffer;
use crate::error::{Error, Result};
use crate::mirror::Mirror;
use crate::rendezvous::meet;
use crate::runtime::{Heap, Mapped, RawEvent};
use crate::transport::local::{LeftBehind, OfBuffer, number};

/// How often is looked whether a stream is idle.
const LOOK: Duration = Duration::from_millis(1);

impl ElasticBuffer {
    /// Waits for this rank's operations and for all that is on its streams, then for every rank, and frees the memory. Collective; a buffer that is dropped instead
    /// leaves its memory to the group, until all ranks have dropped it and make another one, or the last rank's [`Comm`](crate::Comm) is gone. [`Self::close_within`] does not wait for ever.
    ///
    /// # Errors
    ///
    /// The fault of an operation, or [`Error::Bootstrap`] when another rank is gone; [`Error::InFlight`] when an operation was sent and not received: the buffer
    /// is closed all the same.
    pub fn close(self) -> Result<()> {
        self.close_until(None)
    }

    /// [`Self::close`] that takes no longer than this: the error names the ranks that did not come to close it by then, and the memory is left to the
    /// group. This rank [gives up](crate::Comm::abort) then, since who is late would wait for it in vain. On simulated ranks of one process the machine's
    /// [patience](crate::MachineConfig::patience) counts.
    ///
    /// ```
    /// use std::time::Duration;
    /// use epoxide::{Config, ElasticBuffer, LocalGroup, Mode};
    ///
    /// LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
    ///     let buffer = ElasticBuffer::new(&comm, Config::new(4, 1, 64, 1))?;
    ///     buffer.close_within(Duration::from_secs(20))
    /// })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Self::close`]; [`Error::Bootstrap`] when the time is over, with who did not come, or that this rank's own operations did not end.
    pub fn close_within(self, limit: Duration) -> Result<()> {
        self.close_until(Instant::now().checked_add(limit))
    }

    fn close_until(mut self, until: Option<Instant>) -> Result<()> {
        let begun = Instant::now();
        if let Some(until) = until {
            self.idle_by(until, begun)?;
        }
        // Work of the caller's on other streams may use what was received.
        let all = self.comm.inner().memory.synchronize();
        if let Err(error @ Error::Capturing { .. }) = all {
            // What was not waited for may use all of this: it goes to the group, as that of a dropped buffer does.
            return Err(error);
        }
        // What was sent has come to its peers: they have it or not, and close as well.
        let done = self.synchronize().and(all).and(self.rows.check_all_received("close"));
        let inner = self.comm.inner();
        let turn = inner.rendezvous.turn_until(until);
        // Also after a fault: the other ranks are coming here too.
        // The group's part of the id is each process's own.
        let own = number(self.id).to_le_bytes();
        let met = meet(&turn, "close", &own).map_err(|error| self.late(error, until)).and_then(|all| {
            match all.iter().position(|number| *number != own) {
                None => Ok(()),
                Some(rank) => Err(Error::Bootstrap {
                    message: format!("rank {rank} closes another buffer than rank {}", inner.rank),
                }),
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
                [self.free_windows(&heap), heap.free(self.private), masked, mapped, tensors]
            };
            inner.release_sms(self.blocks);
            self.life.ends();
            self.freed = true;
            // All have come: now the device's time is what it takes.
            let left = meet(&turn.unlimited(), "closed", &[]).map(|_| ());
            return freed.into_iter().fold(done, Result::and).and(left);
        }
        done.and(met)
    }
}

impl ElasticBuffer {
    /// Frees the own window, or leaves it to the group where a masked rank that may live has it mapped.
    ///
    /// # Safety
    ///
    /// No rank that goes on uses it any more, and it is freed once.
    unsafe fn free_windows(&self, heap: &Heap) -> Result<()> {
        let inner = self.comm.inner();
        if inner.has_strangers() && self.moves != inner.moves() {
            inner
                .local
                .take_over(LeftBehind { windows: vec![self.windows.window()], ..LeftBehind::of(&inner.runtime) });
            return Ok(());
        }
        // SAFETY: the caller's promise; nobody else knows of it.
        unsafe { self.windows.free(heap) }
    }

    /// Waits until this rank's streams are idle, on a device whose work may be held up by others; a machine's ends by itself.
    fn idle_by(&self, until: Instant, begun: Instant) -> Result<()> {
        let inner = self.comm.inner();
        if inner.stream.cuda().is_none() {
            return Ok(());
        }
        let marks = inner.marks().into_iter().collect::<Result<Vec<_>>>()?;
        while !marks.iter().all(RawEvent::is_reached) {
            if Instant::now() >= until {
                let waited = begun.elapsed().as_secs_f64();
                let what = format!(
                    "waited {waited:.1} s for its own operations, which have not ended, to close buffer {}",
                    number(self.id)
                );
                // Those that wait for a rank end by this.
                self.comm.abort(&format!("it {what}"));
                return Err(Error::Bootstrap { message: format!("rank {} {what}", inner.rank) });
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Why the ranks did not meet: also what for, if it was in time that they did not.
    fn late(&self, error: Error, until: Option<Instant>) -> Error {
        match error {
            Error::Bootstrap { message } if until.is_some_and(|until| until <= Instant::now()) => {
                let message = format!("{message} to close buffer {}", number(self.id));
                self.comm.abort(&message);
                Error::Bootstrap { message }
            }
            error => error,
        }
    }

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
        let of = OfBuffer { rank: inner.rank, number: number(self.id), blocks: self.blocks };
        let part = LeftBehind {
            of: Some(of),
            after: inner.marks(),
            windows: vec![self.windows.window()],
            memory: [self.private].into_iter().chain(masked).collect(),
            mapped: self.mapped(),
            ..LeftBehind::of(&inner.runtime)
        };
        inner.local.take_over(part);
    }
}
