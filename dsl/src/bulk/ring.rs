//! Pieces of shared memory that rows pass through in turn.
use core::marker::PhantomData;

use super::{Loads, NoLoads};
use crate::memory::{Global, Shared, Symmetric};
use crate::wait::BulkAccess;
use crate::{arch, warp};

/// `N` stages of one warp, which take turns: a row goes out of one while the next comes into another. It is the token of its own
/// state, so that nothing is done to a stage that is not this one's turn. Each arrow is a warp collective:
///
/// ```text
///   Ring ──load──▶ Loading ──wait──▶ Source ──(store, by any lane)──▶ send ──▶ Ring
///     │                └─wait_to_edit─┐ ▲
///     └──open───▶ Editable ◀──────────┘ │
///                     └──────seal───────┘
/// ```
#[derive(Debug)]
#[must_use]
pub struct Ring<const N: usize, L = NoLoads> {
    stages: Shared<u8>,
    stage_bytes: u32,
    /// Which stage's turn it is.
    turn: u32,
    loads: L,
}

/// This warp's ordinary accesses may read and write the stage, and nothing else does.
#[derive(Debug)]
#[must_use]
pub struct Editable<const N: usize, L = NoLoads>(Ring<N, L>);

/// A bulk load into the stage is on its way.
#[derive(Debug)]
#[must_use]
pub struct Loading<const N: usize>(Ring<N, Loads>);

/// The stage's bytes are visible to the async proxy: bulk stores may read them.
#[derive(Debug)]
#[must_use]
pub struct Source<const N: usize, L = NoLoads>(Ring<N, L>);

impl<const N: usize> Ring<N> {
    /// Makes this warp's stages of `stage_bytes` bytes each, a multiple of 16, which its ordinary stores fill. Warp-collective, once
    /// per launch; the block meets between earlier uses of the memory and this.
    #[inline(always)]
    #[track_caller]
    pub fn new(stages: Shared<u8>, stage_bytes: u32) -> Self {
        Self { stages, stage_bytes, turn: 0, loads: NoLoads(PhantomData) }
    }
}

impl<const N: usize> Ring<N, Loads> {
    /// Makes this warp's stages, which bulk loads may fill, with `mbarriers`, `[N]`, that say when a load has arrived.
    /// Warp-collective, once per launch.
    #[inline(always)]
    #[track_caller]
    pub fn with_loads(stages: Shared<u8>, stage_bytes: u32, mbarriers: Shared<u64>) -> Self {
        if warp::lane() < N as u32 {
            arch::mbarrier_init(mbarriers.at(warp::lane()).address(), 1);
        }
        // What the memory was used for before must not be overtaken by the first load.
        arch::fence_proxy_async_shared();
        warp::sync(warp::ALL);
        Self { stages, stage_bytes, turn: 0, loads: Loads { mbarriers, parities: 0 } }
    }

    /// Starts loading `bytes` from global memory to the start of the stage whose turn it is, once nothing is copied out of it any
    /// more. Warp-collective.
    #[inline(always)]
    #[track_caller]
    pub fn load(self, from: Global<u8>, bytes: u32) -> Loading<N> {
        self.free();
        let mbarrier = self.mbarrier();
        if warp::lane() == 0 {
            arch::mbarrier_arrive_expect_tx(mbarrier, bytes);
            arch::bulk_load(self.data().address(), from.address(), bytes, mbarrier);
        }
        Loading(self)
    }

    #[inline(always)]
    fn mbarrier(&self) -> u32 {
        self.loads.mbarriers.at(self.turn).address()
    }
}

impl<const N: usize, L> Ring<N, L> {
    /// Gives the stage whose turn it is to this warp's ordinary accesses, once nothing is copied out of it any more. Warp-collective.
    #[inline(always)]
    #[track_caller]
    pub fn open(self) -> Editable<N, L> {
        self.free();
        Editable(self)
    }

