//! Machines whose ranks are processes: memory is shared, and nothing else; time is the host's.
//!
//! Two such machines in one process are to each other what they are in two: the same files, mapped at other addresses.

mod rig;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use epoxide_sim::device::{self, Order, Rmw, Scope, Strength};
use epoxide_sim::{Allocation, Machine, MachineConfig, Mode, SimError};
use rig::*;

const FAST: Mode = Mode::Fast { workers: 1 };
const MS: u64 = 1_000_000;

fn config(ranks: u32) -> MachineConfig {
    MachineConfig::new(ranks, FAST).with_arena_bytes(u64::from(ranks) << 24)
}

/// The machines of `ranks` processes that have mapped each other's parts.
fn machines(config: &MachineConfig) -> Vec<Machine> {
    let machine = |rank| Machine::of_process(config.clone(), rank).expect("a machine");
    let machines: Vec<Machine> = (0..config.ranks).map(machine).collect();
    for (here, machine) in machines.iter().enumerate() {
        for (rank, peer) in machines.iter().enumerate().filter(|&(rank, _)| rank != here) {
            let part = peer.own_part().expect("its own");
            machine.map_part(rank as u32, part).expect("of the same machine");
        }
    }
    machines
}

/// Where this process finds what another one has at `address`.
fn told(from: &Machine, address: u64, to: &Machine) -> u64 {
    let (rank, offset) = from.locate(address).expect("device memory");
    to.address_of(rank, offset).expect("the same machine")
}

fn message(error: SimError) -> String {
    error.to_string()
}

#[test]
fn kernels_of_two_processes_publish_to_each_other() {
    const ROUNDS: u64 = 200;
    within(Duration::from_secs(60), || {
        let machines = machines(&config(2));
        // Of each rank: 64 words of payload, a flag behind them, a word that says that they were read, and a sum.
        let own: Vec<u64> =
            (0..).zip(&machines).map(|(rank, m)| m.allocate(rank, 8 * 67, 256).expect("fits")).collect();
        let end = std::thread::scope(|scope| {
            let run = |rank: usize| {
                let (machine, peer) = (&machines[rank], 1 - rank);
                let (mine, theirs) = (own[rank], told(&machines[peer], own[peer], machine));
                let (actor, stream) = actor(machine, rank as u32);
                let kernel = launch("ping", 1, 64, move || {
                    let thread = u64::from(device::thread_index());
                    let deadline = device::clock_ns() + 30_000 * MS;
                    for round in 1..=ROUNDS {
                        device::store(word(theirs, thread), round * 1000 + thread, WEAK);
                        device::barrier(0, 0);
                        if thread == 0 {
                            device::store(word(theirs, 64), round, RELEASE);
                            assert!(wait_for(word(mine, 64), round, peer as u32, Some(deadline)));
                        }
                        device::barrier(0, 0);
                        let seen: u64 = device::load(word(mine, thread), WEAK);
                        assert_eq!(seen, round * 1000 + thread);
                        device::barrier(0, 0);
                        if thread == 0 {
                            device::rmw(word(theirs, 66), Rmw::Add, 1u64, RELAXED);
                            device::store(word(theirs, 65), round, RELEASE);
                            assert!(wait_for(word(mine, 65), round, peer as u32, Some(deadline)));
                        }
                        device::barrier(0, 0);
                    }
                });
                actor.start(stream, kernel).expect("a launch");
                actor.synchronize(stream).expect("every round comes to its end");
                // SAFETY: words are written as words.
                unsafe { machine.peek(mine + 8 * 66, 1) }.expect("in bounds")[0]
            };
            let runs = [0, 1].map(|rank| scope.spawn(move || run(rank)));
            runs.map(|run| run.join().expect("both ranks end"))
        });
        assert_eq!(end, [ROUNDS, ROUNDS]);
    });
}

