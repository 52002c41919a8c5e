//! What everyone else holds of a worker: where its threads may reach, what it is doing, and the alarm that ends its turn.
//!
//! A worker's threads look here at every access to device memory anyway, to see whether it lies in the allocation that they
//! touched last. Whoever must stop them takes that allocation away: the next access finds itself outside, and the alarm. So
//! a thread that never gives up its turn can be ended, and an access costs one compare.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::memory::owner::Owner;

/// The alarm of a machine that stopped. Turns are numbered far below it.
const STOPPED: u64 = u64::MAX;
/// What a worker does that runs a call of the host's.
const HOST_CALL: u64 = u64::MAX;

/// One worker's. Written by its worker, but for the alarm and what that takes away. What an access needs is in one line of the
/// cache.
#[repr(C, align(64))]
pub(crate) struct Reins {
    /// The allocations that the worker's threads read and wrote last: a copy goes from one to another.
    pub read: Owner,
    pub written: Owner,
    /// Bytes of the running block's shared memory.
    shared: AtomicU64,
    /// 0, a turn that must end, or [`STOPPED`].
    alarm: AtomicU64,
    /// Whether some kernel has run for too long, so that its threads are to be looked at.
    hurry: AtomicBool,
    /// The index in its block of the thread whose turn it is.
    thread: AtomicU32,
    /// Counts turns, from 1.
    turn: AtomicU64,
    /// The number of the launch whose block it runs, [`HOST_CALL`], or 0.
    launch: AtomicU64,
    /// The block's index, or rank and stream of the host call.
    place: AtomicU64,
}

/// What a worker is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// A turn of a thread.
    Turn { turn: u64, launch: u64, block: u32, thread: u32 },
    /// A call of the host's, with a number of its own.
    HostCall { turn: u64, rank: u32, stream: u32 },
}

/// Why a thread must end.
pub(crate) enum Alarm {
    /// The machine stopped.
    Stopped,
    /// Its turn has taken too long.
    Overdue,
}

impl Reins {
    pub(crate) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            read: Owner::nobody(),
            written: Owner::nobody(),
            shared: zero(),
            alarm: zero(),
            hurry: AtomicBool::new(false),
            thread: AtomicU32::new(0),
            turn: zero(),
            launch: zero(),
            place: zero(),
        }
    }

    /// Whether `bytes` bytes at `offset` lie in the running block's shared memory.
    #[inline(always)]
    pub(crate) fn reaches_shared(&self, offset: u64, bytes: u64) -> bool {
        let length = self.shared.load(Ordering::Relaxed);
        offset < length && bytes <= length - offset
    }

    /// Forgets the allocations that were touched last.
    #[inline]
    pub(crate) fn forget(&self) {
        self.read.become_nobody();
        self.written.become_nobody();
    }

    /// Says how much shared memory the running block has.
    #[inline]
    pub(crate) fn share(&self, bytes: u64) {
        self.shared.store(bytes, Ordering::Relaxed);
    }

    /// Says whose block the worker runs.
    #[inline]
    pub(crate) fn enter(&self, launch: u64, block: u32, shared_bytes: u64) {
        self.share(shared_bytes);
        self.place.store(u64::from(block), Ordering::Relaxed);
        self.launch.store(launch, Ordering::Release);
    }

    /// Says that `thread` has its turn.
    #[inline(always)]
    pub(crate) fn take_turn(&self, thread: u32) {
        self.thread.store(thread, Ordering::Relaxed);
        self.turn.store(self.turn.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The thread whose turn it is.
    #[inline(always)]
    pub(crate) fn thread(&self) -> u32 {
        self.thread.load(Ordering::Relaxed)
    }

    /// Says that the worker runs a call of the host's.
    pub(crate) fn enter_host_call(&self, rank: u32, stream: u32) {
        self.take_turn(0);
        self.place.store(u64::from(rank) << 32 | u64::from(stream), Ordering::Relaxed);
        self.launch.store(HOST_CALL, Ordering::Release);
    }

    /// Says that the worker runs nothing of anybody's.
    #[inline]
    pub(crate) fn leave(&self) {
        self.launch.store(0, Ordering::Release);
    }

    /// What the worker is in the middle of. Read in pieces: what it says is sure once it says it for a while.
    pub(crate) fn doing(&self) -> Option<Doing> {
        let launch = self.launch.load(Ordering::Acquire);
        let (turn, place) = (self.turn.load(Ordering::Relaxed), self.place.load(Ordering::Relaxed));
        match launch {
            0 => None,
            HOST_CALL => Some(Doing::HostCall { turn, rank: (place >> 32) as u32, stream: place as u32 }),
            _ => Some(Doing::Turn { turn, launch, block: place as u32, thread: self.thread() }),
        }
    }

    /// Turns so far.
    pub(crate) fn turns(&self) -> u64 {
        self.turn.load(Ordering::Relaxed)
    }

    /// Ends `turn`, if it still goes on, at its thread's next call into the simulator.
    pub(crate) fn end_turn(&self, turn: u64) {
        self.ring(turn);
    }

    /// Ends every turn from now on: the machine has stopped.
    pub(crate) fn stop(&self) {
        self.ring(STOPPED);
    }

    fn ring(&self, alarm: u64) {
        // A stop is for good.
        let _ = self.alarm.fetch_max(alarm, Ordering::SeqCst);
        self.forget();
        self.share(0);
    }

    /// Asks the worker to look at the threads of kernels that have run for too long.
    pub(crate) fn hurry(&self) {
        self.hurry.store(true, Ordering::Relaxed);
    }

    /// Whether the worker was asked to look.
    #[inline(always)]
    pub(crate) fn is_hurried(&self) -> bool {
        self.hurry.load(Ordering::Relaxed)
    }

    /// Whether there is an alarm, which may be an old one.
    #[inline(always)]
    pub(crate) fn alarmed(&self) -> bool {
        self.alarm.load(Ordering::Relaxed) != 0
    }

    /// The alarm for the thread that asks, whose turn it is.
    pub(crate) fn alarm(&self) -> Option<Alarm> {
        let alarm = self.alarm.load(Ordering::SeqCst);
        if alarm == STOPPED {
            return Some(Alarm::Stopped);
        }
        if alarm != 0 && alarm == self.turn.load(Ordering::Relaxed) {
            return Some(Alarm::Overdue);
        }
        // Of a turn that is over. A newer one stays.
        let _ = self.alarm.compare_exchange(alarm, 0, Ordering::SeqCst, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_for_one_turn_or_for_good() {
        let reins = Reins::new();
        reins.enter(7, 3, 64);
        reins.take_turn(5);
        for reach in [&reins.read, &reins.written] {
            reach.become_like(&Owner::of(0x1000, 100));
            assert!(reach.holds(0x1000, 4));
        }
        let Some(Doing::Turn { turn, launch: 7, block: 3, thread: 5 }) = reins.doing() else {
            panic!("it is in a turn")
        };
        reins.end_turn(turn);
        assert!(reins.alarmed() && !reins.reaches_shared(0, 4));
        assert!(!reins.read.holds(0x1000, 4) && !reins.written.holds(0x1000, 4));
        assert!(matches!(reins.alarm(), Some(Alarm::Overdue)));
        reins.take_turn(5);
        assert!(reins.alarm().is_none(), "the turn is over");
        assert!(!reins.alarmed());
        reins.stop();
        reins.end_turn(turn);
        assert!(matches!(reins.alarm(), Some(Alarm::Stopped)));
        reins.leave();
        assert_eq!(reins.doing(), None);
    }
}
