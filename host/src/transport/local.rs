//! What the ranks of a process leave behind: as threads, every rank's device memory is addressable by all.
//!
//! Windows belong to the group. A rank that drops its buffer leaves it here with the event after its last work, and a rank that goes
//! leaves its streams and the memory of its tensors. The last rank of the group waits for all those events, then destroys and
//! frees everything: until then a peer may still read a window, and on a GPU freeing waits for the whole device, where a peer
//! may be waiting for this rank. What all ranks have dropped of a buffer goes earlier, when they meet to make the next one
//! ([`LocalGroupState::dropped`]).
//!
//! A rank that is a process is a group of its own here. It waits for its work, and takes away what it has: of a window its own mappings, since
//! those of its peers keep the memory. A simulated one frees nothing: its memory is there as long as it or a peer is, and goes with the last.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::alarm::Alarm;
use crate::error::Result;
use crate::gone::Gone;
use crate::pool::Pool;
use crate::runtime::{Heap, LeftStreams, Mapped, RawEvent, Reservation, Runtime, Segments};
use crate::transport::windows::{Transport, Window};

/// Which buffer's part it is that a rank has dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OfBuffer {
    pub rank: u32,
    /// Among those of the group, the same on every rank.
    pub number: u64,
    /// SMs that were reserved for it.
    pub blocks: u32,
}

/// What a rank leaves behind: a buffer's part, or its own.
pub(crate) struct LeftBehind {
    /// The buffer, where all ranks had made it.
    pub of: Option<OfBuffer>,
    /// The rank, where it is gone, and this its own part.
    pub rank: Option<u32>,
    /// What frees it: ranks may be on different devices.
    pub heap: Heap,
    /// The points of the rank's streams after which the rank itself uses nothing of it any more; an error where there is no
    /// knowing.
    pub after: Vec<Result<RawEvent>>,
    /// The streams themselves, when the rank is gone.
    pub streams: LeftStreams,
    /// SMs that the rank's work may fill until then.
    pub sms: Option<Reservation>,
    /// Its memory for tensors, none of which is there any more.
    pub tensors: Vec<Pool<Segments>>,
    /// What peers have addressed.
    pub windows: Vec<Window>,
    /// Other device memory.
    pub memory: Vec<u64>,
    /// Memory shared with the host.
    pub mapped: Vec<Mapped>,
}

impl LeftBehind {
    /// Nothing yet.
    pub(crate) fn of(runtime: &Runtime) -> Self {
        Self {
            of: None,
            rank: None,
            heap: runtime.heap(),
            after: Vec::new(),
            streams: None,
            sms: None,
            tensors: Vec::new(),
            windows: Vec::new(),
            memory: Vec::new(),
            mapped: Vec::new(),
        }
    }

    /// Whether the rank is known to use nothing of it any more, without waiting.
    fn is_over_by_now(&self) -> bool {
        self.after.iter().all(|event| event.as_ref().is_ok_and(RawEvent::is_reached))
    }

    /// Waits until the rank uses nothing of it any more; false if there is no knowing.
    fn is_over(&self, runtime: &Runtime) -> bool {
        // All are waited for, also behind a failure.
        let over =
            |event: &Result<RawEvent>| event.as_ref().is_ok_and(|event| runtime.synchronize_event(event).is_ok());
        self.after.iter().filter(|event| !over(event)).count() == 0
    }

    /// Frees it, as far as the device lets it.
    ///
    /// # Safety
    ///
    /// Nobody uses any of it any more, on the host or on any stream.
    pub(crate) unsafe fn free(self) {
        // Nobody is left to tell of a failure; the memory stays with the device then.
        if let Some(streams) = self.streams {
            streams.destroy_idle();
        }
        for mut tensors in self.tensors {
            // SAFETY: nobody uses what the rank's tensors had, by the caller's promise.
            let _ = unsafe { tensors.give_back() };
        }
        for window in self.windows {
            // SAFETY: whoever put it here left it to this one free; this rank uses no window any more.
            let _ = unsafe { window.free(&self.heap) };
        }
        for address in self.memory {
            // SAFETY: whoever put it here allocated it on this heap's device and left it to this one free; nobody uses it.
            let _ = unsafe { self.heap.free(address) };
        }
        for mapped in self.mapped {
            // SAFETY: whoever put it here allocated it as mapped memory and left it to this one free; neither side uses it.
            let _ = unsafe { self.heap.free_mapped(mapped) };
        }
        drop(self.sms);
    }

