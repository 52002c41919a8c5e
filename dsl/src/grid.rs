//! Grid-wide synchronisation: a barrier, and the election of the last block out.
use core::cell::Cell;

use crate::KernelArg;
use crate::bulk::Landed;
use crate::fault::{CODE_TIMEOUT, Fault, Stopped, Told};
use crate::memory::{Global, Gpu, Symmetric, System};
use crate::wait::{Outcome, Poll, Watch};
use crate::{arch, block, thread};

/// Waits until the launch before this one in the stream is over, and its memory accesses are seen (`griddepcontrol.wait`).
///
/// `#[kernel]` puts it in front of every kernel, so that one may be launched while the one before is still at work (programmatic dependent
/// launch): what it takes to launch then passes beside it. In a launch of another kind it does nothing. On the simulator launches of a stream
/// come one after the other.
#[inline(always)]
pub fn wait_for_the_one_before() {
    arch::wait_for_the_one_before();
}

/// Lets the next launch of the stream begin, once every block has said so or is over (`griddepcontrol.launch_dependents`). It still
/// [waits](wait_for_the_one_before) for the end of this one before it touches anything.
///
/// Its blocks take places on SMs from then on, which others on the same GPU may need: who waits for those must not be launched so.
#[inline(always)]
pub fn let_the_next_one_begin() {
    arch::let_the_next_one_begin();
}

/// Two counters in device memory: of blocks that came to the barrier, and of blocks that are done.
///
/// They are 0 between launches: the last block out clears them, when no other block is left to look. So launches on the same
/// counters, which come one after another, may have different numbers of blocks.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct GridCounters {
    /// `[2]`, zero before the first launch: arrivals at the barrier, and blocks that are done, with those that stopped in the upper
    /// half.
    pub words: Global<u64>,
}

/// This block is the grid's last.
#[derive(Debug)]
pub struct LastOut {
    landed: Option<GridLanded>,
}

/// All blocks of the grid have landed their stores, and none has stopped: a flag to a peer may follow.
#[derive(Debug)]
pub struct GridLanded(());

impl LastOut {
    /// The grid's proof, unless one of its blocks has stopped.
    #[inline(always)]
    pub fn landed(&self) -> Option<&GridLanded> {
        self.landed.as_ref()
    }
}

impl GridCounters {
    /// Waits for all blocks of the grid, which must be resident together (a cooperative launch). Block-collective.
    ///
    /// What any thread wrote before is visible to every thread after. A kernel that calls it ends with [`Self::last_out`], or has each block
    /// [pass](Self::pass) behind it.
    #[inline(always)]
    #[track_caller]
    pub fn sync(self, watch: &Watch, phase: u32) -> Outcome {
        block::sync();
        let blocks = thread::grid_blocks();
        let mut target = 0;
        if thread::index() == 0 {
            // Monotonic within a launch, so that no round of it resets what a late reader of the round before still waits for.
            let before = self.words.fetch_add_acq_rel::<Gpu>(0, 1);
            target = u64::from((before as u32 / blocks + 1) * blocks);
        }
        watch
            .wait_until_each(phase, 1, |_| Poll::acquire::<Gpu>(self.words, 0, u32::MAX, target, |seen| seen >= target))
    }

    /// Says that this block has come, whose threads have met behind what they wrote; whether it is the last of the grid, which then has seen what all
    /// blocks wrote. No block waits for it. Called by one thread; a kernel that calls it has each block [pass](Self::pass) behind it.
    #[inline(always)]
    #[track_caller]
    pub fn is_last_to_come(self) -> bool {
        // Acquire and release: what this thread does next may publish what other blocks wrote.
        let before = self.words.fetch_add_acq_rel::<Gpu>(0, 1);
        before as u32 + 1 == thread::grid_blocks() || arch::is_left_out()
    }

