//! What the behaviour tests share: machines of one line, launches of one line, words of device memory.

#![allow(dead_code, reason = "each test binary uses its own part of the rig")]

use std::time::Duration;

use epoxide_sim::device::{self, Address, BulkCopy, Completion, Order, PollWait, Rmw, Scope, Space, Strength};
use epoxide_sim::{Actor, Launch, Machine, MachineConfig, Mode, SimError, Stream};

pub const WEAK: Strength = Strength { order: Order::Weak, scope: Scope::Gpu };
pub const ACQUIRE: Strength = Strength { order: Order::Acquire, scope: Scope::System };
pub const RELEASE: Strength = Strength { order: Order::Release, scope: Scope::System };
pub const RELAXED: Strength = Strength { order: Order::Relaxed, scope: Scope::System };
pub const ALL: u32 = u32::MAX;

/// Both kinds of mode; a behaviour must hold in each.
pub fn modes() -> Vec<Mode> {
    let seeds = (0..8).map(|seed| Mode::Seeded { seed });
    [Mode::Fast { workers: 1 }, Mode::Fast { workers: 2 }].into_iter().chain(seeds).collect()
}

pub fn machine(ranks: u32, mode: Mode) -> Machine {
    Machine::new(MachineConfig::new(ranks, mode)).expect("a machine")
}

pub fn launch(kernel: &'static str, grid: u32, threads: u32, entry: impl Fn() + Send + Sync + 'static) -> Launch {
    Launch::new(kernel, grid, threads, entry).with_shared_bytes(4096)
}

/// Runs one kernel on rank 0 of a machine whose other ranks have no host threads.
pub fn run(machine: &Machine, launch: Launch) -> Result<(), SimError> {
    machine.expect_actors(&[0])?;
    let (actor, stream) = actor(machine, 0);
    actor.start(stream, launch)?;
    actor.synchronize(stream)
}

/// [`Actor::launch`] of a test's kernel.
pub trait Start {
    fn start(&self, stream: Stream, launch: Launch) -> Result<(), SimError>;
}

impl Start for Actor {
    fn start(&self, stream: Stream, launch: Launch) -> Result<(), SimError> {
        // SAFETY: the frames of the tests' kernels hold numbers, addresses and closures of these, or end before they
        // call anything of `device`.
        unsafe { self.launch(stream, launch) }
    }
}

pub fn actor(machine: &Machine, rank: u32) -> (Actor, Stream) {
    let actor = machine.actor(rank).expect("the rank is free");
    let stream = actor.create_stream();
    (actor, stream)
}

/// Runs `body` as the host thread of every rank.
pub fn on_all_ranks(machine: &Machine, body: impl Fn(&Actor, Stream) + Sync) {
    std::thread::scope(|scope| {
        for rank in 0..machine.config().ranks {
            let body = &body;
            scope.spawn(move || {
                let (actor, stream) = actor(machine, rank);
                body(&actor, stream);
            });
        }
    });
}

/// Runs `body` on a thread of its own, and fails when it is not done in time: a hang of the machine ends the test.
pub fn within(limit: Duration, body: impl FnOnce() + Send + 'static) {
    let (done, ended) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        // Sent when it is dropped, too: a panic is an end.
        let _done = done;
        body();
    });
    let outcome = ended.recv_timeout(limit);
    assert_ne!(outcome, Err::<(), _>(std::sync::mpsc::RecvTimeoutError::Timeout), "not done in {limit:?}");
    thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
}

/// Word `index` of 8-byte words at device address `base`.
pub fn word(base: u64, index: u64) -> Address {
    Address { space: Space::Global, at: base + 8 * index }
}

pub fn shared(at: u64) -> Address {
    Address { space: Space::Shared, at }
}

/// Waits for a flag in device memory.
#[track_caller]
pub fn wait_for(flag: Address, expected: u64, peer: u32, deadline_ns: Option<u64>) -> bool {
    loop {
        let seen = device::load::<u64>(flag, ACQUIRE);
        if seen >= expected {
            return true;
        }
        if deadline_ns.is_some_and(|deadline| device::clock_ns() >= deadline) {
            return false;
        }
        device::poll_pause(PollWait { what: "flag", word: flag, bytes: 8, peer, expected, seen, deadline_ns });
    }
}

#[track_caller]
pub fn add(at: Address, value: u64) -> u64 {
    device::rmw(at, Rmw::Add, value, RELAXED)
}

/// Starts a copy to shared memory, whose bytes count towards `mbarrier`.
#[track_caller]
pub fn bulk_load(to: u32, from: u64, bytes: u32, mbarrier: u32) {
    let completion = Completion::Mbarrier(mbarrier);
    let to = shared(u64::from(to));
    device::bulk_copy(BulkCopy { from: word(from, 0), to, bytes, completion, reduction: None });
}

/// Starts a copy to device memory, in the thread's open group.
#[track_caller]
pub fn bulk_store(to: u64, from: u32, bytes: u32) {
    let from = shared(u64::from(from));
    device::bulk_copy(BulkCopy { from, to: word(to, 0), bytes, completion: Completion::Group, reduction: None });
}

/// Announces bytes at an mbarrier and arrives, releasing within the block.
#[track_caller]
pub fn arrive(at: u32, bytes: u32) {
    device::mbarrier_arrive(at, 1, bytes, Strength { order: Order::Release, scope: Scope::Block });
}

/// Whether an mbarrier's phase is complete, acquiring within the block.
#[track_caller]
pub fn try_wait(at: u32, parity: u32) -> bool {
    device::mbarrier_try_wait(at, parity, Strength { order: Order::Acquire, scope: Scope::Block })
}
