//! Host threads that are busy elsewhere: nobody waits for them for ever.

mod rig;

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use epoxide_sim::{Machine, MachineConfig, Mode, SimError, device};
use rig::*;

const PATIENCE: Duration = Duration::from_millis(200);
const LIMIT: Duration = Duration::from_secs(60);
const HUNDRED_SECONDS: u64 = 100_000_000_000;

fn impatient(ranks: u32, mode: Mode) -> Machine {
    Machine::new(MachineConfig::new(ranks, mode).with_patience(PATIENCE)).expect("a machine")
}

fn fast() -> [Mode; 2] {
    [1, 2].map(|workers| Mode::Fast { workers })
}

/// What `rank0` of two returns while the host thread of rank 1 waits for something that is none of the machine's.
fn beside_a_busy_host<T>(machine: &Machine, rank0: impl FnOnce() -> T) -> T {
    let (done, wait) = channel::<()>();
    std::thread::scope(|scope| {
        let (busy, _stream) = actor(machine, 1);
        scope.spawn(move || {
            let _busy = busy;
            let _ = wait.recv();
        });
        let result = rank0();
        drop(done);
        result
    })
}

#[test]
fn a_deadline_passes_although_another_host_thread_is_busy_elsewhere() {
    for mode in fast() {
        within(LIMIT, move || {
            let machine = impatient(2, mode);
            let at = machine.allocate(0, 16, 256).expect("fits");
            let start = Instant::now();
            beside_a_busy_host(&machine, || {
                let (actor, stream) = actor(&machine, 0);
                for round in 1..=2 {
                    let kernel = launch("waits for rank 1", 4, 64, move || {
                        if device::thread_index() == 0 {
                            add(word(at, 1), u64::from(!wait_for(word(at, 0), 1, 1, Some(round * HUNDRED_SECONDS))));
                        }
                        device::barrier(0, 0);
                    });
                    actor.start(stream, kernel).expect("a legal launch");
                    actor.synchronize(stream).expect("the kernel gives up by itself");
                }
            });
            assert_eq!(machine.read(at, 2).expect("in bounds"), [0, 8], "{mode:?}");
            assert!(start.elapsed() >= PATIENCE, "{mode:?}: after {:?} it was no patience", start.elapsed());
        });
    }
}

#[test]
fn a_host_thread_that_never_comes_is_waited_for_no_longer_than_a_busy_one() {
    for mode in fast() {
        within(LIMIT, move || {
            let machine = impatient(2, mode);
            let (actor, stream) = actor(&machine, 0);
            let kernel = launch("waits", 1, 32, || assert!(!wait_for(shared(0), 1, 1, Some(HUNDRED_SECONDS))));
            actor.start(stream, kernel).expect("a legal launch");
            actor.synchronize(stream).expect("the deadline passes");
            let error = actor.exchange(b"").expect_err("rank 1 does not come");
            assert!(matches!(&error, SimError::PeerSilent { rank: 0, ranks, .. } if *ranks == [1]), "{error}");
            let hopeless = launch("hopeless", 1, 32, || {
                wait_for(shared(0), 1, 1, None);
            });
            actor.start(stream, hopeless).expect("a legal launch");
            let error = actor.synchronize(stream).expect_err("nobody raises it").to_string();
            assert!(error.contains("polling flag of peer 1"), "{error}");
            assert!(error.contains("host thread of rank 1 has not come for 200ms"), "{error}");
            // It is there all the same.
            assert!(machine.actor(1).is_ok());
        });
    }
}

#[test]
fn a_wait_without_a_deadline_beside_a_busy_host_thread_is_a_deadlock_that_names_it() {
    for mode in fast() {
        within(LIMIT, move || {
            let machine = impatient(2, mode);
            let error = beside_a_busy_host(&machine, || {
                let (actor, stream) = actor(&machine, 0);
                let hopeless = launch("hopeless", 3, 32, || {
                    wait_for(shared(0), 1, 1, None);
                });
                actor.start(stream, hopeless).expect("a legal launch");
                actor.synchronize(stream).expect_err("rank 1 does not raise it").to_string()
            });
            for part in ["block 2, warp 0", "polling flag of peer 1", "host thread of rank 1 runs elsewhere"] {
                assert!(error.contains(part), "{mode:?}: no {part:?} in {error}");
            }
        });
    }
}

