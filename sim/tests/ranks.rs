//! Ranks that wait for each other, and their host threads.

mod rig;

use std::time::Duration;

use epoxide_sim::{SimError, device};
use rig::*;

#[test]
fn two_ranks_play_ping_pong_over_flags() {
    for mode in modes() {
        let machine = machine(2, mode);
        let flags: Vec<u64> = (0..2).map(|rank| machine.allocate(rank, 16, 256).expect("fits")).collect();
        on_all_ranks(&machine, |actor, stream| {
            let (me, peer) = (actor.rank(), 1 - actor.rank());
            let (mine, theirs) = (flags[me as usize], flags[peer as usize]);
            let ping_pong = launch("ping pong", 1, 32, move || {
                if device::thread_index() == 0 {
                    for turn in 1..=100u64 {
                        if turn % 2 == u64::from(me) {
                            // The payload is what the flag publishes.
                            device::store(word(theirs, 1), turn * 7, WEAK);
                            device::store(word(theirs, 0), turn, RELEASE);
                        } else {
                            wait_for(word(mine, 0), turn, peer, None);
                            assert_eq!(device::load::<u64>(word(mine, 1), WEAK), turn * 7);
                        }
                    }
                }
                device::warp_sync(ALL);
            });
            actor.start(stream, ping_pong).expect("a legal launch");
            actor.synchronize(stream).expect("both ranks finish");
        });
        let last = |rank: usize| machine.read(flags[rank], 1).expect("in bounds")[0];
        assert_eq!((last(0), last(1)), (99, 100), "{mode:?}");
    }
}

#[test]
fn a_seeded_schedule_finds_a_flag_that_is_raised_before_its_data() {
    let broken = |seed| {
        let machine = machine(2, epoxide_sim::Mode::Seeded { seed });
        let flag = machine.allocate(0, 16, 256).expect("fits");
        let early = std::sync::atomic::AtomicBool::new(false);
        on_all_ranks(&machine, |actor, stream| {
            let kernel = if actor.rank() == 1 {
                launch("raises too early", 1, 32, move || {
                    if device::thread_index() == 0 {
                        device::store(word(flag, 0), 1u64, RELEASE);
                        device::store(word(flag, 1), 5u64, RELAXED);
                    }
                })
            } else {
                launch("reads", 1, 32, move || {
                    if device::thread_index() == 0 {
                        wait_for(word(flag, 0), 1, 1, None);
                        assert_eq!(device::load::<u64>(word(flag, 1), WEAK), 5, "the data came late");
                    }
                })
            };
            actor.start(stream, kernel).expect("a legal launch");
            if actor.synchronize(stream).is_err() {
                early.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        });
        early.into_inner()
    };
    let found = (0..100).filter(|&seed| broken(seed)).count();
    assert!(found > 0, "no seed of 100 saw the flag before the data");
}

#[test]
fn exchange_gathers_in_rank_order_again_and_again() {
    for mode in modes() {
        let machine = machine(4, mode);
        on_all_ranks(&machine, |actor, _| {
            for round in 0..10u8 {
                let all = actor.exchange(&[actor.rank() as u8, round]).expect("all ranks come");
                let expected: Vec<Vec<u8>> = (0..4).map(|rank| vec![rank, round]).collect();
                assert_eq!(all, expected);
            }
        });
    }
}

#[test]
fn an_exchange_with_a_rank_that_is_gone_names_it() {
    for mode in modes() {
        let machine = machine(3, mode);
        let gone = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            let waiting = machine.actor(0).expect("free");
            let late = machine.actor(1).expect("free");
            let leaving = machine.actor(2).expect("free");
            scope.spawn(|| {
                let waiting = waiting;
                let error = waiting.exchange(b"early").expect_err("rank 2 never comes");
                // Rank 1 may have left, too, before this thread came.
                assert!(matches!(&error, SimError::PeerGone { ranks, rank: 0, .. } if ranks.contains(&2)), "{error}");
            });
            scope.spawn(|| {
                let leaving = leaving;
                std::thread::sleep(std::time::Duration::from_millis(2));
                drop(leaving);
                gone.wait();
            });
            gone.wait();
            let error = late.exchange(b"late").expect_err("rank 2 is gone");
            assert!(matches!(&error, SimError::PeerGone { rank: 1, ranks, .. } if ranks.contains(&2)), "{error}");
        });
    }
}

