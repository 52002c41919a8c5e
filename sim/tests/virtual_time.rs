//! Virtual time: deadlines, sleeps, and what does not make time pass.

mod rig;

use std::time::{Duration, Instant};

use epoxide_sim::{Mode, SimError, device};
use rig::*;

const HUNDRED_SECONDS: u64 = 100_000_000_000;

#[test]
fn a_deadline_for_an_absent_peer_ends_in_milliseconds_of_wall_time() {
    for mode in modes() {
        let machine = machine(2, mode);
        let at = machine.allocate(0, 16, 256).expect("fits");
        let start = Instant::now();
        run(
            &machine,
            launch("waits for rank 1", 4, 64, move || {
                if device::thread_index() == 0 && !wait_for(word(at, 0), 1, 1, Some(HUNDRED_SECONDS)) {
                    add(word(at, 1), device::clock_ns() / HUNDRED_SECONDS);
                }
                device::barrier(0, 0);
            }),
        )
        .expect("the kernel gives up by itself");
        assert_eq!(machine.read(at, 2).expect("in bounds"), [0, 4], "{mode:?}");
        assert!(start.elapsed() < Duration::from_secs(5), "{mode:?} took {:?}", start.elapsed());
    }
}

#[test]
fn no_deadline_passes_while_a_host_thread_is_running() {
    for mode in modes() {
        let machine = machine(2, mode);
        let at = machine.allocate(0, 16, 256).expect("fits");
        on_all_ranks(&machine, |actor, stream| {
            if actor.rank() == 0 {
                actor
                    .start(
                        stream,
                        launch("waits", 1, 32, move || {
                            assert!(wait_for(word(at, 0), 32, 1, Some(HUNDRED_SECONDS)), "a false timeout");
                        }),
                    )
                    .expect("a legal launch");
            } else {
                // Busy elsewhere, as a host thread that loads weights is.
                std::thread::sleep(Duration::from_millis(50));
                actor
                    .start(
                        stream,
                        launch("raises", 1, 32, move || {
                            add(word(at, 0), 1);
                        }),
                    )
                    .expect("a legal launch");
            }
            actor.synchronize(stream).expect("no timeout");
        });
        assert!(machine.virtual_ns() < HUNDRED_SECONDS, "{mode:?}");
    }
}

#[test]
fn sleepers_wake_in_the_order_of_their_times() {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 8 * 33, 256).expect("fits");
        run(
            &machine,
            launch("sleepers", 1, 32, move || {
                let lane = u64::from(device::thread_index());
                let until = 1_000_000_000 * (32 - lane);
                device::sleep_until(until);
                assert!(device::clock_ns() >= until);
                device::store(word(at, 1 + lane), add(word(at, 0), 1), WEAK);
            }),
        )
        .expect("everyone wakes");
        let expected: Vec<u64> = (0..32).map(|lane| 31 - lane).collect();
        assert_eq!(machine.read(at + 8, 32).expect("in bounds"), expected, "{mode:?}");
    }
}

#[test]
fn a_thread_that_only_polls_makes_no_time_pass() {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 16, 256).expect("fits");
        machine.expect_actors(&[0]).expect("in range");
        let (actor, stream) = actor(&machine, 0);
        let other = actor.create_stream();
        actor
            .start(
                stream,
                launch("polls", 1, 32, move || {
                    if device::thread_index() == 0 {
                        let start = device::clock_ns();
                        wait_for(word(at, 0), 1, 0, None);
                        device::store(word(at, 1), device::clock_ns() - start, WEAK);
                    }
                }),
            )
            .expect("a legal launch");
        // The host call takes wall time and no virtual time.
        let handle = machine.clone();
        actor
            .host_call(
                other,
                Box::new(move || {
                    std::thread::sleep(Duration::from_millis(10));
                    // SAFETY: a word that the kernel polls, and nobody has a reference to.
                    unsafe { handle.write(at, &[1]) }.expect("in bounds");
                }),
            )
            .expect("queued");
        actor.synchronize(stream).expect("the flag comes");
        actor.synchronize(other).expect("done");
        let passed = machine.read(at, 2).expect("in bounds")[1];
        assert!(passed < 1000, "{mode:?}: {passed} ns of virtual time for one wait");
    }
}

#[test]
fn many_pollers_keep_no_deadline_and_no_report_waiting() {
    // Grid, threads, and the deadline: where there is none, a report must come.
    for (grid, threads, deadline) in [(1, 1024, None), (32, 128, Some(HUNDRED_SECONDS)), (4, 512, None)] {
        for seed in 0..3 {
            within(Duration::from_secs(20), move || {
                let machine = machine(1, Mode::Seeded { seed });
                let at = machine.allocate(0, 8, 256).expect("fits");
                let polls = launch("polls", grid, threads, move || {
                    wait_for(word(at, 0), 1, 0, deadline);
                });
                match (run(&machine, polls), deadline) {
                    (Ok(()), Some(_)) => assert!(machine.virtual_ns() >= HUNDRED_SECONDS),
                    (Err(SimError::Deadlock { .. }), None) => {}
                    (other, _) => panic!("{grid} x {threads}, seed {seed}: {other:?}"),
                }
            });
        }
    }
}

#[test]
fn a_sleeper_wakes_although_others_never_rest() {
    // 992 threads whose polls change memory each time, and one that must wake to end them.
    for seed in 0..3 {
        within(Duration::from_secs(20), move || {
            let machine = machine(1, Mode::Seeded { seed });
            let at = machine.allocate(0, 16, 256).expect("fits");
            let restless = launch("restless", 1, 1024, move || {
                if device::thread_index() < 992 {
                    while device::load::<u64>(word(at, 0), ACQUIRE) == 0 {
                        let seen = add(word(at, 1), 1);
                        device::poll_pause(device::PollWait {
                            what: "end",
                            word: word(at, 0),
                            bytes: 8,
                            peer: 0,
                            expected: 1,
                            seen,
                            deadline_ns: None,
                        });
                    }
                } else if device::thread_index() == 992 {
                    device::sleep_until(10_000);
                    device::store(word(at, 0), 1u64, RELEASE);
                }
            });
            run(&machine, restless).expect("the sleeper ends it");
        });
    }
}

#[test]
fn time_ends_at_its_largest_value_and_never_wraps() {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 16, 256).expect("fits");
        run(
            &machine,
            launch("sleeps for ever", 2, 64, move || {
                assert!(!wait_for(word(at, 0), 1, 0, Some(u64::MAX - 1)), "nobody raises it");
                device::sleep_until(u64::MAX);
                // Turns that take time.
                for _ in 0..10 {
                    device::barrier(0, 0);
                }
                assert_eq!(device::clock_ns(), u64::MAX);
                assert!(!wait_for(word(at, 0), 1, 0, Some(u64::MAX)), "nobody raises it");
            }),
        )
        .expect("time saturates");
        assert_eq!(machine.virtual_ns(), u64::MAX, "{mode:?}");
    }
}
