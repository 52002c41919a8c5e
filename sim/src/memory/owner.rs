//! Whose an address is: a table that everyone reads without a lock.
//!
//! Device memory is cut into granules, each of which belongs to one allocation or to none. So one look at the table finds the
//! only allocation that an access may lie in, and one compare tells whether it does.

use std::sync::atomic::{AtomicU64, Ordering};

/// Allocations begin and end in granules of their own. A multiple of the page size, where that is 4 or 16 KiB.
pub(crate) const GRANULE: u64 = 16 << 10;
/// An address where no memory is: not canonical on any machine we run on, and so far from all others that no sum wraps.
const NOWHERE: u64 = 1 << 63;

/// A live allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub address: u64,
    pub bytes: u64,
}

/// An allocation as everyone sees it at once: whose a granule is, or what was touched last. No bytes where it is none.
#[repr(C)]
pub(crate) struct Owner {
    address: AtomicU64,
    bytes: AtomicU64,
}

/// Where everyone finds the owners of granules, and of the parts of other processes.
#[derive(Clone, Copy)]
pub(crate) struct Owners {
    base: u64,
    granules: u64,
    table: *const Owner,
    elsewhere: Elsewhere,
}

/// Memory of other processes: cut into parts, each of which is as one allocation.
#[derive(Clone, Copy)]
struct Elsewhere {
    base: u64,
    stride: u64,
    parts: u64,
    table: *const Owner,
}

impl Extent {
    /// Whether `bytes` bytes from `address` lie inside.
    #[inline]
    pub(crate) fn contains(&self, address: u64, bytes: u64) -> bool {
        let offset = address.wrapping_sub(self.address);
        offset <= self.bytes && bytes <= self.bytes - offset
    }
}

impl Owner {
    pub(crate) fn nobody() -> Self {
        Self { address: AtomicU64::new(NOWHERE), bytes: AtomicU64::new(0) }
    }

    #[cfg(test)]
    pub(crate) fn of(address: u64, bytes: u64) -> Self {
        Self { address: AtomicU64::new(address), bytes: AtomicU64::new(bytes) }
    }

    /// Whether `bytes` bytes at `address`, a multiple of `bytes`, lie inside. An allocation begins at a multiple of any such
    /// access's size, so of what lies below it the sum is larger than any length, and does not wrap.
    #[inline(always)]
    pub(crate) fn holds(&self, address: u64, bytes: u64) -> bool {
        let (start, length) = (self.address.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        address.wrapping_sub(start).wrapping_add(bytes - 1) < length
    }

    /// Makes this the same as `other`.
    #[inline(always)]
    pub(crate) fn become_like(&self, other: &Self) {
        self.address.store(other.address.load(Ordering::Relaxed), Ordering::Relaxed);
        self.bytes.store(other.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Makes this nobody. In whichever order others see the two, with whatever they store, it holds nothing that is not theirs.
    #[inline]
    pub(crate) fn become_nobody(&self) {
        self.address.store(NOWHERE, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }

    pub(crate) fn become_owner(&self, extent: Extent) {
        self.address.store(extent.address, Ordering::Relaxed);
        self.bytes.store(extent.bytes, Ordering::Relaxed);
    }

    /// The allocation, if it is one.
    pub(crate) fn extent(&self) -> Option<Extent> {
        let (address, bytes) = (self.address.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        (bytes != 0).then_some(Extent { address, bytes })
    }
}

impl Owners {
    /// Makes the owners of the `granules` granules from `base` on.
    ///
    /// # Safety
    ///
    /// `table` is of so many owners, all zero or as they were made, on a boundary of theirs, and nothing else has them. It
    /// outlives everyone who is given these.
    pub(crate) unsafe fn new(base: u64, granules: u64, table: *mut Owner) -> Self {
        Self { base, granules, table, elsewhere: Elsewhere::NOWHERE }
    }

    /// These, and behind what they do not know the parts of other processes: of `stride` bytes each, from `base` on.
    ///
    /// # Safety
    ///
    /// `parts` outlives everyone who is given what this returns.
    pub(crate) unsafe fn and_elsewhere(self, base: u64, stride: u64, parts: &[Owner]) -> Self {
        let elsewhere = Elsewhere { base, stride, parts: parts.len() as u64, table: parts.as_ptr() };
        Self { elsewhere, ..self }
    }

    /// Of no memory at all.
    pub(crate) fn none() -> Self {
        Self { base: 0, granules: 0, table: std::ptr::null(), elsewhere: Elsewhere::NOWHERE }
    }

    /// Whose `address` may be, if it is device memory.
    #[inline(always)]
    pub(crate) fn of<'a>(self, address: u64) -> Option<&'a Owner> {
        let granule = address.wrapping_sub(self.base) / GRANULE;
        if granule < self.granules {
            // SAFETY: the promise of `new`; an owner is only ever accessed as atomics.
            return Some(unsafe { &*self.table.add(granule as usize) });
        }
        self.elsewhere.of(address)
    }
}

impl Elsewhere {
    /// There is none.
    const NOWHERE: Self = Self { base: 0, stride: 1, parts: 0, table: std::ptr::null() };

    /// The part that `address` is in.
    #[cold]
    #[inline(never)]
    fn of<'a>(self, address: u64) -> Option<&'a Owner> {
        let part = address.wrapping_sub(self.base) / self.stride;
        // SAFETY: the promise of `Owners::and_elsewhere`; an owner is only ever accessed as atomics.
        (part < self.parts).then(|| unsafe { &*self.table.add(part as usize) })
    }
}

// SAFETY: the pointers are to tables of atomics that outlive this, by the promises of `Owners::new` and `Owners::and_elsewhere`.
unsafe impl Send for Owners {}
// SAFETY: as above.
unsafe impl Sync for Owners {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_holds_what_lies_inside_and_nothing_else() {
        let owner = Owner::nobody();
        let holds = |at: u64, bytes| owner.holds(at, bytes);
        assert!(
            ![0, 0x1000, NOWHERE - 16, NOWHERE, u64::MAX - 15].iter().any(|at| holds(*at, 16)),
            "nobody has nothing"
        );
        for length in [1, 8, 12, 100, 0x1000] {
            owner.become_owner(Extent { address: 0x1000, bytes: length });
            for bytes in [1u64, 2, 4, 8, 16] {
                for at in (0..0x3000).step_by(bytes as usize).chain([0u64.wrapping_sub(bytes), NOWHERE]) {
                    let inside = at >= 0x1000 && at.saturating_add(bytes) <= 0x1000 + length;
                    assert_eq!(holds(at, bytes), inside, "{bytes} bytes at {at:#x} of {length}");
                }
            }
        }
        owner.become_nobody();
        assert!(!holds(0x1000, 1));
    }
}
