//! Kernels that never end: each must end all the same, and nobody may hang.

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use epoxide_sim::{Launch, Machine, MachineConfig, Mode, SimError, device};
use rig::*;

const WATCHDOG: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(120);

fn watched(ranks: u32, mode: Mode) -> Machine {
    Machine::new(MachineConfig::new(ranks, mode).with_watchdog(WATCHDOG)).expect("a machine")
}

fn some_modes() -> [Mode; 4] {
    [Mode::Fast { workers: 1 }, Mode::Fast { workers: 2 }, Mode::Seeded { seed: 1 }, Mode::Seeded { seed: 2 }]
}

/// Runs a kernel whose thread 37 of block 1 does `step` for ever, and the others nothing, and looks who is named.
fn is_ended(name: &'static str, step: impl Fn(u64) + Send + Sync + Clone + 'static) {
    for mode in some_modes() {
        let step = step.clone();
        within(LIMIT, move || {
            let machine = watched(1, mode);
            let at = machine.allocate(0, 64, 256).expect("fits");
            let endless = launch(name, 3, 64, move || {
                if device::block_index() == 1 && device::thread_index() == 37 {
                    loop {
                        step(at);
                    }
                }
            });
            match run(&machine, endless) {
                Err(SimError::KernelFailed { kernel, rank: 0, block, thread, message, location, .. }) => {
                    assert_eq!((kernel, block, thread), (name, 1, 37), "{mode:?}: {message} at {location}");
                    assert!(message.contains("has not ended after 300ms"), "{name}, {mode:?}: {message}");
                    assert!(location.contains("watchdog.rs"), "{name}, {mode:?}: {location}");
                }
                other => panic!("{name}, {mode:?}: {other:?}"),
            }
        });
    }
}

#[test]
fn a_loop_of_accesses_is_ended_with_its_thread_and_line() {
    is_ended("loads", |at| {
        device::load::<u64>(word(at, 0), WEAK);
    });
    is_ended("acquires", |at| {
        device::load::<u64>(word(at, 0), ACQUIRE);
    });
    is_ended("adds", |at| {
        add(word(at, 0), 1);
    });
    is_ended("loads shared memory", |_| {
        device::load::<u32>(shared(64), WEAK);
    });
}

#[test]
fn a_loop_of_calls_that_are_no_accesses_is_ended_too() {
    is_ended("asks the time", |_| {
        let _ = device::clock_ns();
    });
    is_ended("asks who it is", |_| {
        let _ = device::thread_index();
    });
    is_ended("fences", |_| device::fence(device::Fence::Release, device::Scope::System));
    is_ended("waits for no copies", |_| device::bulk_wait(0, false));
}

#[test]
fn a_loop_that_gives_up_its_turn_is_ended_too() {
    is_ended("sleeps", |_| device::sleep_until(device::clock_ns() + 1000));
    is_ended("meets itself", |_| device::warp_sync(1 << 5));
    is_ended("polls and changes", |at| {
        let seen = add(word(at, 0), 1);
        device::poll_pause(device::PollWait {
            what: "end",
            word: word(at, 0),
            bytes: 8,
            peer: 0,
            expected: 1,
            seen,
            deadline_ns: None,
        });
    });
}

#[test]
fn a_block_whose_threads_meet_for_ever_is_ended() {
    for mode in some_modes() {
        within(LIMIT, move || {
            let endless = launch("meets", 2, 128, || {
                loop {
                    device::barrier(0, 0);
                }
            });
            let error = run(&watched(1, mode), endless).expect_err("it never ends");
            assert!(matches!(&error, SimError::KernelFailed { kernel: "meets", .. }), "{mode:?}: {error}");
            assert!(error.to_string().contains("has not ended"), "{error}");
        });
    }
}