#[test]
fn a_rank_has_one_host_thread_at_a_time() {
    let machine = machine(2, modes()[0]);
    let first = machine.actor(1).expect("free");
    assert!(matches!(machine.actor(1), Err(SimError::InvalidArgument { argument: "rank", .. })));
    assert!(matches!(machine.actor(2), Err(SimError::InvalidArgument { argument: "rank", .. })));
    drop(first);
    machine.actor(1).expect("free again");
}

#[test]
fn a_host_thread_that_left_keeps_nobody_waiting_and_may_come_back() {
    for mode in modes() {
        within(Duration::from_secs(20), move || {
            let machine = machine(2, mode);
            let at = machine.allocate(0, 16, 256).expect("fits");
            let (gone, its_stream) = actor(&machine, 1);
            let (waiting, stream) = actor(&machine, 0);
            gone.leave();
            // Another thread cannot take the rank of an actor that is still there.
            assert!(matches!(machine.actor(1), Err(SimError::InvalidArgument { argument: "rank", .. })));
            let error = waiting.exchange(b"").expect_err("rank 1 left");
            assert!(matches!(&error, SimError::PeerGone { rank: 0, ranks, .. } if *ranks == [1]), "{error}");
            let deadline = Some(1_000_000_000);
            let waits = launch("waits", 1, 32, move || {
                assert!(!wait_for(word(at, 0), 1, 1, deadline), "nobody raises it");
            });
            waiting.start(stream, waits).expect("a legal launch");
            waiting.synchronize(stream).expect("the deadline passes");

            // Back again: it counts as running, so the others wait for it, and exchanges complete.
            let raises = launch("raises", 1, 32, move || {
                add(word(at, 1), 1);
            });
            gone.start(its_stream, raises).expect("a legal launch");
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let gone = gone;
                    std::thread::sleep(Duration::from_millis(20));
                    gone.synchronize(its_stream).expect("done");
                    assert_eq!(gone.exchange(b"b").expect("both come"), [b"a", b"b"]);
                    gone.leave();
                });
                assert_eq!(waiting.exchange(b"a").expect("both come"), [b"a", b"b"]);
                let hopeless = launch("hopeless", 1, 32, || {
                    wait_for(shared(0), u64::MAX, 1, None);
                });
                waiting.start(stream, hopeless).expect("a legal launch");
                let error = waiting.synchronize(stream).expect_err("nobody is left to raise it");
                assert!(error.to_string().contains("host thread of rank 1 is gone"), "{error}");
            });
        });
    }
}

#[test]
fn a_seeded_machine_takes_the_work_of_a_host_thread_that_comes_back() {
    // Rank 0 polls, with a thread that sleeps again and again, so that the machine has steps to make while rank 1 is gone.
    for seed in 0..8 {
        within(Duration::from_secs(20), move || {
            let machine = machine(2, epoxide_sim::Mode::Seeded { seed });
            let at = machine.allocate(0, 16, 256).expect("fits");
            let (back, its_stream) = actor(&machine, 1);
            let (waiting, stream) = actor(&machine, 0);
            back.leave();
            let sleeps = launch("sleeps", 1, 64, move || {
                if device::thread_index() == 0 {
                    wait_for(word(at, 0), 1, 1, None);
                } else if device::thread_index() == 32 {
                    while device::load::<u64>(word(at, 0), ACQUIRE) == 0 {
                        device::sleep_until(device::clock_ns() + 1000);
                    }
                }
            });
            waiting.start(stream, sleeps).expect("a legal launch");
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let back = back;
                    std::thread::sleep(Duration::from_millis(20));
                    let raises = launch("raises", 1, 32, move || {
                        add(word(at, 0), 1);
                    });
                    back.start(its_stream, raises).expect("a legal launch");
                    back.synchronize(its_stream).expect("done");
                });
                waiting.synchronize(stream).expect("rank 1 raises it");
                // It waits for the other thread now, which is nothing that the machine sees.
                waiting.leave();
            });
        });
    }
}
