//! Device memory: one range of addresses for all ranks, backed page by page as it is touched.
//!
//! It is anonymous memory of the process, or, where ranks are processes, a file for each ([`shared`](super::shared)).
//!
//! A device address is a host address, so a simulated load is a host load. Each rank owns an equal part of the mapping and
//! allocates from it first-fit; parts are apart so that one rank's addresses do not depend on what the other ranks' host
//! threads do at the same time.
//!
//! **Guards.** Before and behind every allocation lie bytes that are nobody's, and an access must lie inside one live
//! allocation: who walks out of his own is found before he is in a neighbour's. Guards are addresses that nobody touches, so
//! they cost no memory and do not count as used. No two allocations share a granule, so one look at a table finds the
//! allocation that an address may belong to.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::{MmapMut, MmapOptions, UncheckedAdvice};

use super::allocation::Allocation;
use super::raw::fill_bytes;
use crate::config::{MachineConfig, PART_ALIGNMENT};
use crate::error::SimError;
use crate::memory::owner::{Extent, GRANULE, Owner, Owners};
use crate::memory::shared::Shared;

/// Every allocation begins on such a boundary, as the CUDA allocator's do.
const MINIMUM_ALIGNMENT: u64 = 256;
/// An allocation begins so many times 256 bytes into its first granule, which depends on the granule: were it the same
/// everywhere, the streams of a kernel would share few sets of the cache, and be aligned better than anyone promised.
const PLACES: u64 = 15;
/// Behind an allocation, at least this share of its size is nobody's, up to the most.
const GUARD_SHARE: u64 = 64;
const MOST_GUARD: u64 = 64 << 10;
/// Addresses of a rank's part beyond its device memory: a share of that for large allocations, and some for small ones.
const SPARE_SHARE: u64 = 8;
const SPARE: u64 = 64 << 20;
/// The memory of all ranks.
pub(crate) struct Arena {
    /// Owns the mapping. It is only ever reached through raw pointers.
    mapping: MmapMut,
    /// What lies in it, where ranks are processes.
    shared: Option<Shared>,
    base: u64,
    /// Owns the table of [`Self::owners`].
    _table: MmapMut,
    owners: Owners,
    /// Addresses of one rank.
    stride: u64,
    /// Counts what was freed: who remembers an allocation looks whether this is still the same.
    freed: AtomicU64,
    parts: Vec<Mutex<Part>>,
}

/// One rank's books, by offset from the arena's base.
struct Part {
    /// Whole granules.
    free: BTreeMap<u64, u64>,
    used: BTreeMap<u64, Used>,
    /// Device memory that is not used.
    left: u64,
}

/// An allocation: the granules that it has, how much of the rank's memory it takes, and what it is.
struct Used {
    first: u64,
    length: u64,
    taken: u64,
    what: Allocation,
}

impl Arena {
    /// Reserves the address space: for all ranks, or as the process of one of them.
    pub(crate) fn new(config: &MachineConfig, process: Option<u32>) -> Result<Self, SimError> {
        let part_bytes = config.part_bytes();
        let stride = part_bytes + (part_bytes / SPARE_SHARE).next_multiple_of(PART_ALIGNMENT) + SPARE;
        let reserve = |bytes: u64| {
            let bytes = usize::try_from(bytes).map_err(|_| {
                SimError::invalid("arena_bytes", config.arena_bytes, "it must fit the host's address space")
            })?;
            MmapOptions::new()
                .len(bytes)
                .no_reserve_swap()
                .map_anon()
                .map_err(|error| SimError::Host { what: "address space for the arena", message: error.to_string() })
        };
        let bytes = stride * u64::from(config.ranks);
        // Of the ranks whose allocations are known here.
        let (first, known) = process.map_or((0, bytes), |rank| (u64::from(rank) * stride, stride));
        let (mut mapping, mut table) = (reserve(bytes)?, reserve(known / GRANULE * size_of::<Owner>() as u64)?);
        let base = mapping.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: the range was just reserved, and the arena keeps it.
        let shared = process.map(|rank| unsafe { Shared::new(rank, config.ranks, base, stride) }).transpose()?;
        // SAFETY: fresh zeros, a page boundary, as many owners as there are granules, and the arena keeps the mapping.
        let mut owners = unsafe { Owners::new(base + first, known / GRANULE, table.as_mut_ptr().cast()) };
        if let Some(shared) = &shared {
            // SAFETY: the arena keeps them, behind a pointer of their own.
            owners = unsafe { owners.and_elsewhere(base, stride, shared.foreign()) };
        }
        let part = |rank| {
            let free = BTreeMap::from([(rank * stride, stride)]);
            Mutex::new(Part { free, used: BTreeMap::new(), left: part_bytes })
        };
        let parts = (0..u64::from(config.ranks)).map(part).collect();
        Ok(Self { mapping, shared, base, _table: table, owners, stride, freed: AtomicU64::new(0), parts })
    }