    /// Leaves the memory where it is, for as long as its device is there: on a GPU until the process ends. A simulated machine is
    /// gone with the last who holds it.
    fn keep(self) {
        if self.heap.outlives_its_ranks() {
            std::mem::forget(self);
        }
    }
}

/// What the members of a group have left, until the last of them is gone.
struct Departures<T> {
    /// Members that are not gone.
    members: u32,
    left: Vec<T>,
}

impl<T> Departures<T> {
    /// A member goes; everything that was left, if it is the last.
    fn leave(&mut self, own: T) -> Vec<T> {
        self.left.push(own);
        self.members = self.members.saturating_sub(1);
        if self.members == 0 { std::mem::take(&mut self.left) } else { Vec::new() }
    }
}

/// Frees everything once all of it is over. If one is not (a device has failed), everything is kept: what still runs on another
/// device may use it.
fn settle<T>(left: Vec<T>, is_over: impl Fn(&T) -> bool, free: impl Fn(T), keep: impl Fn(T)) {
    let all_over = left.iter().filter(|one| !is_over(one)).count() == 0;
    left.into_iter().for_each(|one| if all_over { free(one) } else { keep(one) });
}

/// What the ranks of a process share.
pub(crate) struct LocalGroupState {
    /// Unique in the process.
    id: u64,
    departures: Mutex<Departures<LeftBehind>>,
    /// Of the ranks that are here.
    alarms: Mutex<Vec<Arc<Alarm>>>,
    transport: Transport,
}

impl LocalGroupState {
    /// A group without members, which are threads of one process or simulated.
    pub(crate) fn new() -> Arc<Self> {
        Self::over(Transport::Local)
    }

    /// A group without members, whose windows are shared so. The transport ends with the group, behind all that was left.
    pub(crate) fn over(transport: Transport) -> Arc<Self> {
        static GROUPS: AtomicU64 = AtomicU64::new(1);
        let departures = Mutex::new(Departures { members: 0, left: Vec::new() });
        let alarms = Mutex::default();
        Arc::new(Self { id: GROUPS.fetch_add(1, Ordering::Relaxed), departures, alarms, transport })
    }

    /// The id of the group's buffer `number`, unique in the process.
    pub(crate) fn buffer_id(&self, number: u64) -> u64 {
        self.id << 32 | number
    }

    /// How windows are shared.
    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Counts a rank in, which will [`leave`](Self::leave). Ranks are counted as they are made: if a later one cannot be, those
    /// that are there still find out which of them is the last.
    pub(crate) fn join(&self) {
        self.departures().members += 1;
    }

