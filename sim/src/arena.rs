//! Device memory: one anonymous mapping for all ranks, backed page by page as it is touched.
//!
//! A device address is a host address, so a simulated load is a host load and "inside device memory" is one compare.
//! Each rank owns an equal part of the mapping and allocates from it first-fit; parts are apart so that one rank's
//! addresses do not depend on what the other ranks' host threads do at the same time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::{MmapMut, MmapOptions, UncheckedAdvice};

use crate::config::MachineConfig;
use crate::copies::fill_bytes;
use crate::error::SimError;

/// Every allocation begins on such a boundary, as the CUDA allocator's do.
const MINIMUM_ALIGNMENT: u64 = 256;
/// Freed blocks give the pages of this size that lie wholly inside them back to the operating system; the rest is zeroed.
const PAGE: u64 = 4096;

/// The memory of all ranks.
pub(crate) struct Arena {
    /// Owns the mapping. It is only ever reached through raw pointers.
    mapping: MmapMut,
    base: u64,
    part_bytes: u64,
    parts: Vec<Mutex<Part>>,
}

/// One rank's books: free and used pieces, by offset from the arena's base.
struct Part {
    free: BTreeMap<u64, u64>,
    used: BTreeMap<u64, u64>,
}

impl Arena {
    /// Reserves the address space.
    pub(crate) fn new(config: &MachineConfig) -> Result<Self, SimError> {
        let part_bytes = config.part_bytes();
        let bytes = usize::try_from(part_bytes * u64::from(config.ranks)).map_err(|_| {
            SimError::invalid("arena_bytes", config.arena_bytes, "it must fit the host's address space")
        })?;
        let mut mapping = MmapOptions::new()
            .len(bytes)
            .no_reserve_swap()
            .map_anon()
            .map_err(|error| SimError::Host { what: "address space for the arena", message: error.to_string() })?;
        let base = mapping.as_mut_ptr().expose_provenance() as u64;
        let parts = (0..u64::from(config.ranks))
            .map(|rank| {
                Mutex::new(Part { free: BTreeMap::from([(rank * part_bytes, part_bytes)]), used: BTreeMap::new() })
            })
            .collect();
        Ok(Self { mapping, base, part_bytes, parts })
    }