    /// The files that it lies in, where ranks are processes.
    pub(crate) fn shared(&self) -> Option<&Shared> {
        self.shared.as_ref()
    }

    /// Maps another process's part. Only where ranks are processes.
    pub(crate) fn map(&self, rank: u32, part: BorrowedFd<'_>) -> Result<(), SimError> {
        let Some(shared) = &self.shared else {
            return Err(SimError::invalid("part", "a part", "this machine has all its ranks in one process"));
        };
        // SAFETY: as they were made with.
        unsafe { shared.map(rank, part, self.base, self.stride) }
    }

    /// Whether an address of device memory is in another process's part: it is not known whether an allocation is there.
    pub(crate) fn is_elsewhere(&self, address: u64) -> bool {
        self.shared.as_ref().is_some_and(|shared| self.rank_of(address) != shared.rank)
    }

    /// Where an address is in its rank's part; `None` outside of device memory.
    pub(crate) fn locate(&self, address: u64) -> Option<(u32, u64)> {
        let offset = address.wrapping_sub(self.base);
        (offset < self.bytes()).then(|| (self.rank_of(address), offset % self.stride))
    }

    /// What [`Self::locate`] was asked, in this process; `None` for what is not in the part.
    pub(crate) fn address_of(&self, rank: u32, offset: u64) -> Option<u64> {
        (offset < self.stride).then(|| self.base + u64::from(rank) * self.stride + offset)
    }

    /// How often something was freed.
    #[inline]
    pub(crate) fn freed(&self) -> u64 {
        self.freed.load(Ordering::Acquire)
    }

    /// Where everyone finds the owners of granules.
    pub(crate) fn owners(&self) -> Owners {
        self.owners
    }

    /// The one live allocation to which `address` may belong: it is inside, or in the granules of its guards.
    pub(crate) fn near(&self, address: u64) -> Option<Extent> {
        self.owners.of(address)?.extent()
    }

    /// The live allocation inside which `bytes` bytes from `address` lie.
    #[inline]
    pub(crate) fn extent_of(&self, address: u64, bytes: u64) -> Option<Extent> {
        self.near(address).filter(|extent| extent.contains(address, bytes))
    }

    /// What a report says of the live allocation `extent`, where `address`, which may be outside, is of interest.
    pub(crate) fn describe(&self, extent: Extent, address: u64) -> String {
        let part = self.part(self.rank_of(extent.address));
        let used = part.used.get(&(extent.address - self.base));
        used.map_or_else(String::new, |used| used.what.describe(i128::from(address) - i128::from(extent.address)))
    }

    /// Whose part of device memory an address is in, which is one of device memory's.
    pub(crate) fn rank_of(&self, address: u64) -> u32 {
        ((address - self.base) / self.stride) as u32
    }

