//! As new after a fault, in the same memory; and going on without ranks that are gone.
use epoxide_dsl::fault::HOST_ABORT;

use super::open::initialised;
use super::overflows::Overflows;
use super::routings::Routings;
use super::row_slots::RowSlots;
use super::{ElasticBuffer, MASK, Masked};
use crate::comm::OnStream;
use crate::error::{Error, Result};
use crate::life::Ranks;
use crate::rendezvous::{Turn, meet};
use crate::transport::local::{LeftBehind, number};
use crate::transport::windows::{NotShared, Windows};

impl ElasticBuffer {
    /// Makes the buffer as new after a fault, in the memory that it has. Collective: every rank of the group calls it, whether it has seen
    /// the fault or not; ranks that are gone must be [masked](crate::Comm::mask) before, and the buffer goes on without them, or with
    /// those that were [let in again](crate::Comm::unmask). It waits for
    /// this rank's streams, whose operations end at once behind a fault, and for every living rank.
    ///
    /// Handles of before are stale; what was received, and expert outputs, are gone. Statistics go on. [Graphs](crate::Graph) are as good as before; where
    /// ranks were masked, or let in again, meanwhile, those that [are ready for that](crate::Config::with_graphs_across_masks).
    ///
    /// With ranks masked, selections of their experts are dropped, as if they were none, and [counted](Self::masked_selections); nothing comes
    /// from them. Expert numbers stay what they are.
    ///
    /// ```
    /// use epoxide::{CombineInput, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, LocalGroup, Mode, bf16};
    ///
    /// LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
    ///     let mut buffer = ElasticBuffer::new(&comm, Config::new(4, 1, 64, 1))?;
    ///     let (x, weights) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[1.0f32])?);
    ///     for index in [9i64, 3] {
    ///         let idx = comm.tensor(&[index])?;
    ///         buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
    ///         if let Err(fault) = buffer.synchronize() {
    ///             assert!(matches!(fault, Error::IndexOutOfRange { index: 9, .. }));
    ///             buffer.reset()?;
    ///         }
    ///     }
    ///     buffer.close()
    /// })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::PeerGone`] or [`Error::Bootstrap`] when a rank is gone that is not masked, or ranks are in different calls;
    /// [`Error::OutOfMemory`]; [`Error::Capturing`], before any rank is waited for, while a stream of the rank is being captured; [`Error::Cuda`] or [`Error::Simulator`] when the device failed. The buffer is of no use then, until a reset succeeds.
    pub fn reset(&mut self) -> Result<()> {
        let comm = self.comm.clone();
        let inner = comm.inner();
        let drained = inner.memory.synchronize();
        if let Err(error @ Error::Capturing { .. }) = drained {
            return Err(error);
        }
        let turn = inner.rendezvous.turn();
        // Who is here has no kernel that runs, so that nobody writes a word from here on. Also if that failed: the others wait.
        let own = number(self.id()).to_le_bytes();
        let met = meet(&turn, "reset", &own)?;
        if let Some(rank) = met.iter().position(|number| *number != own) {
            let message = format!("rank {rank} resets another buffer than rank {}", inner.rank);
            return Err(Error::Bootstrap { message });
        }
        let moved = if self.moves == inner.moves() { Ok(()) } else { self.move_windows(inner, &turn)? };
        let made = drained.and(moved).and_then(|()| self.renew(inner));
        let all = meet(&turn, "as new", if made.is_ok() { b"ok" } else { b"failed" });
        let all_made = made.and(all).and_then(|all| match all.iter().position(|said| said != b"ok") {
            Some(rank) => Err(Error::Bootstrap { message: format!("rank {rank} could not reset its buffer") }),
            None => Ok(()),
        });
        // Words were filled here, and not everywhere.
        self.fault = all_made.as_ref().err().cloned();
        all_made
    }