    /// The first address.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// The bytes of address space.
    pub(crate) fn bytes(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Whether `bytes` bytes from `address` lie inside.
    pub(crate) fn contains(&self, address: u64, bytes: u64) -> bool {
        let offset = address.wrapping_sub(self.base);
        bytes <= self.bytes() && offset <= self.bytes() - bytes
    }

    /// Takes `bytes` bytes on `rank`.
    pub(crate) fn allocate(&self, rank: u32, bytes: u64, align: u64) -> Result<u64, SimError> {
        if bytes == 0 {
            return Err(SimError::invalid("bytes", bytes, "at least 1"));
        }
        if !align.is_power_of_two() || align > 1 << 30 {
            return Err(SimError::invalid("align", align, "a power of two, at most 1 GiB"));
        }
        let align = align.max(MINIMUM_ALIGNMENT);
        let mut part = self.part(rank);
        let free_in_all = part.free.values().sum();
        let out_of_memory = SimError::OutOfMemory { rank, asked: bytes, free: free_in_all };
        let Some(rounded) = bytes.checked_next_multiple_of(MINIMUM_ALIGNMENT) else { return Err(out_of_memory) };
        let found = part.free.iter().find_map(|(&start, &length)| {
            // The address is what must be aligned, and the mapping itself is only page-aligned.
            let at = (self.base + start).next_multiple_of(align) - self.base;
            let skipped = at - start;
            (skipped <= length && rounded <= length - skipped).then_some((start, length, at))
        });
        let Some((start, length, at)) = found else { return Err(out_of_memory) };
        part.free.remove(&start);
        if at > start {
            part.free.insert(start, at - start);
        }
        let end = start + length;
        if at + rounded < end {
            part.free.insert(at + rounded, end - at - rounded);
        }
        part.used.insert(at, rounded);
        Ok(self.base + at)
    }

    /// Gives an allocation back.
    pub(crate) fn free(&self, address: u64) -> Result<(), SimError> {
        let refused = || SimError::invalid("address", format_args!("{address:#x}"), "the start of a live allocation");
        let offset = address.wrapping_sub(self.base);
        if offset >= self.bytes() {
            return Err(refused());
        }
        let mut part = self.part((offset / self.part_bytes) as u32);
        let Some(length) = part.used.remove(&offset) else { return Err(refused()) };
        let (first, last) = (offset.next_multiple_of(PAGE), (offset + length) / PAGE * PAGE);
        let mut whole = offset..offset;
        if last > first {
            // SAFETY: the range lies inside the mapping, on page boundaries, and inside an allocation that nobody owns
            // any more. DONTNEED on private anonymous memory makes its bytes zero; no reference into the mapping exists
            // (it is reached through raw pointers only), so no reference sees its referent change.
            let advised = unsafe {
                self.mapping.unchecked_advise_range(UncheckedAdvice::DontNeed, first as usize, (last - first) as usize)
            };
            whole = if advised.is_ok() { first..last } else { offset..offset };
        }
        // What the advice left: the edges, or all of it where the host refuses (locked pages, larger pages).
        for edge in [offset..whole.start, whole.end..offset + length] {
            let at = (self.base + edge.start) as usize;
            // SAFETY: inside the mapping and an allocation that nobody owns any more.
            unsafe { fill_bytes(at, 0, (edge.end - edge.start) as usize) };
        }
        let (mut start, mut end) = (offset, offset + length);
        if let Some((&before, &bytes)) = part.free.range(..offset).next_back()
            && before + bytes == start
        {
            part.free.remove(&before);
            start = before;
        }
        if let Some(bytes) = part.free.remove(&end) {
            end += bytes;
        }
        part.free.insert(start, end - start);
        Ok(())
    }

    /// A rank's books. Their invariants hold between statements that cannot panic, so a poisoned lock is still good.
    fn part(&self, rank: u32) -> MutexGuard<'_, Part> {
        self.parts[rank as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;

    fn arena() -> Arena {
        let mut config = MachineConfig::new(2, Mode::Seeded { seed: 0 });
        config.arena_bytes = 8 << 20;
        Arena::new(&config).expect("8 MiB of address space")
    }

    #[test]
    fn allocations_are_aligned_disjoint_and_coalesce_when_freed() {
        let arena = arena();
        let a = arena.allocate(1, 1000, 16).expect("fits");
        let b = arena.allocate(1, 5000, 65536).expect("fits");
        let c = arena.allocate(1, 1, 1).expect("fits");
        assert_eq!((a % 256, b % 65536, c % 256), (0, 0, 0));
        assert!(a + 1000 <= b && (c < b || c >= b + 5000) && a + 1000 <= c);
        for address in [b, a, c] {
            arena.free(address).expect("live");
        }
        let whole = arena.allocate(1, 4 << 20, 256).expect("the pieces became one again");
        assert_eq!(whole, arena.base() + (4 << 20), "rank 1 owns the second half");
    }

    #[test]
    fn exhaustion_names_rank_asked_and_free() {
        let arena = arena();
        arena.allocate(0, 1 << 20, 256).expect("fits");
        let error = arena.allocate(0, 4 << 20, 256).expect_err("only 3 MiB are left");
        assert_eq!(error, SimError::OutOfMemory { rank: 0, asked: 4 << 20, free: 3 << 20 });
    }

    #[test]
    fn freed_memory_is_zero_also_where_it_fills_no_page() {
        let arena = arena();
        for bytes in [256u64, 3840, 4096, 8448] {
            let _before = arena.allocate(0, 256, 256).expect("fits");
            let address = arena.allocate(0, bytes, 256).expect("fits");
            // SAFETY: inside a live allocation of this test's own arena.
            unsafe { fill_bytes(address as usize, 0xFF, bytes as usize) };
            arena.free(address).expect("live");
            assert_eq!(arena.allocate(0, bytes, 256).expect("fits"), address);
            let mut seen = vec![1; bytes as usize];
            // SAFETY: as above.
            unsafe { crate::copies::read_bytes(&mut seen, address as usize) };
            assert!(seen.iter().all(|byte| *byte == 0), "{bytes} bytes");
        }
    }

    #[test]
    fn freeing_twice_is_refused_and_freed_pages_are_zero() {
        let arena = arena();
        let address = arena.allocate(0, 1 << 20, 4096).expect("fits");
        let word = std::ptr::with_exposed_provenance_mut::<u64>(address as usize);
        // SAFETY: the address is inside a live allocation of this test's own arena.
        unsafe { word.write(7) };
        arena.free(address).expect("live");
        assert!(matches!(arena.free(address), Err(SimError::InvalidArgument { argument: "address", .. })));
        // SAFETY: the mapping is still there, and nobody else has it.
        assert_eq!(unsafe { word.read() }, 0, "the page went back to the system");
    }
}
