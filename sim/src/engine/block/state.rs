//! A resident block as its threads see it: who is ready, who waits for what.
//!
//! Nothing here is locked: a block belongs to one worker. Readiness is bit masks, one bit a lane in each warp and one
//! bit a warp in the block, so that finding the next thread is two bit scans even when 1023 threads wait.

use std::panic::Location;

use corosensei::Yielder;

use super::barriers::{Barrier, Mbarrier};
use super::bulk::{Kind, PendingCopy, Stores};
use super::warp::{Warp, WarpOp, bits};
use crate::device::PollWait;
use crate::engine::launch::Grid;

/// The state of one resident block.
pub(crate) struct BlockState {
    pub kernel: &'static str,
    /// Counts the launches of its rank.
    pub launch: u64,
    pub rank: u32,
    pub index: u32,
    pub grid: u32,
    pub threads: u32,
    /// Threads that have not returned.
    pub live: u32,
    /// Warps with a ready lane, a polling lane, a sleeping lane, a lane that waits for an mbarrier.
    pub ready_warps: u32,
    pub polling_warps: u32,
    pub sleeping_warps: u32,
    pub mbarrier_warps: u32,
    pub warps: Vec<Warp>,
    pub lanes: Vec<Lane>,
    /// Of every thread, or of none.
    pub tallies: Vec<Tally>,
    pub barriers: [Barrier; 16],
    pub mbarriers: Vec<Mbarrier>,
    /// Bulk copies that were issued and have not happened yet (seeded modes).
    pub copies: Vec<PendingCopy>,
}

/// One thread.
pub(crate) struct Lane {
    /// Where the thread's coroutine suspends; set when it starts.
    pub yielder: *const Yielder<(), ()>,
    pub waiting: Waiting,
}

/// What is counted for a thread, in few kernels.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    pub stores: Stores,
    /// Turns in a row that got somewhere, counted once the kernel is overdue.
    pub restless: u32,
}

/// What a suspended thread waits for.
#[derive(Clone, Copy)]
pub(crate) enum Waiting {
    /// Nothing yet: it has not started.
    Start,
    /// Its next turn, which the schedule took from it.
    Preempted {
        location: &'static Location<'static>,
    },
    Warp {
        op: WarpOp,
        mask: u32,
        location: &'static Location<'static>,
    },
    Barrier {
        id: u32,
        location: &'static Location<'static>,
    },
    Poll {
        wait: PollWait,
        location: &'static Location<'static>,
    },
    Sleep {
        until: u64,
        location: &'static Location<'static>,
    },
    Mbarrier {
        at: u32,
        parity: u32,
        location: &'static Location<'static>,
    },
    /// Nothing any more: it has returned.
    Exited,
}

impl Waiting {
    /// Where the thread waits.
    pub(crate) fn location(&self) -> Option<&'static Location<'static>> {
        match self {
            Self::Start | Self::Exited => None,
            Self::Preempted { location }
            | Self::Warp { location, .. }
            | Self::Barrier { location, .. }
            | Self::Poll { location, .. }
            | Self::Sleep { location, .. }
            | Self::Mbarrier { location, .. } => Some(location),
        }
    }
}

impl BlockState {
    /// A block none of whose threads has started.
    pub(crate) fn new(grid: &Grid, index: u32) -> Self {
        let threads = grid.launch.threads;
        let warps = threads / 32;
        Self {
            kernel: grid.launch.kernel,
            launch: grid.number,
            rank: grid.stream.rank,
            index,
            grid: grid.launch.grid,
            threads,
            live: threads,
            ready_warps: u32::MAX >> (32 - warps),
            polling_warps: 0,
            sleeping_warps: 0,
            mbarrier_warps: 0,
            warps: (0..warps).map(|_| Warp::new()).collect(),
            lanes: (0..threads).map(|_| Lane::new()).collect(),
            tallies: Vec::new(),
            barriers: std::array::from_fn(|_| Barrier::new()),
            mbarriers: Vec::new(),
            copies: Vec::new(),
        }
    }

    /// Lets `thread` run again.
    #[inline]
    pub(crate) fn make_ready(&mut self, thread: u32) {
        self.make_lanes_ready(thread / 32, 1 << (thread % 32));
    }

    /// Lets the lanes of `mask` run again.
    #[inline]
    pub(crate) fn make_lanes_ready(&mut self, warp: u32, mask: u32) {
        self.warps[warp as usize].ready |= mask;
        self.ready_warps |= 1 << warp;
    }