#[test]
fn who_waits_for_a_kernel_that_never_ends_is_not_blamed() {
    // Rank 0 was launched first and polls, and makes an ordered access each time; rank 1 is what never ends.
    let endless: [(&'static str, fn()); 2] = [
        ("meets", || device::barrier(0, 0)),
        ("loads", || {
            device::load::<u64>(shared(0), WEAK);
        }),
    ];
    for (mode, (name, step)) in some_modes().into_iter().flat_map(|mode| endless.map(|case| (mode, case))) {
        within(LIMIT, move || {
            let machine = watched(2, mode);
            let at = machine.allocate(0, 8, 256).expect("fits");
            on_all_ranks(&machine, |actor, stream| {
                let kernel = if actor.rank() == 0 {
                    launch("waits", 2, 64, move || {
                        wait_for(word(at, 0), 1, 1, None);
                    })
                } else {
                    actor.exchange(b"").expect("both come");
                    launch(name, 1, 64, move || {
                        loop {
                            step();
                        }
                    })
                };
                actor.start(stream, kernel).expect("a legal launch");
                if actor.rank() == 0 {
                    actor.exchange(b"").expect("both come");
                }
                let error = actor.synchronize(stream).expect_err("it never ends");
                assert!(matches!(&error, SimError::KernelFailed { kernel, rank: 1, .. } if *kernel == name), "{error}");
            });
        });
    }
}

/// A kernel that calls nothing of the simulator until `released`, and whether it has been there.
fn deaf(released: &Arc<AtomicBool>) -> Launch {
    let released = Arc::clone(released);
    launch("deaf", 2, 64, move || {
        if device::block_index() == 1 && device::thread_index() == 33 {
            while !released.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        }
    })
}

#[test]
fn a_loop_that_calls_nothing_is_named_and_keeps_nobody() {
    for mode in some_modes() {
        within(LIMIT, move || {
            let released = Arc::new(AtomicBool::new(false));
            let machine = watched(2, mode);
            let at = machine.allocate(0, 8, 256).expect("fits");
            on_all_ranks(&machine, |actor, stream| {
                if actor.rank() == 0 {
                    actor.start(stream, deaf(&released)).expect("a legal launch");
                }
                // Rank 1 waits for rank 0, which waits for its kernel.
                let ended = match actor.rank() {
                    0 => actor.synchronize(stream),
                    _ => actor.exchange(b"").map(drop),
                };
                let error = ended.expect_err("the machine halted");
                let SimError::Endless { what, watchdog, .. } = &error else { panic!("{mode:?}: {error}") };
                assert_eq!(what, "kernel deaf on rank 0, block 1, warp 1, lane 1 (thread 33)");
                assert_eq!(*watchdog, WATCHDOG);
                assert_eq!(actor.synchronize(stream).expect_err("for good"), error);
            });
            // It may be touching anything.
            assert!(matches!(machine.read(at, 1), Err(SimError::Busy { .. })), "{mode:?}");
            drop(machine);
            // Only now does its host thread end.
            released.store(true, Ordering::Relaxed);
            let start = Instant::now();
            while Arc::strong_count(&released) > 1 {
                assert!(start.elapsed() < LIMIT, "{mode:?}: the worker is still there");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
}

#[test]
fn the_end_of_a_machine_waits_for_no_kernel_that_never_ends() {
    for mode in [Mode::Fast { workers: 1 }, Mode::Fast { workers: 2 }] {
        // One that makes accesses is ended at once, whatever the watchdog says.
        within(LIMIT, move || {
            let machine = machine(1, mode);
            let at = machine.allocate(0, 8, 256).expect("fits");
            let (actor, stream) = actor(&machine, 0);
            let started = Arc::new(AtomicBool::new(false));
            let flag = Arc::clone(&started);
            let endless = launch("loads", 1, 32, move || {
                flag.store(true, Ordering::Relaxed);
                loop {
                    device::load::<u64>(word(at, 0), WEAK);
                }
            });
            actor.start(stream, endless).expect("a legal launch");
            while !started.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            drop((actor, machine));
            assert_eq!(Arc::strong_count(&started), 1, "{mode:?}: the kernel outlived its machine");
        });
        // One that calls nothing is left behind when the watchdog's time is over.
        within(LIMIT, move || {
            let released = Arc::new(AtomicBool::new(false));
            let machine = watched(1, mode);
            let (actor, stream) = actor(&machine, 0);
            actor.start(stream, deaf(&released)).expect("a legal launch");
            std::thread::sleep(Duration::from_millis(50));
            drop((actor, machine));
            released.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn a_call_on_a_stream_that_never_returns_is_named() {
    for mode in some_modes() {
        within(LIMIT, move || {
            let machine = watched(1, mode);
            let (release, wait) = std::sync::mpsc::channel::<()>();
            let (actor, stream) = actor(&machine, 0);
            actor
                .host_call(
                    stream,
                    Box::new(move || {
                        let _ = wait.recv();
                    }),
                )
                .expect("queued");
            let error = actor.synchronize(stream).expect_err("it never returns");
            let SimError::Endless { what, .. } = &error else { panic!("{mode:?}: {error}") };
            assert_eq!(what, "a host call on stream 0 of rank 0");
            drop((actor, machine));
            drop(release);
        });
    }
}

#[test]
fn a_kernel_that_waits_for_a_host_thread_is_given_its_time() {
    // It waits for longer than the watchdog allows, and then runs for so long that the watchdog looks at it more than once.
    let watchdog = Duration::from_secs(4);
    within(LIMIT, move || {
        let config = MachineConfig::new(1, Mode::Fast { workers: 1 }).with_watchdog(watchdog);
        let machine = Machine::new(config).expect("a machine");
        let at = machine.allocate(0, 8, 256).expect("fits");
        let (actor, stream) = actor(&machine, 0);
        let other = actor.create_stream();
        let waits = launch("waits", 1, 64, move || {
            wait_for(word(at, 0), 32, 0, None);
            for _ in 0..60 {
                if device::thread_index() == 0 {
                    std::thread::sleep(watchdog / 160);
                }
                device::barrier(0, 0);
            }
        });
        actor.start(stream, waits).expect("a legal launch");
        std::thread::sleep(watchdog * 5 / 4);
        let raises = launch("raises", 1, 32, move || {
            add(word(at, 0), 1);
        });
        actor.start(other, raises).expect("a legal launch");
        actor.synchronize(stream).expect("it ends in time");
        actor.synchronize(other).expect("done");
    });
}
