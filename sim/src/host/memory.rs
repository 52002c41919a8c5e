//! Device memory as the host sees it: allocations, and the host's own reads and writes.
//!
//! Kernels access device memory with host atomics of 1 to 8 bytes, and two atomic accesses of different sizes may not meet
//! unordered. So a safe read is one during which nothing else can touch device memory: it holds the machine's books, which
//! everyone needs who enqueues work, and is refused while there is some. Writes, and reads while kernels run, are unsafe: only
//! their caller knows who touches what meanwhile. All of them go by the [door](crate::memory::door), each as whose it is: of the
//! machine's, nobody's; of an actor's, its host thread's or its stream's.

use std::sync::{MutexGuard, PoisonError};

use super::actor::Actor;
use super::machine::Machine;
use crate::engine::books::{Books, Core};
use crate::engine::stream::Stream;
use crate::error::SimError;
use crate::memory::allocation::Allocation;
use crate::memory::door::By;

impl Machine {
    /// Takes `bytes` bytes of device memory on `rank`, aligned to `align` and to 256 at least. Fresh memory is zero.
    ///
    /// The address is a host address. What the host does there by itself, it does as [`Machine::write`] and [`Machine::peek`]
    /// ask for.
    ///
    /// # Errors
    ///
    /// [`SimError::OutOfMemory`]; [`SimError::InvalidArgument`] for no bytes, an alignment that is no power of two, or a
    /// rank that does not exist.
    pub fn allocate(&self, rank: u32, bytes: u64, align: u64) -> Result<u64, SimError> {
        self.allocate_as(&Allocation::new(rank, bytes).with_align(align))
    }

    /// [`Machine::allocate`] of memory that has a kind, a name or named regions: reports say them.
    ///
    /// # Errors
    ///
    /// As [`Machine::allocate`]; [`SimError::InvalidArgument`] for a region that is not inside, or no whole number of elements.
    pub fn allocate_as(&self, allocation: &Allocation) -> Result<u64, SimError> {
        self.check_here(allocation.rank)?;
        self.core().arena.allocate(allocation)
    }

    /// Gives an allocation back: its pages return to the operating system, and its bytes are zero for the next who has them.
    ///
    /// # Safety
    ///
    /// Nothing uses the allocation from here on: no kernel or host call that is queued or runs, and no pointer or
    /// reference of the host. Its bytes change under whoever does, and the next allocation may have them.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] when `address` is not the start of a live allocation.
    pub unsafe fn free(&self, address: u64) -> Result<(), SimError> {
        let _touching = Touching::begin(self.core());
        self.core().arena.free(address)
    }

    /// Writes words to device memory, each by one atomic store of 8 bytes.
    ///
    /// # Safety
    ///
    /// The host holds no reference to the words; what else accesses them at the same time, a kernel or a host thread, accesses
    /// them as whole words of 8 bytes, atomically; and nothing else relies on what they hold, as the owner of an allocation may.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] when the address is no multiple of 8 or the words are not inside one live allocation.
    pub unsafe fn write(&self, to: u64, words: &[u64]) -> Result<(), SimError> {
        let _touching = Touching::begin(self.core());
        // SAFETY: the caller's promise, and safe reads wait.
        unsafe { self.core().arena.write_words(By::Anyone, to, words) }
    }

    /// Writes bytes to device memory, each by one atomic store: of 8 bytes from multiples of 8 on, of single bytes before and
    /// behind these. No other byte is touched.
    ///
    /// # Safety
    ///
    /// As for [`Machine::write`], but that what else accesses the bytes at the same time does it in these words and bytes.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] when the bytes are not inside one live allocation.
    pub unsafe fn write_bytes(&self, to: u64, bytes: &[u8]) -> Result<(), SimError> {
        let _touching = Touching::begin(self.core());
        // SAFETY: as in `write`.
        unsafe { self.core().arena.write(By::Anyone, to, bytes) }
    }

    /// Sets `bytes` bytes of device memory to `byte`, as [`Machine::write_bytes`] does.
    ///
    /// # Safety
    ///
    /// As for [`Machine::write_bytes`].
    ///
    /// # Errors
    ///
    /// As [`Machine::write_bytes`].
    pub unsafe fn fill_bytes(&self, to: u64, byte: u8, bytes: u64) -> Result<(), SimError> {
        let _touching = Touching::begin(self.core());
        // SAFETY: as in `write`.
        unsafe { self.core().arena.fill(By::Anyone, to, byte, bytes) }
    }

