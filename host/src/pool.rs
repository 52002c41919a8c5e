//! Memory of dropped tensors: one pool for each rank, from which its next tensors are made.
//!
//! A rank has one stream, so what was dropped may be used again at once: its last use and the next are in order. The pool lends
//! blocks, best fit; what is left of a split block stays free, and what comes back becomes one with the free memory beside it, so that
//! no order of sizes makes it grow far beyond what was used at once. It makes no driver call but to grow and to give back.
//! [`Memory`](crate::memory::Memory) says when each may be done: a segment is given back only when nothing runs that may use
//! it.
use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;

/// Blocks begin and end on such a boundary, as what CUDA's allocator gives.
const ALIGN: u64 = 256;

/// A range of device memory. It has one owner: who holds it, or the pool.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    pub address: u64,
    pub bytes: u64,
}

impl Block {
    fn end(&self) -> u64 {
        self.address + self.bytes
    }
}

/// Where a pool's memory comes from, and goes to, in segments.
pub(crate) trait Segments {
    /// A segment of at least `bytes` that begins at `end`; none where something else lies there.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn extend(&mut self, end: u64, bytes: u64) -> Result<Option<Block>>;
    /// A segment of at least `bytes`, anywhere.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn segment(&mut self, bytes: u64) -> Result<Block>;
    /// Takes a segment back. On a GPU it may wait for everything that runs there.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`](crate::Error::Cuda) when the device failed; the segment is lost then.
    ///
    /// # Safety
    ///
    /// [`extend`](Self::extend) or [`segment`](Self::segment) gave it, as a whole; nothing uses any of it any more, and it is given
    /// back once.
    unsafe fn release(&mut self, segment: Block) -> Result<()>;
}

/// A rank's memory for tensors.
pub(crate) struct Pool<S> {
    source: S,
    /// Bytes of each segment, by address.
    segments: BTreeMap<u64, u64>,
    /// Bytes of each free range, by address. No two are adjacent.
    free: BTreeMap<u64, u64>,
    /// The same as (bytes, address): the first that is not too small fits best.
    by_size: BTreeSet<(u64, u64)>,
}

impl<S: Segments> Pool<S> {
    /// An empty pool.
    pub(crate) fn new(source: S) -> Self {
        Self { source, segments: BTreeMap::new(), free: BTreeMap::new(), by_size: BTreeSet::new() }
    }

    /// A block of at least `bytes`, and of one byte, out of what is free; none if no free range is that long.
    pub(crate) fn take(&mut self, bytes: u64) -> Option<Block> {
        let bytes = rounded(bytes);
        let (found, address) = self.by_size.range((bytes, 0)..).next().copied()?;
        self.remove_free(address, found);
        self.insert_free(address + bytes, found - bytes);
        Some(Block { address, bytes })
    }

    /// [`Self::take`], where nothing free fits: gets a segment for it first.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory); the pool is as it was then.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<Block> {
        let segment = self.new_segment(rounded(bytes))?;
        self.segments.insert(segment.address, segment.bytes);
        self.put(segment);
        Ok(self.take(bytes).expect("the new segment is as long as asked for, with the free range that it extends"))
    }

    fn new_segment(&mut self, bytes: u64) -> Result<Block> {
        // Behind the last segment, whose free end then counts: sizes that grow use the same memory.
        if let Some((&start, &length)) = self.segments.last_key_value() {
            let end = start + length;
            let tail = self.free.last_key_value().filter(|&(&start, &length)| start + length == end);
            let missing = bytes - tail.map_or(0, |(_, &length)| length);
            if let Some(segment) = self.source.extend(end, missing)? {
                return Ok(segment);
            }
        }
        self.source.segment(bytes)
    }

    /// Takes a block back. Its memory may be lent again at once.
    pub(crate) fn put(&mut self, block: Block) {
        let (mut start, mut end) = (block.address, block.end());
        if let Some((&before, &bytes)) = self.free.range(..start).next_back()
            && before + bytes == start
        {
            self.remove_free(before, bytes);
            start = before;
        }
        if let Some(&bytes) = self.free.get(&end) {
            self.remove_free(end, bytes);
            end += bytes;
        }
        self.insert_free(start, end - start);
    }

    /// Gives every segment of which nothing is lent back to where it came from.
    ///
    /// # Errors
    ///
    /// The first of [`Segments::release`]'s; the others are given back all the same.
    ///
    /// # Safety
    ///
    /// Nothing runs that uses what was lent and [put](Self::put) back.
    pub(crate) unsafe fn give_back(&mut self) -> Result<()> {
        let unused = |&(&address, &bytes): &(&u64, &u64)| {
            let around = self.free.range(..=address).next_back();
            around.is_some_and(|(start, length)| start + length >= address + bytes)
        };
        let unused: Vec<(u64, u64)> = self.segments.iter().filter(unused).map(|(&a, &b)| (a, b)).collect();
        let mut given = Ok(());
        for (address, bytes) in unused {
            self.segments.remove(&address);
            let (&start, &length) = self.free.range(..=address).next_back().expect("the segment lies in a free range");
            self.remove_free(start, length);
            self.insert_free(start, address - start);
            self.insert_free(address + bytes, start + length - address - bytes);
            // SAFETY: a segment of the source's as it gave it, no more in the tables; all of it is free, and nothing runs that uses it.
            given = given.and(unsafe { self.source.release(Block { address, bytes }) });
        }
        given
    }

    fn insert_free(&mut self, address: u64, bytes: u64) {
        if bytes > 0 {
            self.free.insert(address, bytes);
            self.by_size.insert((bytes, address));
        }
    }

    fn remove_free(&mut self, address: u64, bytes: u64) {
        self.free.remove(&address);
        self.by_size.remove(&(bytes, address));
    }
}