    /// Adds the alarm of a rank that is here.
    pub(crate) fn hear(&self, alarm: Arc<Alarm>) {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner).push(alarm);
    }

    /// Raises the alarms of all ranks that are here, the one's that is gone too.
    pub(crate) fn raise(&self, rank: u32, how: &Gone) {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|alarm| alarm.raise(rank, how));
    }

    /// Takes over a rank's part of a buffer. Waits for nobody and frees nothing.
    pub(crate) fn take_over(&self, part: LeftBehind) {
        self.departures().left.push(part);
    }

    /// Whether a rank is gone, and whatever it had on its streams has come by: nothing of it writes any more.
    pub(crate) fn has_ended(&self, rank: u32) -> bool {
        self.departures().left.iter().any(|one| one.rank == Some(rank) && one.is_over_by_now())
    }

    /// Numbers of the buffers that a rank has dropped, and uses nothing of any more.
    pub(crate) fn dropped(&self, rank: u32) -> Vec<u64> {
        let departures = self.departures();
        let left = departures.left.iter().filter(|one| one.is_over_by_now());
        left.filter_map(|one| one.of.filter(|of| of.rank == rank)).map(|of| of.number).collect()
    }

    /// Gives back a rank's parts of these buffers.
    pub(crate) fn take_back(&self, rank: u32, numbers: &[u64]) -> Vec<LeftBehind> {
        let is_one = |of: OfBuffer| of.rank == rank && numbers.contains(&of.number);
        self.departures().left.extract_if(.., |one| one.of.is_some_and(is_one)).collect()
    }

    /// Takes over what a rank itself leaves; the rank is gone, and the last one frees everything.
    pub(crate) fn leave(&self, runtime: &Runtime, own: LeftBehind) {
        let left = self.departures().leave(own);
        let is_over = |one: &LeftBehind| one.is_over(runtime) && runtime.frees_what_is_left();
        // SAFETY: the last rank is gone, so no host code holds any of it, and `settle` frees only when all streams have passed
        // the last use of every rank's, all of which are of this process.
        settle(left, is_over, |one| unsafe { one.free() }, LeftBehind::keep);
    }

    fn departures(&self) -> MutexGuard<'_, Departures<LeftBehind>> {
        self.departures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number in its group of the buffer with this id.
pub(crate) fn number(buffer_id: u64) -> u64 {
    buffer_id & 0xffff_ffff
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use epoxide_sim::{Machine, MachineConfig, Mode};

    use super::*;
    use crate::runtime::sim::SimRuntime;

    #[test]
    fn only_the_last_member_gets_what_all_left() {
        let mut group = Departures { members: 3, left: vec!["a buffer of rank 1"] };
        assert!(group.leave("rank 1").is_empty());
        group.left.push("a buffer of rank 0");
        assert!(group.leave("rank 2").is_empty());
        assert_eq!(group.leave("rank 0"), ["a buffer of rank 1", "rank 1", "a buffer of rank 0", "rank 2", "rank 0"]);
        assert!(group.left.is_empty());
    }

    /// Of a group of three, say: the third could not be made.
    #[test]
    fn a_group_that_was_made_in_part_has_a_last_rank_too() {
        let machine = Machine::new(MachineConfig::new(2, Mode::Fast { workers: 1 })).unwrap();
        let ranks = [0, 1].map(|rank| Runtime::Sim(SimRuntime::new(machine.actor(rank).unwrap())));
        let memory = ranks.each_ref().map(|rank| rank.allocate("a test", 1000, &[]).unwrap());
        let group = LocalGroupState::new();
        ranks.iter().for_each(|_| group.join());
        for (rank, address) in ranks.iter().zip(memory) {
            group.leave(rank, LeftBehind { memory: vec![address], ..LeftBehind::of(rank) });
        }
        for address in memory {
            // SAFETY: nothing uses it.
            unsafe { machine.free(address) }.expect_err("the last rank has freed it");
        }
    }

    #[test]
    fn everything_is_waited_for_before_anything_is_freed() {
        let log = RefCell::new(Vec::new());
        let is_over = |rank: &u32| {
            log.borrow_mut().push(format!("wait {rank}"));
            true
        };
        let free = |rank| log.borrow_mut().push(format!("free {rank}"));
        settle(vec![0, 1], is_over, free, |rank| panic!("rank {rank}'s was kept"));
        assert_eq!(*log.borrow(), ["wait 0", "wait 1", "free 0", "free 1"]);
    }

    #[test]
    fn behind_a_failure_the_others_are_waited_for_and_all_is_kept() {
        let log = RefCell::new(Vec::new());
        let is_over = |rank: &u32| {
            log.borrow_mut().push(format!("wait {rank}"));
            *rank != 1
        };
        let keep = |rank| log.borrow_mut().push(format!("keep {rank}"));
        settle(vec![0, 1, 2], is_over, |rank| panic!("rank {rank}'s was freed"), keep);
        assert_eq!(*log.borrow(), ["wait 0", "wait 1", "wait 2", "keep 0", "keep 1", "keep 2"]);
    }
}