#[test]
fn bulk_copies_reach_another_process() {
    within(Duration::from_secs(60), || {
        let machines = machines(&config(3));
        let there = machines[2].allocate(2, 4096, 256).expect("fits");
        let at = told(&machines[2], there, &machines[0]);
        let (actor, stream) = actor(&machines[0], 0);
        let kernel = launch("copies", 1, 32, move || {
            if device::thread_index() != 0 {
                return;
            }
            for index in 0..8 {
                device::store(shared(8 * index), 7 + index, WEAK);
            }
            bulk_store(at, 0, 64);
            device::bulk_commit();
            device::bulk_wait(0, false);
            device::mbarrier_init(1024, 1);
            bulk_load(128, at, 64, 1024);
            arrive(1024, 64);
            assert!(try_wait(1024, 0));
            assert_eq!(device::load::<u64>(shared(128 + 56), WEAK), 14);
        });
        actor.start(stream, kernel).expect("a launch");
        actor.synchronize(stream).expect("in bounds");
        // SAFETY: the kernel has ended.
        assert_eq!(unsafe { machines[2].peek(there, 8) }.expect("in bounds"), (7..15).collect::<Vec<u64>>());
    });
}

#[test]
fn a_wait_for_another_process_ends_at_its_deadline_in_real_time() {
    within(Duration::from_secs(60), || {
        let machines = machines(&config(2));
        let flag = machines[0].allocate(0, 8, 256).expect("fits");
        let gave_up = machines[0].allocate(0, 8, 256).expect("fits");
        let (actor, stream) = actor(&machines[0], 0);
        let kernel = launch("waits", 1, 32, move || {
            let deadline = device::clock_ns() + 300 * MS;
            let came = wait_for(word(flag, 0), 1, 1, Some(deadline));
            device::store(word(gave_up, 0), u64::from(!came), WEAK);
        });
        let began = Instant::now();
        actor.start(stream, kernel).expect("a launch");
        actor.synchronize(stream).expect("no deadlock: the other process may come");
        assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
        // SAFETY: the kernel has ended.
        assert_eq!(unsafe { machines[0].peek(gave_up, 1) }.expect("in bounds"), [1]);
    });
}

#[test]
fn a_late_store_of_another_process_is_seen_and_sleep_takes_its_time() {
    within(Duration::from_secs(60), || {
        let machines = machines(&config(2));
        let flag = machines[0].allocate(0, 8, 256).expect("fits");
        let at = told(&machines[0], flag, &machines[1]);
        let (waiter, stream) = actor(&machines[0], 0);
        let kernel = launch("waits", 1, 32, move || assert!(wait_for(word(flag, 0), 1, 1, None)));
        waiter.start(stream, kernel).expect("a launch");
        let (peer, peers) = actor(&machines[1], 1);
        let late = launch("late", 1, 32, move || {
            device::sleep_until(device::clock_ns() + 200 * MS);
            if device::thread_index() == 0 {
                device::store(word(at, 0), 1u64, RELEASE);
            }
        });
        let began = Instant::now();
        peer.start(peers, late).expect("a launch");
        waiter.synchronize(stream).expect("it comes");
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
        peer.synchronize(peers).expect("it has come");
    });
}

#[test]
fn a_wait_without_a_deadline_is_ended_by_the_watchdog() {
    within(Duration::from_secs(60), || {
        let machines = machines(&config(2).with_watchdog(Duration::from_millis(200)));
        let flag = machines[0].allocate(0, 8, 256).expect("fits");
        let (actor, stream) = actor(&machines[0], 0);
        actor
            .start(stream, launch("for ever", 1, 32, move || assert!(!wait_for(word(flag, 0), 1, 1, None))))
            .expect("a launch");
        let said = message(actor.synchronize(stream).expect_err("nobody comes"));
        assert!(
            said.contains("kernel for ever failed on rank 0") && said.contains("has not ended after 200ms"),
            "{said}"
        );
    });
}