    /// Counts this block out, which has `stopped` or not; says so in the block that came last, in all its threads. Block-collective,
    /// uniform.
    #[inline(always)]
    #[track_caller]
    pub fn last_out(self, _landed: Landed, stopped: bool) -> Option<LastOut> {
        let mut last = false;
        let mut whole = false;
        if thread::index() == 0 {
            // Acquire and release: the last block has seen every other block's stores, and may publish them.
            let before = self.words.fetch_add_acq_rel::<Gpu>(1, u64::from(stopped) << 32 | 1);
            last = before as u32 + 1 == thread::grid_blocks();
            whole = before >> 32 == 0 && !stopped;
            if last {
                self.words.store_weak(0, 0);
                self.words.store_weak(1, 0);
            }
        }
        if !block::any(last).get() {
            return None;
        }
        Some(LastOut { landed: if block::any(whole).get() { Some(GridLanded(())) } else { None } })
    }
}

/// How far a block was among those of its grid as it passed; in the thread that said so.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Passed {
    before: u64,
    stopped: bool,
}

impl GridCounters {
    /// Says that this block has passed, `stopped` or not: its threads have met, and do no more what the last one's [`Passed::is_last`] is waited for
    /// with. Called by one thread; what it passes meanwhile need not wait for the answer. A kernel that calls it has no [`Self::last_out`].
    #[inline(always)]
    #[track_caller]
    pub fn pass(self, stopped: bool) -> Passed {
        Passed { before: self.words.fetch_add_acq_rel::<Gpu>(1, u64::from(stopped) << 32 | 1), stopped }
    }

    /// Says whether what this block does for others, which [wait for that](Self::said), is there, or is not and will not be. Once in a launch, by one block, of a kernel that
    /// has no [barrier](Self::sync) and whose blocks [pass](Self::pass). Block-collective.
    #[inline(always)]
    #[track_caller]
    pub fn say(self, there: bool) {
        block::sync();
        if thread::index() == 0 {
            self.words.store_release::<Gpu>(0, if there { 1 } else { 2 });
        }
    }

    /// Waits until a block has [said](Self::say) whether what it does for others is there; says the same. Of a block that has not passed. Block-collective, uniform.
    ///
    /// # Errors
    ///
    /// That nothing was said a timeout behind the deadline: the block that says it began more than a timeout later than this one.
    #[inline(always)]
    #[track_caller]
    pub fn said(self, watch: &Watch, phase: u32) -> Result<bool, Stopped> {
        // Of the thread that looks; a test that leaves the wait out goes on as though it was there.
        let word = Cell::new(1);
        watch.wait_for_own_grid(|| {
            Poll::acquire::<Gpu>(self.words, 0, u32::MAX, 1, |seen| {
                word.set(seen);
                seen != 0
            })
        });
        let code = if word.get() == 0 { CODE_TIMEOUT } else { 0 };
        Fault { code, phase, told: Told::All, expected: 1, ..Fault::NONE }.settle()?;
        Ok(!block::any(word.get() == 2).get())
    }

    /// Waits until every block has passed and the last one has [said so](Passed::is_last_and_says_so), in a block that has passed; also where some rank has
    /// given up, or the deadline is over, since each block passes then too. Block-collective.
    #[inline(always)]
    #[track_caller]
    pub fn all_passed(self, watch: &Watch) {
        watch.wait_for_own_grid(|| Poll::acquire::<Gpu>(self.words, 1, u32::MAX, 0, |seen| seen == 0));
    }
}

impl Passed {
    /// Whether it was the last block to pass: what every block read before it passed may be written now. It clears the counters. The same
    /// thread.
    #[inline(always)]
    #[track_caller]
    pub fn is_last(self, counters: GridCounters) -> bool {
        let last = self.before as u32 + 1 == thread::grid_blocks();
        if last {
            counters.words.store_weak(0, 0);
            counters.words.store_weak(1, 0);
        }
        last
    }

    /// [`Self::is_last`], and tells blocks that wait for [`GridCounters::all_passed`]. The same thread.
    #[inline(always)]
    #[track_caller]
    pub fn is_last_and_says_so(self, counters: GridCounters) -> bool {
        let last = self.before as u32 + 1 == thread::grid_blocks();
        if last {
            counters.words.store_weak(0, 0);
            // What other blocks did before they passed was acquired here, and goes on to who waits.
            counters.words.store_release::<Gpu>(1, 0);
        }
        last
    }

    /// Whether neither this block has stopped, nor one that passed before.
    #[inline(always)]
    pub fn is_whole(self) -> bool {
        self.before >> 32 == 0 && !self.stopped
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
