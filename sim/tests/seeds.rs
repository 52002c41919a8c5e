//! One seed is one schedule.

mod rig;

use std::collections::HashSet;

use epoxide_sim::{Mode, device};
use rig::*;

/// Four ranks, each with two kernels on two streams, host calls, exchanges and cross-rank flags. Returns the trace and
/// the order in which tickets were drawn, both of which a schedule determines.
fn scenario(seed: u64, jitter: bool) -> (u64, Vec<u64>) {
    let machine = machine(4, Mode::Seeded { seed });
    let at = machine.allocate(0, 8 * 1024, 256).expect("fits");
    on_all_ranks(&machine, |actor, stream| {
        let rank = u64::from(actor.rank());
        if jitter {
            // Host threads come in any order and at any speed; the schedule must not notice.
            std::thread::sleep(std::time::Duration::from_micros(rank * 300 % 700));
        }
        let other = actor.create_stream();
        for round in 0..3u64 {
            actor.exchange(&[0]).expect("all come");
            actor
                .start(
                    stream,
                    launch("tickets", 2, 64, move || {
                        if device::thread_index().is_multiple_of(16) {
                            let ticket = add(word(at, 0), 1);
                            let who = round << 32
                                | rank << 16
                                | u64::from(device::block_index()) << 8
                                | u64::from(device::thread_index());
                            device::store(word(at, 1 + ticket), who, RELAXED);
                        }
                        device::barrier(0, 0);
                    }),
                )
                .expect("a legal launch");
            actor
                .start(
                    other,
                    launch("flags", 1, 32, move || {
                        if device::thread_index() == 0 {
                            add(word(at, 1000), 1);
                            wait_for(word(at, 1000), 4 * (round + 1), 0, None);
                        }
                        device::warp_sync(ALL);
                    }),
                )
                .expect("a legal launch");
            actor.synchronize(if round % 2 == 0 { stream } else { other }).expect("done");
        }
        actor.synchronize(stream).expect("done");
        actor.synchronize(other).expect("done");
    });
    (machine.trace_hash(), machine.read(at, 97).expect("in bounds"))
}

#[test]
fn the_same_seed_makes_the_same_schedule() {
    for seed in 0..20 {
        let first = scenario(seed, false);
        assert_eq!(first.1[0], 96, "all tickets were drawn");
        for attempt in 0..3 {
            assert_eq!(scenario(seed, attempt > 0), first, "seed {seed}, attempt {attempt}");
        }
    }
}

#[test]
fn different_seeds_make_different_schedules() {
    let seen: HashSet<_> = (0..20).map(|seed| scenario(seed, false)).collect();
    let (traces, orders): (HashSet<u64>, HashSet<Vec<u64>>) = seen.into_iter().unzip();
    assert_eq!(traces.len(), 20);
    assert!(orders.len() >= 18, "only {} of 20 seeds drew the tickets differently", orders.len());
}

#[test]
fn some_seed_lets_one_rank_run_far_ahead_and_another_lets_it_stay_behind() {
    // Two ranks count to 500 with no order between them; each notes where the other was when it finished.
    let lead = |seed| {
        let machine = machine(2, Mode::Seeded { seed });
        let at = machine.allocate(0, 32, 256).expect("fits");
        on_all_ranks(&machine, |actor, stream| {
            let rank = u64::from(actor.rank());
            actor
                .start(
                    stream,
                    launch("counts", 1, 32, move || {
                        for _ in 0..500 {
                            if device::thread_index() == 0 {
                                add(word(at, rank), 1);
                            }
                            device::warp_sync(ALL);
                        }
                        if device::thread_index() == 0 {
                            device::store(
                                word(at, 2 + rank),
                                device::load::<u64>(word(at, 1 - rank), RELAXED),
                                RELAXED,
                            );
                        }
                    }),
                )
                .expect("a legal launch");
            actor.synchronize(stream).expect("done");
        });
        machine.read(at + 16, 2).expect("in bounds")
    };
    let leads: Vec<Vec<u64>> = (0..40).map(lead).collect();
    assert!(leads.iter().any(|seen| seen[0] < 100), "rank 0 never finished far ahead: {leads:?}");
    assert!(leads.iter().any(|seen| seen[1] < 100), "rank 1 never finished far ahead: {leads:?}");
}