#[test]
fn what_no_other_process_can_end_is_a_deadlock_still() {
    within(Duration::from_secs(60), || {
        let machines = machines(&config(2));
        let (actor, stream) = actor(&machines[1], 1);
        let kernel = launch("stuck", 1, 32, || {
            if device::thread_index() == 0 {
                device::mbarrier_init(0, 1);
                while !try_wait(0, 0) {}
            }
        });
        actor.start(stream, kernel).expect("a launch");
        let said = message(actor.synchronize(stream).expect_err("nobody arrives"));
        assert!(said.contains("deadlock") && said.contains("waiting for mbarrier 0x0"), "{said}");
    });
}

/// Runs `kernel` in one thread of rank 0's process; what it fails with.
fn fails(machine: &Machine, kernel: impl Fn() + Send + Sync + 'static) -> String {
    let (actor, stream) = actor(machine, 0);
    let kernel = launch("wild", 1, 32, move || {
        if device::thread_index() == 0 {
            kernel()
        }
    });
    actor.start(stream, kernel).expect("a launch");
    message(actor.synchronize(stream).expect_err("it is out of bounds"))
}

#[test]
fn another_processs_memory_is_bounded_by_its_part() {
    let system = Strength { order: Order::Relaxed, scope: Scope::System };
    let past = |store: bool| {
        let machines = machines(&config(2));
        let last = machines[0].address_of(1, 0).expect("mapped");
        let end = (0..64).map(|shift| 1u64 << shift).rfind(|&offset| machines[0].address_of(1, offset).is_ok());
        // The part's last word: its size is a multiple of 64 KiB.
        let mut offset = end.expect("some");
        let mut step = offset;
        while step > 8 {
            step /= 2;
            if machines[0].address_of(1, offset + step).is_ok() {
                offset += step;
            }
        }
        let end = last + offset + 8;
        fails(&machines[0], move || {
            device::store(word(end - 8, 0), 1u64, system);
            if store { device::store(word(end, 0), 1u64, system) } else { bulk_load(0, end - 16, 32, 1024) }
        })
    };
    let said = past(true);
    assert!(said.contains("out of bounds: no live allocation is there"), "{said}");
    let said = past(false);
    assert!(
        said.contains("it is 16 bytes beyond rank 1's part of device memory, which is another process's (what is allocated there is not known here)"),
        "{said}"
    );
    // A part that is not mapped is nobody's.
    let machine = Machine::of_process(config(2), 0).expect("a machine");
    let at = machine.address_of(1, 4096).expect("its place");
    let said = fails(&machine, move || device::store(word(at, 0), 1u64, system));
    assert!(said.contains("out of bounds: no live allocation is there"), "{said}");
    // The own part has its allocations and guards.
    let machines = machines(&config(2));
    let own = machines[0].allocate(0, 64, 256).expect("fits");
    let said = fails(&machines[0], move || device::store(word(own, 8), 1u64, system));
    assert!(said.contains("it is 0 bytes behind an allocation of 64 bytes"), "{said}");
}

#[test]
fn what_is_freed_is_zero_for_everyone() {
    let machines = machines(&config(2));
    for bytes in [256u64, 8448, 1 << 20] {
        let address = machines[0].allocate(0, bytes, 256).expect("fits");
        let there = told(&machines[0], address, &machines[1]);
        let words = (bytes / 8) as usize;
        // SAFETY: nothing else uses the allocation.
        unsafe { machines[1].fill_bytes(there, 0xFF, bytes) }.expect("in bounds");
        // SAFETY: as above.
        assert!(unsafe { machines[0].peek(address, words) }.expect("in bounds").iter().all(|word| *word == u64::MAX));
        // SAFETY: as above.
        unsafe { machines[0].free(address) }.expect("live");
        assert_eq!(machines[0].allocate(0, bytes, 256).expect("fits"), address);
        for (machine, at) in [(&machines[0], address), (&machines[1], there)] {
            // SAFETY: as above.
            let seen = unsafe { machine.peek(at, words) }.expect("in bounds");
            assert!(seen.iter().all(|word| *word == 0), "{bytes} bytes");
        }
        // SAFETY: as above.
        unsafe { machines[0].free(address) }.expect("live");
    }
}