    /// Lets every polling thread poll again.
    pub(crate) fn wake_pollers(&mut self) {
        for warp in bits(std::mem::take(&mut self.polling_warps)) {
            let lanes = std::mem::take(&mut self.warps[warp as usize].polling);
            self.make_lanes_ready(warp, lanes);
        }
    }

    /// Lets every thread that waits for an mbarrier look at it again.
    pub(crate) fn wake_mbarrier_waiters(&mut self) {
        for warp in bits(std::mem::take(&mut self.mbarrier_warps)) {
            let lanes = std::mem::take(&mut self.warps[warp as usize].on_mbarrier);
            self.make_lanes_ready(warp, lanes);
        }
    }

    /// Lets every sleeper whose time has come run again.
    pub(crate) fn wake_sleepers(&mut self, now: u64) {
        for warp in bits(self.sleeping_warps) {
            for lane in bits(self.warps[warp as usize].sleeping) {
                if matches!(self.lanes[(warp * 32 + lane) as usize].waiting, Waiting::Sleep { until, .. } if until <= now)
                {
                    self.warps[warp as usize].sleeping &= !(1 << lane);
                    self.make_lanes_ready(warp, 1 << lane);
                }
            }
            if self.warps[warp as usize].sleeping == 0 {
                self.sleeping_warps &= !(1 << warp);
            }
        }
    }

    /// The mbarrier at `at`, if there is one.
    pub(crate) fn mbarrier(&mut self, at: u32) -> Option<&mut Mbarrier> {
        self.mbarriers.iter_mut().find(|object| object.at == at)
    }

    /// Books `bytes` that a copy delivered to the mbarrier at `at`.
    pub(crate) fn deliver(&mut self, at: u32, bytes: u32) {
        if let Some(object) = self.mbarrier(at) {
            object.bytes -= i64::from(bytes);
            if object.complete_if_due() {
                self.wake_mbarrier_waiters();
            }
        }
    }

    /// Makes the copy `index` of those that have not happened happen.
    pub(crate) fn complete_copy(&mut self, index: usize) {
        let PendingCopy { ends, bytes, kind, .. } = self.copies.swap_remove(index);
        match kind {
            Kind::Load { mbarrier } => {
                // SAFETY: the ends were checked when the copy was issued; device memory and the block's shared memory still live.
                unsafe { ends.load() };
                self.deliver(mbarrier, bytes);
            }
            // SAFETY: as above.
            Kind::Store { snapshot: Some(words), reduction, .. } => unsafe { ends.store_source(&words, reduction) },
            // SAFETY: as above.
            Kind::Store { snapshot: None, reduction, .. } => unsafe { ends.store(reduction) },
        }
    }

    /// What is counted for `thread`.
    pub(crate) fn tally(&mut self, thread: u32) -> &mut Tally {
        if self.tallies.is_empty() {
            self.tallies.resize(self.threads as usize, Tally::default());
        }
        &mut self.tallies[thread as usize]
    }

    /// Books a thread's return.
    pub(crate) fn exit(&mut self, thread: u32) {
        self.lanes[thread as usize].waiting = Waiting::Exited;
        self.live -= 1;
        self.warps[(thread / 32) as usize].exited |= 1 << (thread % 32);
    }

    /// Whether a thread polls or sleeps: something else than its own block may let it go on.
    pub(crate) fn hopes(&self) -> bool {
        self.lanes.iter().any(|lane| matches!(lane.waiting, Waiting::Poll { .. } | Waiting::Sleep { .. }))
    }

    /// The earliest wake-up of a sleeper, and the earliest deadline after `now` of a poll.
    pub(crate) fn earliest(&self, now: u64) -> (Option<u64>, Option<u64>) {
        let (mut wake, mut deadline) = (None::<u64>, None::<u64>);
        let earlier = |slot: &mut Option<u64>, time: u64| *slot = Some(slot.map_or(time, |old| old.min(time)));
        for lane in &self.lanes {
            match lane.waiting {
                Waiting::Sleep { until, .. } => earlier(&mut wake, until),
                Waiting::Poll { wait: PollWait { deadline_ns: Some(time), .. }, .. } if time > now => {
                    earlier(&mut deadline, time);
                }
                _ => {}
            }
        }
        (wake, deadline)
    }
}

impl Lane {
    fn new() -> Self {
        Self { yielder: std::ptr::null(), waiting: Waiting::Start }
    }
}