    /// Reads words of device memory, of a machine that has no work.
    ///
    /// # Errors
    ///
    /// [`SimError::Busy`] while a stream of any rank has work, and where ranks are processes; [`SimError::InvalidArgument`] when the address is no multiple of 8
    /// or the words are not inside one live allocation; [`SimError::Host`] when the host has no memory for the answer.
    pub fn read(&self, from: u64, words: usize) -> Result<Vec<u64>, SimError> {
        let mut out = self.room(from, words)?;
        let books = self.core().at_rest()?;
        // SAFETY: no kernel, host call or other write touches device memory before the books are released, and what they did
        // before is ordered by the books' lock.
        let read = unsafe { self.core().arena.read_words(By::Anyone, from, &mut out) };
        drop(books);
        read.map(|()| out)
    }

    /// Reads `out.len()` bytes of device memory, of a machine that has no work.
    ///
    /// # Errors
    ///
    /// [`SimError::Busy`] while a stream of any rank has work, and where ranks are processes; [`SimError::InvalidArgument`] when the bytes are not inside one
    /// live allocation.
    pub fn read_bytes(&self, from: u64, out: &mut [u8]) -> Result<(), SimError> {
        let books = self.core().at_rest()?;
        // SAFETY: as in `read`.
        let read = unsafe { self.core().arena.read(By::Anyone, from, out) };
        drop(books);
        read
    }

    /// Reads words of device memory while kernels may run, each by one atomic load of 8 bytes.
    ///
    /// # Safety
    ///
    /// What writes any of the words at the same time, a kernel or a host thread, writes whole words of 8 bytes, atomically.
    ///
    /// # Errors
    ///
    /// As [`Machine::read`], but for [`SimError::Busy`].
    pub unsafe fn peek(&self, from: u64, words: usize) -> Result<Vec<u64>, SimError> {
        let mut out = self.room(from, words)?;
        // SAFETY: the caller's promise.
        unsafe { self.core().arena.read_words(By::Anyone, from, &mut out)? };
        Ok(out)
    }

    /// Reads `out.len()` bytes of device memory while kernels may run, each by one atomic load: of 8 bytes from multiples of 8
    /// on, of single bytes before and behind these. No other byte is touched.
    ///
    /// # Safety
    ///
    /// What writes any of these bytes at the same time, a kernel or a host thread, writes them in these words and bytes,
    /// atomically.
    ///
    /// # Errors
    ///
    /// As [`Machine::read_bytes`], but for [`SimError::Busy`].
    pub unsafe fn peek_bytes(&self, from: u64, out: &mut [u8]) -> Result<(), SimError> {
        // SAFETY: as in `peek`.
        unsafe { self.core().arena.read(By::Anyone, from, out) }
    }

    /// Room for words that are read from `from`.
    fn room(&self, from: u64, words: usize) -> Result<Vec<u64>, SimError> {
        self.core().arena.check_words(By::Anyone, "from", from, words)?;
        let mut out: Vec<u64> = Vec::new();
        out.try_reserve_exact(words)
            .map_err(|error| SimError::Host { what: "memory for words that are read", message: error.to_string() })?;
        out.resize(words, 0);
        Ok(out)
    }
}

impl Actor {
    /// [`Machine::write_bytes`] by this rank's host thread: after what it has waited for.
    ///
    /// # Safety
    ///
    /// As for [`Machine::write_bytes`].
    ///
    /// # Errors
    ///
    /// As [`Machine::write_bytes`].
    pub unsafe fn write_bytes(&self, to: u64, bytes: &[u8]) -> Result<(), SimError> {
        let core = self.machine().core();
        let _touching = Touching::begin(core);
        // SAFETY: the caller's promise, and safe reads wait.
        unsafe { core.arena.write(By::Actor { rank: self.rank() }, to, bytes) }
    }