/// Whole alignments, at least one, so that every tensor has an address of its own. What does not fit, no source has either.
fn rounded(bytes: u64) -> u64 {
    bytes.max(1).checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX / ALIGN * ALIGN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Error;

    /// Segments in a line: each begins where the last one ended, or leaves a gap where `extends` is false.
    struct Line {
        extends: bool,
        least: u64,
        end: u64,
        room: u64,
        out: Vec<Block>,
        taken: u32,
    }

    impl Line {
        fn new(extends: bool, least: u64, room: u64) -> Self {
            Self { extends, least, end: 4096, room, out: Vec::new(), taken: 0 }
        }

        fn bytes(&self) -> u64 {
            self.out.iter().map(|segment| segment.bytes).sum()
        }
    }

    impl Segments for Line {
        fn extend(&mut self, end: u64, bytes: u64) -> Result<Option<Block>> {
            if !self.extends || end != self.end { Ok(None) } else { self.segment(bytes).map(Some) }
        }
        fn segment(&mut self, bytes: u64) -> Result<Block> {
            let bytes = bytes.max(self.least);
            if bytes > self.room.saturating_sub(self.bytes()) {
                return Err(Error::OutOfMemory { rank: 0, what: "a test", bytes, free: self.room - self.bytes() });
            }
            let gap = if self.extends { 0 } else { ALIGN };
            let segment = Block { address: self.end + gap, bytes };
            self.end = segment.end();
            self.out.push(Block { ..segment });
            self.taken += 1;
            Ok(segment)
        }
        unsafe fn release(&mut self, segment: Block) -> Result<()> {
            let known = self.out.iter().position(|out| *out == segment).expect("a segment, once");
            self.out.swap_remove(known);
            Ok(())
        }
    }

    fn allocate(pool: &mut Pool<Line>, bytes: u64) -> Result<Block> {
        pool.take(bytes).map_or_else(|| pool.grow(bytes), Ok)
    }

    /// What the pool does, as a map of granules: 0 is no memory, 1 free, 2 lent.
    #[derive(Default)]
    struct Granules(Vec<u8>);

    impl Granules {
        fn set(&mut self, block: &Block, from: u8, to: u8) {
            let range = (block.address / ALIGN) as usize..(block.end() / ALIGN) as usize;
            self.0.resize(self.0.len().max(range.end), 0);
            for granule in &mut self.0[range] {
                assert_eq!(*granule, from, "{block:?}");
                *granule = to;
            }
        }

        /// The free runs: address and bytes.
        fn free(&self) -> Vec<(u64, u64)> {
            let mut runs: Vec<(u64, u64)> = Vec::new();
            for (i, _) in self.0.iter().enumerate().filter(|(_, granule)| **granule == 1) {
                let address = i as u64 * ALIGN;
                match runs.last_mut().filter(|(start, bytes)| start + bytes == address) {
                    Some((_, bytes)) => *bytes += ALIGN,
                    None => runs.push((address, ALIGN)),
                }
            }
            runs
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate(u64),
        /// Of those that are lent, counted from the oldest.
        Free(prop::sample::Index),
        GiveBack,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (0u64..20_000).prop_map(Step::Allocate),
            5 => any::<prop::sample::Index>().prop_map(Step::Free),
            1 => Just(Step::GiveBack),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Blocks are aligned and never overlap, the shortest free run that fits is used and nothing is fetched while there is one,
        /// free memory is always in whole runs, and in the end everything goes back.
        #[test]
        fn the_pool_does_what_a_map_of_granules_does(
            extends: bool,
            least in prop_oneof![Just(256u64), Just(8192)],
            steps in prop::collection::vec(step(), 1..120),
        ) {
            let mut pool = Pool::new(Line::new(extends, least, u64::MAX));
            let (mut map, mut lent, mut known) = (Granules::default(), Vec::new(), Vec::<(u64, u64)>::new());
            for step in steps {
                match step {
                    Step::Allocate(bytes) => {
                        let fits = map.free().into_iter().map(|(_, run)| run).filter(|run| *run >= bytes.max(1)).min();
                        let before = pool.source.taken;
                        let block = allocate(&mut pool, bytes).unwrap();
                        prop_assert_eq!(pool.source.taken == before, fits.is_some(), "{} bytes, free {:?}", bytes, map.free());
                        for segment in &pool.source.out {
                            if !known.contains(&(segment.address, segment.bytes)) {
                                known.push((segment.address, segment.bytes));
                                map.set(segment, 0, 1);
                            }
                        }
                        if let Some(fits) = fits {
                            prop_assert!(map.free().contains(&(block.address, fits)), "{:?} of {:?}", block, map.free());
                        }
                        prop_assert!(block.address.is_multiple_of(ALIGN) && block.bytes >= bytes.max(1));
                        map.set(&block, 1, 2);
                        lent.push(block);
                    }
                    Step::Free(which) if !lent.is_empty() => {
                        let block = lent.remove(which.index(lent.len()));
                        map.set(&block, 2, 1);
                        pool.put(block);
                    }
                    Step::Free(_) => {}
                    Step::GiveBack => {
                        // SAFETY: these are numbers, and no memory.
                        unsafe { pool.give_back() }.unwrap();
                        known.retain(|&(address, bytes)| {
                            let segment = Block { address, bytes };
                            let kept = pool.source.out.contains(&segment);
                            let lent = lent.iter().any(|b: &Block| b.address < segment.end() && address < b.end());
                            assert_eq!(kept, lent, "{segment:?} is kept if and only if a part is lent");
                            if !kept {
                                map.set(&segment, 1, 0);
                            }
                            kept
                        });
                    }
                }
                let free: Vec<(u64, u64)> = pool.free.iter().map(|(&a, &b)| (a, b)).collect();
                prop_assert_eq!(&free, &map.free());
                let by_size: BTreeSet<(u64, u64)> = free.iter().map(|&(address, bytes)| (bytes, address)).collect();
                prop_assert_eq!(&pool.by_size, &by_size);
            }
            lent.into_iter().for_each(|block| pool.put(block));
            // SAFETY: these are numbers, and no memory.
            unsafe { pool.give_back() }.unwrap();
            prop_assert!(pool.source.out.is_empty() && pool.free.is_empty() && pool.by_size.is_empty() && pool.segments.is_empty());
        }
    }

    #[test]
    fn growing_sizes_extend_what_there_is() {
        let mut pool = Pool::new(Line::new(true, 16 << 20, u64::MAX));
        for mib in 1..=64 {
            let block = allocate(&mut pool, mib << 20).unwrap();
            pool.put(block);
        }
        assert_eq!(pool.source.bytes(), 64 << 20);
    }

    #[test]
    fn a_pool_that_cannot_grow_is_as_it_was() {
        let mut pool = Pool::new(Line::new(true, 256, 1 << 20));
        let half = allocate(&mut pool, 1 << 19).unwrap();
        assert!(matches!(allocate(&mut pool, 1 << 20), Err(Error::OutOfMemory { .. })));
        assert!(matches!(allocate(&mut pool, u64::MAX), Err(Error::OutOfMemory { .. })));
        pool.put(half);
        assert_eq!(allocate(&mut pool, 1 << 20).unwrap().bytes, 1 << 20, "the free half and as much again");
    }
}