    /// Waits until the stores from the stage whose turn it is have read their source.
    #[inline(always)]
    #[track_caller]
    fn free(&self) {
        const { assert!(N == 1 || N == 2, "wait_group takes its number at compile time: add one to `arch`") };
        // Groups are complete in order, and every turn is one group of each lane: all but the last N - 1 is all that this stage had.
        if N == 1 {
            arch::bulk_wait_read();
        } else {
            arch::bulk_wait_read_but_last();
        }
        // Write-after-read across proxies: ordinary accesses to the stage before this point must not be overtaken by the next bulk
        // load, nor ordinary stores after it overtake the copies' reads.
        arch::fence_proxy_async_shared();
        warp::sync(warp::ALL);
    }

    #[inline(always)]
    fn data(&self) -> Shared<u8> {
        if N == 1 { self.stages } else { self.stages.at(self.turn * self.stage_bytes) }
    }
}

impl<const N: usize> Loading<N> {
    /// The stage's bytes; what is being loaded is not there yet.
    #[inline(always)]
    pub fn data(&self) -> Shared<u8> {
        self.0.data()
    }

    /// Waits for the load. The wait is on this GPU's own copy engine, which always finishes, so it has no deadline.
    /// Warp-collective.
    #[inline(always)]
    #[track_caller]
    pub fn wait(self) -> Source<N, Loads> {
        let Self(mut ring) = self;
        let parity = ring.loads.parities >> ring.turn & 1;
        // Every lane polls the mbarrier itself: that is what makes the bytes visible to it.
        while !arch::mbarrier_try_wait(ring.mbarrier(), parity) {}
        ring.loads.parities ^= 1 << ring.turn;
        warp::sync(warp::ALL);
        Source(ring)
    }

    /// [`Self::wait`], for a warp that changes the loaded bytes by ordinary accesses before it copies them on: the bytes are
    /// there, nobody else reads the stage, and [`Editable::seal`] makes it a source again. Warp-collective.
    #[inline(always)]
    #[track_caller]
    pub fn wait_to_edit(self) -> Editable<N, Loads> {
        // No copy from the stage has started: the source was never handed out.
        let Source(ring) = self.wait();
        Editable(ring)
    }
}

impl<const N: usize, L> Editable<N, L> {
    /// The stage's bytes, for ordinary accesses.
    #[inline(always)]
    pub fn data(&self) -> Shared<u8> {
        self.0.data()
    }

    /// Turns bytes that this warp's lanes wrote by ordinary stores into the source of bulk stores: every writer fences its
    /// own stores against the async proxy, and only then do the lanes meet. Warp-collective.
    ///
    /// Without the fence the copy may read what was in the stage before.
    #[inline(always)]
    #[track_caller]
    pub fn seal(self) -> Source<N, L> {
        arch::fence_proxy_async_shared();
        warp::sync(warp::ALL);
        Source(self.0)
    }
}

impl<const N: usize, L> Source<N, L> {
    /// The stage's bytes, which ordinary loads may read until its next turn.
    #[inline(always)]
    pub fn data(&self) -> Shared<u8> {
        self.0.data()
    }

    /// Starts copying `bytes` from `offset` in the stage to a window, of this rank or a peer, whose owner has said that it may be
    /// written. Called by any one lane per copy; lanes may copy to different places at once.
    #[inline(always)]
    #[track_caller]
    pub fn store(&self, _free: &BulkAccess, offset: u32, to: Symmetric<u8>, bytes: u32) {
        arch::bulk_store(to.address(), self.data().address() + offset, bytes);
    }

    /// [`Self::store`] to memory of this rank that no peer touches.
    #[inline(always)]
    #[track_caller]
    pub fn store_here(&self, offset: u32, to: Global<u8>, bytes: u32) {
        arch::bulk_store(to.address(), self.data().address() + offset, bytes);
    }

    /// Ends the turn: what was stored is under way, and the next stage is next. Warp-collective.
    ///
    /// It says nothing of where the bytes went: only [`land`](super::land) does.
    #[inline(always)]
    #[track_caller]
    pub fn send(self) -> Ring<N, L> {
        let Self(mut ring) = self;
        arch::bulk_commit();
        ring.turn = if N == 1 { 0 } else { ring.turn ^ 1 };
        ring
    }
}