    /// Takes memory.
    pub(crate) fn allocate(&self, what: &Allocation) -> Result<u64, SimError> {
        let Allocation { rank, bytes, align, .. } = *what;
        if bytes == 0 {
            return Err(SimError::invalid("bytes", bytes, "at least 1"));
        }
        if !align.is_power_of_two() || align > 1 << 30 {
            return Err(SimError::invalid("align", align, "a power of two, at most 1 GiB"));
        }
        what.validate()?;
        let align = align.max(MINIMUM_ALIGNMENT);
        let mut part = self.part(rank);
        let out_of_memory = SimError::OutOfMemory { rank, asked: bytes, free: part.left };
        let Some(taken) = bytes.checked_next_multiple_of(MINIMUM_ALIGNMENT).filter(|taken| *taken <= part.left) else {
            return Err(out_of_memory);
        };
        let guard = (bytes / GUARD_SHARE).clamp(MINIMUM_ALIGNMENT, MOST_GUARD);
        let found = part.free.iter().find_map(|(&start, &length)| {
            let earliest = self.base + start + MINIMUM_ALIGNMENT * (1 + start / GRANULE % PLACES);
            // The address is what must be aligned, and the mapping itself is only page-aligned.
            let at = earliest.next_multiple_of(align) - self.base;
            let first = (at - MINIMUM_ALIGNMENT) / GRANULE * GRANULE;
            let end = (at + bytes + guard).next_multiple_of(GRANULE);
            (end <= start + length).then_some((start, length, at, first, end))
        });
        let Some((start, length, at, first, end)) = found else { return Err(out_of_memory) };
        part.free.remove(&start);
        if first > start {
            part.free.insert(start, first - start);
        }
        if end < start + length {
            part.free.insert(end, start + length - end);
        }
        part.left -= taken;
        part.used.insert(at, Used { first, length: end - first, taken, what: what.clone() });
        self.own(first, end, Extent { address: self.base + at, bytes });
        Ok(self.base + at)
    }

