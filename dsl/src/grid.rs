//! Grid-wide synchronisation: a barrier, and the election of the last block out.
use crate::KernelArg;
use crate::bulk::Landed;
use crate::memory::{Global, Gpu, Symmetric, System};
use crate::wait::{Outcome, Poll, Watch};
use crate::{block, thread};

/// Two counters in device memory that only ever grow; a launch uses them with the same number of blocks every time.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct GridCounters {
    /// `[2]`, zero before the first launch: arrivals at the barrier, and blocks that are done.
    pub words: Global<u64>,
}

/// All blocks of the grid have landed their stores: a flag to a peer may follow.
#[derive(Debug)]
pub struct GridLanded(());

impl GridCounters {
    /// Waits for all blocks of the grid, which must be resident together (a cooperative launch). Block-collective.
    ///
    /// What any thread wrote before is visible to every thread after.
    #[inline(always)]
    #[track_caller]
    pub fn sync(self, watch: &Watch, phase: u32) -> Outcome {
        block::sync();
        let blocks = u64::from(thread::grid_blocks());
        let mut target = 0;
        if thread::index() == 0 {
            // Monotonic, so that no reset can race with a late reader.
            let before = self.words.fetch_add_acq_rel::<Gpu>(0, 1);
            target = (before / blocks + 1) * blocks;
        }
        watch.wait_until(phase, 1, |_| {
            let seen = self.words.load_acquire::<Gpu>(0);
            Poll { peer: u32::MAX, expected: target, seen, ready: seen >= target }
        })
    }

    /// Counts this block out; returns the grid's proof in the block that came last, in all its threads. Block-collective.
    #[inline(always)]
    #[track_caller]
    pub fn last_out(self, _landed: Landed) -> Option<GridLanded> {
        let mut last = false;
        if thread::index() == 0 {
            // Acquire and release: the last block has seen every other block's stores, and may publish them.
            let before = self.words.fetch_add_acq_rel::<Gpu>(1, 1);
            last = (before + 1).is_multiple_of(u64::from(thread::grid_blocks()));
        }
        if block::any(last) { Some(GridLanded(())) } else { None }
    }
}

impl GridLanded {
    /// Posts `word` at `flag`, releasing at system scope everything that the grid landed. Per thread.
    #[inline(always)]
    #[track_caller]
    pub fn publish(&self, flag: Symmetric<u64>, word: u64) {
        flag.store_release::<System>(0, word);
    }
}