#[test]
fn nothing_is_a_deadlock_as_long_as_no_host_thread_waits() {
    for mode in fast() {
        within(LIMIT, move || {
            let machine = impatient(1, mode);
            let at = machine.allocate(0, 8, 256).expect("fits");
            let (actor, stream) = actor(&machine, 0);
            let other = actor.create_stream();
            let waits = launch("waits", 1, 32, move || {
                wait_for(word(at, 0), 32, 0, None);
            });
            actor.start(stream, waits).expect("a legal launch");
            // Busy elsewhere, for longer than the patience.
            std::thread::sleep(3 * PATIENCE);
            let raises = launch("raises", 1, 32, move || {
                add(word(at, 0), 1);
            });
            actor.start(other, raises).expect("the machine goes on");
            actor.synchronize(stream).expect("it is raised");
            actor.synchronize(other).expect("done");
        });
    }
}

#[test]
fn an_exchange_ends_with_the_ranks_that_did_not_come() {
    for mode in fast() {
        within(LIMIT, move || {
            let machine = impatient(3, mode);
            beside_a_busy_host(&machine, || {
                std::thread::scope(|scope| {
                    for rank in [0, 2] {
                        let (waiting, _stream) = actor(&machine, rank);
                        scope.spawn(move || {
                            let error = waiting.exchange(b"").expect_err("rank 1 does not come");
                            let SimError::PeerSilent { rank: who, ranks, patience, .. } = &error else {
                                panic!("{error}")
                            };
                            assert!(*who == rank && ranks.contains(&1) && !ranks.contains(&rank), "{error}");
                            assert_eq!(*patience, PATIENCE);
                            assert!(
                                error.to_string().contains(&format!("rank {rank} gave up its exchange")),
                                "{error}"
                            );
                            // The other one is told in the same moment, and waits no longer than this one.
                            waiting.leave();
                        });
                    }
                });
            });
        });
    }
}

#[test]
fn a_seeded_machine_halts_with_the_ranks_whose_host_threads_are_busy() {
    for seed in 0..3 {
        within(LIMIT, move || {
            let machine = impatient(2, Mode::Seeded { seed });
            let error = beside_a_busy_host(&machine, || {
                let (actor, stream) = actor(&machine, 0);
                let kernel = launch("waits", 1, 32, || {
                    wait_for(shared(0), 1, 1, Some(HUNDRED_SECONDS));
                });
                actor.start(stream, kernel).expect("a legal launch");
                actor.synchronize(stream).expect_err("it cannot step")
            });
            assert!(matches!(&error, SimError::HostBusy { ranks, .. } if *ranks == [1]), "{error}");
            assert!(error.to_string().contains("ranks [1]"), "{error}");
        });
        within(LIMIT, move || {
            let machine = impatient(2, Mode::Seeded { seed });
            let error = beside_a_busy_host(&machine, || actor(&machine, 0).0.exchange(b"").expect_err("it is alone"));
            assert!(matches!(&error, SimError::HostBusy { ranks, .. } if *ranks == [1]), "{error}");
            // For everyone, and for good.
            assert_eq!(machine.actor(0).expect("free").exchange(b"").expect_err("it halted"), error);
        });
    }
}

#[test]
fn a_long_call_on_a_stream_is_no_stillness() {
    // Rank 0 waits for rank 1, whose host thread waits for what its call on a stream sends, for longer than the patience. Long
    // enough that a rank which only wants a turn on the host is not taken for a busy one.
    let patience = Duration::from_secs(1);
    within(LIMIT, move || {
        let config = MachineConfig::new(2, Mode::Fast { workers: 2 }).with_patience(patience);
        let machine = Machine::new(config).expect("a machine");
        on_all_ranks(&machine, |actor, stream| {
            if actor.rank() == 1 {
                let (send, receive) = channel();
                let call = move || {
                    std::thread::sleep(5 * patience / 2);
                    send.send(7).expect("it is waited for");
                };
                actor.host_call(stream, Box::new(call)).expect("queued");
                assert_eq!(receive.recv(), Ok(7));
            }
            let all = actor.exchange(&[actor.rank() as u8]).expect("both come");
            assert_eq!(all, [[0], [1]]);
        });
    });
}

#[test]
fn limits_out_of_range_are_refused() {
    let config = || MachineConfig::new(1, Mode::Fast { workers: 1 });
    for (config, name) in
        [(config().with_patience(Duration::ZERO), "patience"), (config().with_watchdog(Duration::ZERO), "watchdog")]
    {
        let error = Machine::new(config).expect_err("no time at all");
        assert!(matches!(&error, SimError::InvalidArgument { argument, .. } if *argument == name), "{error}");
    }
    // For ever is a patience, too.
    Machine::new(config().with_patience(Duration::MAX).with_watchdog(Duration::MAX)).expect("a machine");
}