    /// Reads words by this rank's host thread, after what it has waited for, each by one atomic load of 8 bytes.
    ///
    /// # Safety
    ///
    /// As for [`Machine::peek`].
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] when the address is no multiple of 8 or the words are not inside one live allocation.
    pub unsafe fn peek(&self, from: u64, out: &mut [u64]) -> Result<(), SimError> {
        // SAFETY: the caller's promise.
        unsafe { self.machine().core().arena.read_words(By::Actor { rank: self.rank() }, from, out) }
    }

    /// [`Machine::peek_bytes`] by this rank's host thread: after what it has waited for.
    ///
    /// # Safety
    ///
    /// As for [`Machine::peek_bytes`].
    ///
    /// # Errors
    ///
    /// As [`Machine::peek_bytes`].
    pub unsafe fn peek_bytes(&self, from: u64, out: &mut [u8]) -> Result<(), SimError> {
        // SAFETY: the caller's promise.
        unsafe { self.machine().core().arena.read(By::Actor { rank: self.rank() }, from, out) }
    }

    /// Enqueues that `bytes` bytes of device memory are set to `byte`, in the accesses of [`Machine::write_bytes`].
    ///
    /// # Safety
    ///
    /// Until the stream has passed it, the bytes stay inside a live allocation, and what [`Machine::write_bytes`] asks for holds
    /// when the stream comes to it.
    ///
    /// # Errors
    ///
    /// [`SimError::InvalidArgument`] when the bytes are not inside one live allocation now, or the stream is another rank's; the
    /// error that halted the machine.
    pub unsafe fn fill_bytes(&self, stream: Stream, to: u64, byte: u8, bytes: u64) -> Result<(), SimError> {
        let by = By::Stream { rank: stream.rank, stream: stream.index };
        let machine = self.machine().clone();
        machine.core().arena.check(by, "to", to, bytes)?;
        let fill = move || {
            let _touching = Touching::begin(machine.core());
            // SAFETY: the caller's promise, and safe reads wait.
            let filled = unsafe { machine.core().arena.fill(by, to, byte, bytes) };
            // What a call on a stream panics with is the machine's report; no hook has to print it.
            filled.unwrap_or_else(|error| std::panic::resume_unwind(Box::new(error.to_string())));
        };
        self.host_call(stream, Box::new(fill))
    }
}

impl Core {
    /// The books of a machine in which nothing touches device memory as long as they are held.
    fn at_rest(&self) -> Result<MutexGuard<'_, Books>, SimError> {
        if self.process.is_some() {
            return Err(SimError::Busy { what: "other processes may be at work".to_string() });
        }
        let mut books = self.lock();
        loop {
            if let Some(what) = books.work() {
                return Err(SimError::Busy { what });
            }
            // Workers of a machine that halted may still be inside a turn, and other host threads inside a write.
            let settled = books.touching == 0 && (books.halt.is_none() || !books.ended.contains(&false));
            if settled {
                return Ok(books);
            }
            books = self.settled.wait_timeout(books, self.tick()).unwrap_or_else(PoisonError::into_inner).0;
            self.watch(&mut books);
        }
    }
}

impl Books {
    /// What may touch device memory without an end that one could wait for here.
    fn work(&self) -> Option<String> {
        if self.host_calls > 0 {
            return Some("a call on a stream runs".to_string());
        }
        if self.halt.is_some() {
            return self.lost.contains(&true).then(|| "something runs that could not be ended".to_string());
        }
        let busy = |(rank, streams): (usize, &Vec<_>)| {
            let index = streams.iter().position(|queue: &crate::engine::queue::Queue| !queue.ops.is_empty())?;
            Some(format!("stream {index} of rank {rank} has work"))
        };
        self.streams.iter().enumerate().find_map(busy)
    }
}

/// A host thread that writes device memory, or gives it back: safe reads wait for it.
struct Touching<'a>(&'a Core);

impl<'a> Touching<'a> {
    fn begin(core: &'a Core) -> Self {
        let mut books = core.lock();
        books.touching += 1;
        books.calls += 1;
        Self(core)
    }
}

impl Drop for Touching<'_> {
    fn drop(&mut self) {
        let mut books = self.0.lock();
        books.touching -= 1;
        if books.touching == 0 {
            self.0.settled.notify_all();
        }
    }
}