    /// Moves to fresh windows, together with all ranks that go on: nobody runs a kernel on the old ones, but maybe a masked rank, which has those. An
    /// error of one rank is one on all, and inside: the ranks have met.
    ///
    /// # Errors
    ///
    /// Those of [`meet`].
    fn move_windows(&mut self, inner: &OnStream, turn: &Turn<'_>) -> Result<Result<()>> {
        let (transport, memory) = (inner.local.transport(), &inner.memory);
        let (regions, bytes) = (self.layouts.regions(), self.layouts.window.bytes);
        let shared: Vec<_> = regions.into_iter().filter(|region| region.symmetric).collect();
        let own = Windows::allocate(transport, memory, "a fresh symmetric window", bytes, &shared);
        let windows = match Windows::share(turn, memory, own.as_ref()) {
            Ok(windows) => windows,
            Err(NotShared::Apart(error)) => {
                // Another rank may have it mapped.
                if let Ok(own) = own {
                    inner.local.take_over(LeftBehind { windows: vec![own], ..LeftBehind::of(&inner.runtime) });
                }
                return Err(error);
            }
            Err(NotShared::Missing(error)) => {
                // SAFETY: just allocated; no rank uses any of those that were shared.
                let freed = own.and_then(|own| unsafe { own.free(&memory.heap()) });
                return Ok(freed.and(Err(error)));
            }
        };
        let old = std::mem::replace(&mut self.windows, windows);
        self.moves = inner.moves();
        // Before anything may fail: the old ones are nobody's from here on.
        self.go_on();
        if inner.has_strangers() {
            // Who is masked and lives may write there: it is nobody's else as long as the group is.
            inner.local.take_over(LeftBehind { windows: vec![old.window()], ..LeftBehind::of(&inner.runtime) });
            return Ok(Ok(()));
        }
        // SAFETY: all ranks that have it mapped have met behind their last work on it.
        Ok(unsafe { old.free(&memory.heap()) })
    }

    /// Tells graphs with whom it goes on, and where.
    pub(super) fn go_on(&self) {
        let masked = self.masked.as_ref().map_or(0, |masked| masked.ranks);
        self.life.goes_on(Ranks { masked, stands_in: self.stands_in().is_some(), moves: self.moves });
    }

    /// Fills all words, and forgets what was.
    fn renew(&mut self, inner: &OnStream) -> Result<()> {
        match &mut self.masked {
            // Its memory stays: graphs have its address.
            Some(masked) => (masked.ranks, masked.told) = (inner.rendezvous.masked(), 0),
            None => self.masked = Masked::of(inner, &self.layouts, false)?,
        }
        self.go_on();
        initialised(self)?;
        // SAFETY: the record of this buffer, whose kernels are over; the host's word behind it is the alarm's.
        unsafe { inner.runtime.clear_mapped(self.record, HOST_ABORT as usize)? };
        inner.alarm.refresh(self.id());
        let slots = self.layouts.shape.routing_slots;
        if let Some(mirror) = &self.mirror {
            // SAFETY: the mirror of this buffer, whose kernels are over.
            unsafe { mirror.clear(&inner.runtime, slots)? };
        }
        self.forget_capture();
        self.rows = RowSlots::new(self.rows.len());
        self.routings = Routings::new(slots, self.rows.len());
        self.overflows = Overflows::new(slots);
        Ok(())
    }

    /// Selections of masked ranks' experts that this rank's dispatches dropped since the last reset. Waits for the stream.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
    pub fn masked_selections(&self) -> Result<u64> {
        let Some(masked) = &self.masked else { return Ok(0) };
        let (inner, mut dropped) = (self.comm.inner(), [0; 8]);
        // SAFETY: the first word of the memory, which the buffer's kernels on its stream alone write.
        unsafe { inner.runtime.copy_to_host(&mut dropped, masked.memory, inner.stream)? };
        Ok(u64::from_ne_bytes(dropped))
    }

    /// Writes for kernels who is masked, and that no selection was dropped.
    pub(super) fn write_masked(&self) -> Result<()> {
        let Some(masked) = &self.masked else { return Ok(()) };
        let (inner, mut words) = (self.comm.inner(), [0; 16]);
        words[MASK as usize..].copy_from_slice(&masked.ranks.to_ne_bytes());
        // SAFETY: the first words of the memory, which the buffer's kernels on its stream alone touch.
        unsafe { inner.runtime.copy_to_device(masked.memory, &words, inner.stream) }
    }
}
