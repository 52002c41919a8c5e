//! A rank's device memory: lent to tensors by a pool, allocated for buffers, and when the one gives way to the other.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use epoxide_plan::RegionBytes;

use crate::error::{Error, Result};
use crate::pool::{Block, Pool};
use crate::runtime::{Heap, RawEvent, Runtime, Segments};
use crate::streams::Streams;

/// Where a rank's memory comes from.
pub(crate) struct Memory {
    runtime: Arc<Runtime>,
    /// The rank's; each has a pool, in whose order tensors' memory is used again.
    streams: Arc<Streams>,
    /// Memory of tensors; taken by [`Self::leave`] alone.
    pools: Mutex<Option<Pools>>,
}

/// Memory of tensors: a pool for each stream that has made some.
#[derive(Default)]
struct Pools {
    of_streams: Vec<Pool<Segments>>,
    /// What dropped tensors left that other streams still use.
    held: Vec<Held>,
}

/// A dropped tensor's memory, and what it waits for before it is lent again.
struct Held {
    block: Block,
    /// The stream whose pool it is of.
    stream: u32,
    after: Vec<RawEvent>,
}

impl Pools {
    fn of(&mut self, runtime: &Runtime, stream: u32) -> &mut Pool<Segments> {
        while self.of_streams.len() <= stream as usize {
            self.of_streams.push(Pool::new(runtime.segments()));
        }
        &mut self.of_streams[stream as usize]
    }

    /// Puts what nobody uses any more into its pool.
    fn collect(&mut self, is_over: impl Fn(&Held) -> bool) {
        for held in self.held.extract_if(.., |held| is_over(held)) {
            self.of_streams[held.stream as usize].put(held.block);
        }
    }
}

/// Whether every stream that used it has come by.
fn is_over(held: &Held) -> bool {
    held.after.iter().all(RawEvent::is_reached)
}

impl Memory {
    /// The memory of the rank that works on these streams.
    pub(crate) fn new(runtime: Arc<Runtime>, streams: Arc<Streams>) -> Self {
        Self { runtime, streams, pools: Mutex::new(Some(Pools::default())) }
    }

    /// The rank's device.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Memory for a tensor of the stream with this number. It may have been a dropped one's, whose last use is on the same stream, or over.
    pub(crate) fn take_block(&self, bytes: u64, stream: u32) -> Result<Block> {
        let mut pools = self.pools();
        let pools = pools.as_mut().expect("`leave` alone takes it");
        pools.collect(is_over);
        if let Some(block) = pools.of(&self.runtime, stream).take(bytes) {
            return Ok(block);
        }
        if self.runtime.gives_back_freely() {
            self.give_back_if_idle(pools)?;
        }
        let mut grown = pools.of(&self.runtime, stream).grow(bytes);
        if matches!(grown, Err(Error::OutOfMemory { .. }))
            && self.runtime.gives_back_alone()
            && self.give_back_if_idle(pools)?
        {
            grown = pools.of(&self.runtime, stream).grow(bytes);
        }
        grown.map_err(|error| match error {
            // The pool asks for no more than it lacks.
            Error::OutOfMemory { rank, free, .. } => Error::OutOfMemory { rank, what: "a tensor", bytes, free },
            other => other,
        })
    }

    /// Takes a dropped tensor's memory, of the stream with this number: for the next tensor there, at once, or when the other streams have
    /// come by that used it, a bit for each. Never waits.
    pub(crate) fn put_block(&self, block: Block, stream: u32, others: u64) {
        let mut pools = self.pools();
        let Some(pools) = pools.as_mut() else { return };
        if others == 0 {
            return pools.of(&self.runtime, stream).put(block);
        }
        let streams = self.streams.all();
        let used = (0..).zip(&streams).filter(|(number, _)| others >> number & 1 == 1);
        let after: Result<Vec<RawEvent>> = used.map(|(_, stream)| self.runtime.mark(*stream)).collect();
        // Where a mark fails the device has, and nobody may have the block again.
        if let Ok(after) = after {
            pools.held.push(Held { block, stream, after });
        }
    }

    /// Memory for a buffer, within its constructor, in which all ranks are: whatever runs on any of them ends by itself, so
    /// waiting for it is no deadlock. `regions` lie in it. Before there is too little, what dropped tensors left goes back.
    pub(crate) fn allocate(&self, what: &'static str, bytes: u64, regions: &[RegionBytes]) -> Result<u64> {
        self.allocate_by(|| self.runtime.allocate(what, bytes, regions))
    }

    /// [`Self::allocate`] by whatever allocates on the rank's device.
    pub(crate) fn allocate_by<T>(&self, allocate: impl Fn() -> Result<T>) -> Result<T> {
        match allocate() {
            Err(refused @ Error::OutOfMemory { .. }) => {
                self.synchronize().and_then(|()| self.give_back_unused()).map_err(|_| refused)?;
                allocate()
            }
            allocated => allocated,
        }
    }

    /// Waits until everything on the rank's streams is done.
    pub(crate) fn synchronize(&self) -> Result<()> {
        // All of them, whatever becomes of one.
        self.streams.all().into_iter().map(|stream| self.runtime.synchronize(stream)).fold(Ok(()), Result::and)
    }

    /// Gives the memory that dropped tensors left back to the device, if the rank's streams are still idle. On a GPU only where no
    /// rank can be waiting for this one.
    pub(crate) fn give_back_unused(&self) -> Result<()> {
        self.pools().as_mut().map_or(Ok(()), |pools| self.give_back_if_idle(pools).map(|_| ()))
    }

    /// [`Self::give_back_unused`] of the pools that the caller has locked; whether the streams were idle.
    ///
    /// Under the lock what another thread of the rank has enqueued before it dropped a tensor keeps its stream busy.
    fn give_back_if_idle(&self, pools: &mut Pools) -> Result<bool> {
        let idle = self.streams.all().into_iter().all(|stream| self.runtime.is_idle(stream));
        if idle {
            pools.collect(is_over);
            for pool in &mut pools.of_streams {
                // SAFETY: the streams, which alone used what was lent, are idle, and under the lock nobody puts back what is used later.
                unsafe { pool.give_back() }?;
            }
        }
        Ok(idle)
    }

    /// What frees what [`Self::allocate`] made.
    pub(crate) fn heap(&self) -> Heap {
        self.runtime.heap()
    }

    /// Takes the pools of a rank that is gone, for whoever waits for its work.
    pub(crate) fn leave(&mut self) -> Vec<Pool<Segments>> {
        let mut pools = self.pools.get_mut().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        pools.collect(|_| true);
        pools.of_streams
    }

    fn pools(&self) -> MutexGuard<'_, Option<Pools>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
