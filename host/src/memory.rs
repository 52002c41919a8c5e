//! A rank's device memory: lent to tensors by a pool, allocated for buffers, and when the one gives way to the other.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use epoxide_plan::RegionBytes;

use crate::error::{Error, Result};
use crate::pool::{Block, Pool};
use crate::runtime::{Heap, RawStream, Runtime, Segments};

/// Where a rank's memory comes from.
pub(crate) struct Memory {
    runtime: Arc<Runtime>,
    /// The rank's own, in whose order tensors' memory is used again.
    stream: RawStream,
    /// Memory of tensors; taken by [`Self::leave`] alone.
    pool: Mutex<Option<Pool<Segments>>>,
}

impl Memory {
    /// The memory of the rank that works on `stream`.
    pub(crate) fn new(runtime: Arc<Runtime>, stream: RawStream) -> Self {
        let pool = Mutex::new(Some(Pool::new(runtime.segments())));
        Self { runtime, stream, pool }
    }

    /// The rank's device.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Memory for a tensor. It may have been a dropped one's, whose last use is on the same stream.
    pub(crate) fn take_block(&self, bytes: u64) -> Result<Block> {
        let mut pool = self.pool();
        let pool = pool.as_mut().expect("`leave` alone takes it");
        if let Some(block) = pool.take(bytes) {
            return Ok(block);
        }
        if self.runtime.gives_back_freely() {
            self.give_back_if_idle(pool)?;
        }
        let mut grown = pool.grow(bytes);
        if matches!(grown, Err(Error::OutOfMemory { .. }))
            && self.runtime.gives_back_alone()
            && self.give_back_if_idle(pool)?
        {
            grown = pool.grow(bytes);
        }
        grown.map_err(|error| match error {
            // The pool asks for no more than it lacks.
            Error::OutOfMemory { rank, free, .. } => Error::OutOfMemory { rank, what: "a tensor", bytes, free },
            other => other,
        })
    }

    /// Takes a dropped tensor's memory: for the next tensor, at once.
    pub(crate) fn put_block(&self, block: Block) {
        if let Some(pool) = self.pool().as_mut() {
            pool.put(block);
        }
    }

    /// Memory for a buffer, within its constructor, in which all ranks are: whatever runs on any of them ends by itself, so
    /// waiting for it is no deadlock. `regions` lie in it. Before there is too little, what dropped tensors left goes back.
    pub(crate) fn allocate(&self, what: &'static str, bytes: u64, regions: &[RegionBytes]) -> Result<u64> {
        match self.runtime.allocate(what, bytes, regions) {
            Err(refused @ Error::OutOfMemory { .. }) => {
                self.runtime.synchronize(self.stream).and_then(|()| self.give_back_unused()).map_err(|_| refused)?;
                self.runtime.allocate(what, bytes, regions)
            }
            allocated => allocated,
        }
    }

    /// Gives the memory that dropped tensors left back to the device, if the rank's stream is still idle. On a GPU only where no
    /// rank can be waiting for this one.
    pub(crate) fn give_back_unused(&self) -> Result<()> {
        self.pool().as_mut().map_or(Ok(()), |pool| self.give_back_if_idle(pool).map(|_| ()))
    }

    /// [`Self::give_back_unused`] of the pool that the caller has locked; whether the stream was idle.
    ///
    /// Under the lock what another thread of the rank has enqueued before it dropped a tensor keeps the stream busy.
    fn give_back_if_idle(&self, pool: &mut Pool<Segments>) -> Result<bool> {
        let idle = self.runtime.is_idle(self.stream);
        if idle {
            // SAFETY: the stream, which alone used what was lent, is idle, and under the lock nobody puts back what is used later.
            unsafe { pool.give_back() }?;
        }
        Ok(idle)
    }

    /// What frees what [`Self::allocate`] made.
    pub(crate) fn heap(&self) -> Heap {
        self.runtime.heap()
    }

    /// Takes the pool of a rank that is gone, for whoever waits for its work.
    pub(crate) fn leave(&mut self) -> Option<Pool<Segments>> {
        self.pool.get_mut().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn pool(&self) -> MutexGuard<'_, Option<Pool<Segments>>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
