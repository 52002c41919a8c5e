//! A piece of shared memory through which rows pass one at a time.
use super::{Editable, Free, Loading, Source};
use crate::memory::{Global, Shared, Symmetric};
use crate::{arch, warp};

/// A piece of shared memory that one warp fills and copies out of, with the mbarrier that says when a load has arrived.
#[derive(Debug)]
pub struct Stage {
    data: Shared<u8>,
    mbarrier: Shared<u64>,
    parity: u32,
}

impl Stage {
    /// Makes this warp's stage of `data` and an 8-byte-aligned word for its mbarrier. Warp-collective, once per launch.
    #[inline(always)]
    #[track_caller]
    pub fn new(data: Shared<u8>, mbarrier: Shared<u64>) -> (Self, Free) {
        if warp::lane() == 0 {
            arch::mbarrier_init(mbarrier.address(), 1);
        }
        // What the memory was used for before must not be overtaken by the first load.
        arch::fence_proxy_async_shared();
        warp::sync(warp::ALL);
        (Self { data, mbarrier, parity: 0 }, Free(()))
    }

    /// The stage's bytes, for ordinary accesses.
    #[inline(always)]
    pub fn data(&self) -> Shared<u8> {
        self.data
    }

    /// Starts loading `bytes` from global memory to the start of the stage. Warp-collective.
    #[inline(always)]
    #[track_caller]
    pub fn load(&self, _free: Free, from: Global<u8>, bytes: u32) -> Loading {
        if warp::lane() == 0 {
            arch::mbarrier_arrive_expect_tx(self.mbarrier.address(), bytes);
            arch::bulk_load(self.data.address(), from.address(), bytes, self.mbarrier.address());
        }
        Loading(())
    }

    /// Waits for the load. The wait is on this GPU's own copy engine, which always finishes, so it has no deadline.
    /// Warp-collective.
    #[inline(always)]
    #[track_caller]
    pub fn wait(&mut self, _loading: Loading) -> Source {
        // Every lane polls the mbarrier itself: that is what makes the bytes visible to it.
        while !arch::mbarrier_try_wait(self.mbarrier.address(), self.parity) {}
        self.parity ^= 1;
        warp::sync(warp::ALL);
        Source(())
    }

    /// [`Self::wait`], for a warp that changes the loaded bytes by ordinary accesses before it copies them on: the bytes are
    /// there, nobody else reads the stage, and [`Self::seal`] makes it a source again. Warp-collective.
    #[inline(always)]
    #[track_caller]
    pub fn wait_to_edit(&mut self, loading: Loading) -> Editable {
        // No copy from the stage has started: the source was never handed out.
        let Source(()) = self.wait(loading);
        Editable(())
    }

    /// Turns bytes that this warp's lanes wrote by ordinary stores into the source of bulk stores: every writer fences its
    /// own stores against the async proxy, and only then do the lanes meet. Warp-collective.
    ///
    /// Without the fence the copy may read what was in the stage before.
    #[inline(always)]
    #[track_caller]
    pub fn seal(&self, _edited: Editable) -> Source {
        arch::fence_proxy_async_shared();
        warp::sync(warp::ALL);
        Source(())
    }

    /// Starts copying `bytes` from `offset` in the stage to global memory, of this rank or a peer. Called by any one lane
    /// per copy; lanes may copy to different places at once.
    #[inline(always)]
    #[track_caller]
    pub fn store(&self, _source: &Source, offset: u32, to: Symmetric<u8>, bytes: u32) {
        arch::bulk_store(to.address(), self.data.address() + offset, bytes);
    }

    /// Waits until all stores from the stage have read their source, so that it may be filled again. Warp-collective.
    ///
    /// It says nothing of where the bytes went: only [`land`](super::land) does.
    #[inline(always)]
    #[track_caller]
    pub fn recycle(&self, _source: Source) -> Free {
        arch::bulk_commit();
        arch::bulk_wait_read();
        // Write-after-read across proxies: ordinary accesses to the stage before this point must not be overtaken by the
        // next bulk load, nor ordinary stores after it overtake the copies' reads.
        arch::fence_proxy_async_shared();
        warp::sync(warp::ALL);
        Free(())
    }
}
