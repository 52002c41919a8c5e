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

/// Two ranks that copy in bulk, late, from shared memory that nobody wrote, while a word is polled, a sleeper sleeps and a
/// deadline passes. Returns the trace, what the copies brought and virtual time.
fn late_copies(seed: u64) -> (u64, Vec<u64>, u64) {
    let machine = machine(2, Mode::Seeded { seed });
    let at = machine.allocate(0, 8 * 1024, 256).expect("fits");
    on_all_ranks(&machine, |actor, stream| {
        let rank = u64::from(actor.rank());
        let own = at + 4096 * rank;
        let kernel = move || {
            let thread = device::thread_index();
            if thread == 0 {
                device::mbarrier_init(4088, 1);
                for round in 0..4 {
                    bulk_store(own + 64 * u64::from(round), 64 * round, 64);
                    device::bulk_commit();
                }
                device::bulk_wait(2, true);
                device::bulk_wait(0, false);
                arrive(4088, 256);
                bulk_load(1024, own, 256, 4088);
                while !try_wait(4088, 0) {}
                add(word(at, 1000), 1);
            }
            if thread == 32 {
                device::sleep_until(10_000);
                wait_for(word(at, 1000), 2, 0, None);
                wait_for(word(at, 1000), 5, 0, Some(20_000));
            }
            device::barrier(0, 0);
        };
        actor.start(stream, launch("copies", 2, 64, kernel)).expect("a legal launch");
        actor.synchronize(stream).expect("done");
    });
    (machine.trace_hash(), machine.read(at, 1024).expect("in bounds"), machine.virtual_ns())
}

/// What a seed names is the same run in every version, so that one in a report can be replayed. Who changes the schedule on
/// purpose changes these numbers, and says so in the changelog.
#[test]
fn a_seed_is_the_run_that_it_was() {
    let digest = |words: &[u64]| words.iter().fold(0u64, |sum, word| sum.rotate_left(7) ^ word);
    let seen: Vec<[u64; 5]> = (0..6)
        .map(|seed| {
            let (trace, tickets) = scenario(seed, false);
            let (late, words, time) = late_copies(seed);
            [trace, digest(&tickets), late, digest(&words), time]
        })
        .collect();
    let expected: [[u64; 5]; 6] = [
        [0xD54C_562E_45D7_4825, 0xF756_547E_611D_0CE5, 0x5DBF_3AD0_45D8_80E4, 0x9FBA_7A43_3510_D0E1, 20256],
        [0x3BFF_AC83_6E48_5676, 0x369A_39E8_8D39_B40F, 0x5218_A9EB_46EE_2C0B, 0x8990_106F_8990_1067, 20256],
        [0x6534_DBBA_9CA5_58AD, 0xCB32_77F5_9E94_38B3, 0xD4C4_2694_1C82_FB8F, 0xCC18_EB35_CC18_EB3D, 20256],
        [0xE948_1B2D_3E54_53B5, 0x7DEC_6768_7BF3_E0EE, 0x9C1A_64FA_E7F8_AA6F, 0x6D8F_E3ED_38DA_B6B0, 20256],
        [0x6206_7EE7_CB5D_C4F5, 0x8EC8_10E6_2765_1E91, 0x7012_70C5_37BE_57EF, 0x44A6_8E83_EE0C_2421, 20256],
        [0xB9DD_0868_B449_2182, 0xD7A9_5B6F_7818_9EBD, 0x6FF1_51AB_7904_67F7, 0x5E25_00C7_A1DA_FF30, 20256],
    ];
    assert_eq!(seen, expected, "{seen:#x?}");
}