    /// Gives an allocation back.
    pub(crate) fn free(&self, address: u64) -> Result<(), SimError> {
        let refused = || SimError::invalid("address", format_args!("{address:#x}"), "the start of a live allocation");
        let offset = address.wrapping_sub(self.base);
        if offset >= self.bytes() {
            return Err(refused());
        }
        let mut part = self.part((offset / self.stride) as u32);
        let Some(Used { first, length, taken, .. }) = part.used.remove(&offset) else { return Err(refused()) };
        let bytes = self.near(address).map_or(0, |extent| extent.bytes);
        self.own(first, first + length, Extent { address: 0, bytes: 0 });
        self.freed.fetch_add(1, Ordering::AcqRel);
        let given_back = match &self.shared {
            // An allocation is in the own part.
            Some(shared) => shared.remove(first % self.stride, length),
            None => {
                let (advice, first, length) = (UncheckedAdvice::DontNeed, first as usize, length as usize);
                // SAFETY: the range lies inside the mapping, on granule boundaries, and belongs to an allocation that nobody owns
                // any more. DONTNEED on private anonymous memory makes its bytes zero; no reference into the mapping exists (it is
                // reached through raw pointers only), so no reference sees its referent change.
                unsafe { self.mapping.unchecked_advise_range(advice, first, length) }.is_ok()
            }
        };
        if !given_back {
            // The host refuses where pages are locked or larger. Nobody could touch the guards.
            // SAFETY: inside the mapping and an allocation that nobody owns any more.
            unsafe { fill_bytes(address as usize, 0, bytes as usize) };
        }
        part.left += taken;
        let (mut start, mut end) = (first, first + length);
        if let Some((&before, &bytes)) = part.free.range(..first).next_back()
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

    /// The addresses of all ranks.
    pub(crate) fn addresses(&self) -> std::ops::Range<u64> {
        self.base..self.base + self.bytes()
    }

    /// The bytes of address space.
    fn bytes(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Writes down whose the granules from `first` to `end` are.
    fn own(&self, first: u64, end: u64, extent: Extent) {
        for granule in first / GRANULE..end / GRANULE {
            if let Some(owner) = self.owners.of(self.base + granule * GRANULE) {
                owner.become_owner(extent);
            }
        }
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
        Arena::new(&config, None).expect("8 MiB of address space")
    }

    fn take(arena: &Arena, rank: u32, bytes: u64, align: u64) -> Result<u64, SimError> {
        arena.allocate(&Allocation::new(rank, bytes).with_align(align))
    }

    #[test]
    fn allocations_are_aligned_disjoint_and_coalesce_when_freed() {
        let arena = arena();
        let a = take(&arena, 1, 1000, 16).expect("fits");
        let b = take(&arena, 1, 5000, 65536).expect("fits");
        let c = take(&arena, 1, 1, 1).expect("fits");
        assert_eq!((a % 256, b % 65536, c % 256), (0, 0, 0));
        assert!(a + 1000 <= b && (c < b || c >= b + 5000) && a + 1000 <= c);
        for address in [b, a, c] {
            arena.free(address).expect("live");
        }
        let whole = take(&arena, 1, 4 << 20, 256).expect("the pieces became one again");
        assert!(whole > arena.base + arena.stride, "rank 1 owns the second half");
        assert_eq!(arena.part(1).free.len(), 1, "one piece is left");
    }

    #[test]
    fn exhaustion_names_rank_asked_and_free() {
        let arena = arena();
        take(&arena, 0, 1 << 20, 256).expect("fits");
        let error = take(&arena, 0, 4 << 20, 256).expect_err("only 3 MiB are left");
        assert_eq!(error, SimError::OutOfMemory { rank: 0, asked: 4 << 20, free: 3 << 20 });
    }

    #[test]
    fn an_address_is_in_one_live_allocation_or_in_none_and_every_allocation_has_guards() {
        let arena = arena();
        let mut live: Vec<Extent> = Vec::new();
        for (bytes, align) in
            [(8, 1), (256, 256), (1000, 512), (16 << 10, 256), (100_000, 4096), (1, 1), (1 << 20, 256)]
        {
            let address = take(&arena, 0, bytes, align).expect("fits");
            live.push(Extent { address, bytes });
        }
        let check = |live: &[Extent]| {
            for &extent in live {
                let Extent { address, bytes } = extent;
                let guard = (bytes / 64).clamp(256, 64 << 10);
                assert_eq!(arena.extent_of(address, bytes), Some(extent));
                assert_eq!(arena.extent_of(address + bytes - 1, 1), Some(extent));
                for outside in [address - 256, address - 1, address + bytes, address + bytes + guard - 1] {
                    assert_eq!(arena.extent_of(outside, 1), None, "{outside:#x} of {extent:x?}");
                }
                assert_eq!(arena.extent_of(address + bytes - 1, 2), None);
                assert_eq!(arena.extent_of(address - 1, bytes), None);
                assert_eq!(arena.extent_of(address, u64::MAX), None);
            }
        };
        check(&live);
        let gone = live.remove(3);
        arena.free(gone.address).expect("live");
        assert_eq!(arena.extent_of(gone.address, 1), None);
        check(&live);
        // Below, above, and where the sum of address and bytes wraps.
        for address in [0, 0x1000, arena.base - 1, arena.base + arena.bytes(), u64::MAX - 7] {
            assert_eq!(arena.extent_of(address, 8), None);
        }
    }

    #[test]
    fn guards_take_none_of_a_ranks_memory() {
        let arena = arena();
        let pieces = (4 << 20) / 4096;
        for piece in 0..pieces {
            take(&arena, 0, 4096, 256).unwrap_or_else(|error| panic!("piece {piece} of {pieces}: {error}"));
        }
        assert!(take(&arena, 0, 1, 1).is_err());
    }

    #[test]
    fn freed_memory_is_zero_also_where_it_fills_no_page() {
        let arena = arena();
        for bytes in [256u64, 3840, 4096, 8448] {
            let _before = take(&arena, 0, 256, 256).expect("fits");
            let address = take(&arena, 0, bytes, 256).expect("fits");
            // SAFETY: inside a live allocation of this test's own arena.
            unsafe { fill_bytes(address as usize, 0xFF, bytes as usize) };
            arena.free(address).expect("live");
            assert_eq!(take(&arena, 0, bytes, 256).expect("fits"), address);
            let mut seen = vec![1; bytes as usize];
            // SAFETY: as above.
            unsafe { crate::memory::raw::read_bytes(&mut seen, address as usize) };
            assert!(seen.iter().all(|byte| *byte == 0), "{bytes} bytes");
        }
    }

    #[test]
    fn freeing_twice_is_refused_and_freed_pages_are_zero() {
        let arena = arena();
        let address = take(&arena, 0, 1 << 20, 4096).expect("fits");
        let word = crate::memory::door::pointer(address).cast::<u64>();
        // SAFETY: the address is inside a live allocation of this test's own arena.
        unsafe { word.write(7) };
        arena.free(address).expect("live");
        assert!(matches!(arena.free(address), Err(SimError::InvalidArgument { argument: "address", .. })));
        // SAFETY: the mapping is still there, and nobody else has it.
        assert_eq!(unsafe { word.read() }, 0, "the page went back to the system");
    }
}