#[test]
fn the_memory_of_a_process_that_is_gone_stays_with_who_mapped_it() {
    let mut machines = machines(&config(2));
    let address = machines[0].allocate(0, 64, 256).expect("fits");
    let there = told(&machines[0], address, &machines[1]);
    // SAFETY: nothing else uses the allocation.
    unsafe { machines[0].write(address, &[5; 8]) }.expect("in bounds");
    drop(machines.remove(0));
    // SAFETY: as above.
    assert_eq!(unsafe { machines[0].peek(there, 8) }.expect("in bounds"), [5; 8]);
}

#[test]
fn a_process_has_its_own_rank_and_no_other() {
    let machines = machines(&config(2));
    let here = &machines[0];
    assert_eq!((here.process_rank(), machines[1].process_rank()), (Some(0), Some(1)));
    let rule = "rank is 1, but the rule is: 0, the rank of this process";
    assert_eq!(message(here.actor(1).expect_err("it is elsewhere")), rule);
    assert_eq!(message(here.allocate(1, 64, 256).expect_err("it is elsewhere")), rule);
    let there = machines[1].allocate_as(&Allocation::new(1, 64)).expect("fits");
    // SAFETY: nothing uses it; it is refused.
    let error = unsafe { here.free(told(&machines[1], there, here)) }.expect_err("another's");
    assert!(matches!(error, SimError::InvalidArgument { argument: "address", .. }), "{error}");
    // Nobody knows what another process does.
    let own = here.allocate(0, 64, 256).expect("fits");
    let error = here.read(own, 8).expect_err("a safe read");
    assert!(matches!(&error, SimError::Busy { what, .. } if what == "other processes may be at work"), "{error}");
    let (actor, _) = actor(here, 0);
    let error = actor.exchange(b"x").expect_err("nobody is here");
    assert!(matches!(error, SimError::PeerGone { rank: 0, .. }), "{error}");
}

#[test]
fn a_part_that_is_none_is_refused() {
    let (machine, peer) =
        (Machine::of_process(config(3), 0).expect("one"), Machine::of_process(config(3), 1).expect("another"));
    let refused = |error: Result<(), SimError>| message(error.expect_err("it is no part"));
    let part = peer.own_part().expect("its own");
    assert!(refused(machine.map_part(0, part)).starts_with("rank is 0, but the rule is: another process's rank"));
    assert!(refused(machine.map_part(3, part)).starts_with("rank is 3, but the rule is: below the machine's 3 ranks"));
    machine.map_part(1, part).expect("a part");
    assert!(refused(machine.map_part(1, part)).contains("whose part is not mapped yet"));
    let larger = Machine::of_process(config(3).with_arena_bytes(3 << 26), 2).expect("another machine's");
    assert!(
        refused(machine.map_part(2, larger.own_part().expect("its own")))
            .contains("sealed, but the rule is: a part of the same machine")
    );
    let file = std::fs::File::open("/dev/null").expect("there is one");
    assert!(refused(machine.map_part(2, file.as_fd())).contains("not sealed"));
    let alone = Machine::new(config(2)).expect("a machine");
    assert_eq!((alone.process_rank(), alone.own_part().is_none()), (None, true));
    assert!(refused(alone.map_part(1, part)).contains("this machine has all its ranks in one process"));
    for mode in [Mode::Seeded { seed: 1 }, Mode::Fast { workers: 2 }] {
        let said = message(Machine::of_process(MachineConfig::new(2, mode), 0).expect_err("fast, with one worker"));
        assert!(said.contains("Mode::Fast with one worker where ranks are processes"), "{said}");
    }
    assert!(message(Machine::of_process(config(2), 2).expect_err("no rank")).contains("below the machine's 2 ranks"));
}
