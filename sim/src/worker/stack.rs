//! Stacks of simulated threads: cut from slabs, each above a guard page, kept by its worker for reuse.
//!
//! A full simulated node has 65,536 resident threads, and Linux gives a process 65,530 mappings by default, so a mapping
//! a stack (two, with its guard page) does not do. A slab of stacks is one mapping, and its guard pages are
//! `MADV_GUARD_INSTALL` markers (Linux 6.13), which split nothing. Older kernels refuse that call; there the guard pages
//! are protected one by one, and the limit on mappings limits the resident threads.

use std::io::{Error, Result};
use std::num::NonZeroUsize;
use std::rc::Rc;

use corosensei::stack::{Stack, StackPointer};

/// What a kernel's frames may take: far more than any kernel does, far less than a host thread's.
const STACK_BYTES: usize = 64 << 10;
/// A multiple of every page size in use on the machines we run on.
const GUARD_BYTES: usize = 16 << 10;
/// Room in which the stacks of a slab begin at different places. Were they to begin at the same offset in their pages,
/// the busiest lines of a warp's 32 stacks would share few sets of the cache.
const COLOUR_BYTES: usize = 16 << 10;
const CACHE_LINE: usize = 64;
const STACKS_PER_SLAB: usize = 64;
const SLOT_BYTES: usize = GUARD_BYTES + STACK_BYTES + COLOUR_BYTES;
/// `MADV_GUARD_INSTALL` of Linux 6.13; the libc crate has it for some targets only.
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// A worker's idle stacks. The one used last is handed out first: it is still in the cache.
#[derive(Default)]
pub(crate) struct StackPool {
    idle: Vec<FiberStack>,
}

/// One stack of a slab.
pub(crate) struct FiberStack {
    base: NonZeroUsize,
    /// The start of its guard.
    limit: NonZeroUsize,
    /// Keeps the mapping.
    _slab: Rc<Slab>,
}

/// One mapping with room for several stacks.
struct Slab {
    at: *mut libc::c_void,
}

impl StackPool {
    /// Hands out a stack.
    pub(crate) fn take(&mut self) -> Result<FiberStack> {
        if self.idle.is_empty() {
            self.idle = Slab::cut()?;
        }
        self.idle.pop().ok_or_else(|| Error::other("a slab without stacks"))
    }

    /// Takes a stack back.
    pub(crate) fn give(&mut self, stack: FiberStack) {
        self.idle.push(stack);
    }
}

impl Slab {
    /// Maps a slab and cuts it into stacks.
    fn cut() -> Result<Vec<FiberStack>> {
        // MAP_STACK also keeps huge pages away, which would back 30 stacks when one is touched.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
        let (length, access) = (STACKS_PER_SLAB * SLOT_BYTES, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a fresh anonymous mapping at an address of the system's choice touches no memory of ours.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        let slab = Rc::new(Slab { at });
        let mut stacks = Vec::with_capacity(STACKS_PER_SLAB);
        for slot in 0..STACKS_PER_SLAB {
            // SAFETY: the slot lies inside the mapping.
            let guard = unsafe { at.add(slot * SLOT_BYTES) };
            // SAFETY: the range is the slot's guard, whole pages of this fresh private anonymous mapping that nothing
            // uses; both calls only make accesses to it fault.
            let guarded = unsafe {
                libc::madvise(guard, GUARD_BYTES, MADV_GUARD_INSTALL) == 0
                    || libc::mprotect(guard, GUARD_BYTES, libc::PROT_NONE) == 0
            };
            if !guarded {
                return Err(Error::last_os_error());
            }
            // An odd step visits every line of the room; this one also jumps far between neighbours.
            let colour = slot * 37 % (COLOUR_BYTES / CACHE_LINE) * CACHE_LINE;
            let at_zero = || Error::other("a mapping at 0");
            let limit = NonZeroUsize::new(guard.addr()).ok_or_else(at_zero)?;
            let base = NonZeroUsize::new(guard.addr() + SLOT_BYTES - colour).ok_or_else(at_zero)?;
            // corosensei turns the address back into a pointer.
            guard.expose_provenance();
            stacks.push(FiberStack { base, limit, _slab: Rc::clone(&slab) });
        }
        Ok(stacks)
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: this mapping was made in `cut` with this length, and the last stack in it is gone.
        unsafe { libc::munmap(self.at, STACKS_PER_SLAB * SLOT_BYTES) };
    }
}

// SAFETY: `limit` is the start of a slot of this slab, which the stack keeps mapped; the slot's lowest GUARD_BYTES fault,
// and from there to `base`, a cache line boundary, it is writable for STACK_BYTES at least, more than `MIN_STACK_SIZE`.
// No two stacks share a slot.
unsafe impl Stack for FiberStack {
    #[inline]
    fn base(&self) -> StackPointer {
        self.base
    }

    #[inline]
    fn limit(&self) -> StackPointer {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a stack is no simulated memory")]
    fn stacks_are_apart_writable_and_reused() {
        let mut pool = StackPool::default();
        let stacks: Vec<FiberStack> = (0..3 * STACKS_PER_SLAB).map(|_| pool.take().expect("memory")).collect();
        let mut bases: Vec<usize> = stacks.iter().map(|stack| stack.base().get()).collect();
        for base in &bases {
            let lowest = std::ptr::with_exposed_provenance_mut::<u8>(base - STACK_BYTES);
            // SAFETY: the byte is the lowest of a stack that this test owns.
            unsafe { lowest.write(1) };
        }
        let last = stacks[7].base();
        bases.sort_unstable();
        assert!(bases.windows(2).all(|pair| pair[1] - pair[0] >= GUARD_BYTES + STACK_BYTES));
        assert!(bases.iter().all(|base| base % corosensei::stack::STACK_ALIGNMENT == 0));
        let mut stacks = stacks;
        pool.give(stacks.swap_remove(7));
        assert_eq!(pool.take().expect("the one just given").base(), last);
    }
}
