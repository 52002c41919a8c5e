//! Two pieces of shared memory that a warp fills in turn, so that it writes a row while another is copied out.
use super::{Editable, Source};
use crate::memory::{Shared, Symmetric};
use crate::{arch, warp};

/// Two stages of one warp, which take turns. A turn is a cycle, and each arrow is a warp collective:
///
/// ```text
///   Turn ──open──▶ Editable ──seal──▶ Source ──(store, by any lane)──▶ send ──▶ Turn
/// ```
#[derive(Debug)]
pub struct Outbox {
    stages: Shared<u8>,
    stage_bytes: u32,
    /// 0 or 1: the stage of this turn.
    turn: u32,
}

/// The stores of the turn before have been sent: the other stage may be opened.
#[derive(Debug)]
pub struct Turn(());

impl Outbox {
    /// Makes this warp's outbox of twice `stage_bytes` bytes, a multiple of 16. Warp-collective, once per launch; the block meets
    /// between earlier uses of the memory and this.
    #[inline(always)]
    #[track_caller]
    pub fn new(stages: Shared<u8>, stage_bytes: u32) -> (Self, Turn) {
        (Self { stages, stage_bytes, turn: 0 }, Turn(()))
    }

    /// The bytes of this turn's stage: ordinary stores write them between [`Self::open`] and [`Self::seal`], and ordinary loads
    /// may read them until the stage is opened again, which is in the turn after the next.
    #[inline(always)]
    pub fn data(&self) -> Shared<u8> {
        self.stages.at(self.turn * self.stage_bytes)
    }

    /// Waits until the stores of the turn before the last, which were from this turn's stage, have read their source.
    /// Warp-collective.
    #[inline(always)]
    #[track_caller]
    pub fn open(&self, _turn: Turn) -> Editable {
        // Groups are complete in order, and every turn is one group of each lane: all but the last is all that this stage had.
        arch::bulk_wait_read_but_last();
        // Write-after-read across proxies: the stores that follow must not overtake the copies' reads.
        arch::fence_proxy_async_shared();
        warp::sync(warp::ALL);
        Editable(())
    }

    /// Turns bytes that this warp's lanes wrote by ordinary stores into the source of bulk stores; see
    /// [`Stage::seal`](super::Stage::seal). Warp-collective.
    #[inline(always)]
    #[track_caller]
    pub fn seal(&self, _edited: Editable) -> Source {
        arch::fence_proxy_async_shared();
        warp::sync(warp::ALL);
        Source(())
    }

    /// Starts copying `bytes` from `offset` in this turn's stage to global memory, of this rank or a peer. Called by any one lane
    /// per copy; lanes may copy to different places at once.
    #[inline(always)]
    #[track_caller]
    pub fn store(&self, _source: &Source, offset: u32, to: Symmetric<u8>, bytes: u32) {
        arch::bulk_store(to.address(), self.data().address() + offset, bytes);
    }

    /// Ends the turn: what was stored is under way, and the other stage is next. Warp-collective.
    ///
    /// It says nothing of where the bytes went: only [`land`](super::land) does.
    #[inline(always)]
    #[track_caller]
    pub fn send(&mut self, _source: Source) -> Turn {
        arch::bulk_commit();
        self.turn ^= 1;
        Turn(())
    }
}
