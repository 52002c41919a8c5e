//! Warp collectives and block barriers against plain references.

mod rig;

use epoxide_sim::Mode;
use epoxide_sim::device::{self, Reduce, Shuffle};
use rig::*;

/// A value per lane and round that no two lanes share by accident, but some do on purpose.
fn value(round: u32, lane: u32) -> u32 {
    (round.wrapping_mul(0x9E37_79B9) ^ (lane % 7)).wrapping_mul(0x85EB_CA6B)
}

/// What lane `lane` must get in `round` from all operations, folded into one word by the same mixing as in the kernel.
fn reference(round: u32, mask: u32, lane: u32) -> u64 {
    let lanes: Vec<u32> = (0..32).filter(|l| mask >> l & 1 == 1).collect();
    let of = |l: u32| value(round, l);
    let shuffled = |source: i64| {
        let source = if (0..32).contains(&source) { source as u32 } else { lane };
        if mask >> source & 1 == 1 { of(source) } else { 0 }
    };
    let ballot = lanes.iter().filter(|&&l| of(l) & 4 != 0).fold(0u32, |all, l| all | 1 << l);
    let same = lanes.iter().filter(|&&l| of(l) == of(lane)).fold(0u32, |all, l| all | 1 << l);
    let values: Vec<u32> = lanes.iter().map(|&l| of(l)).collect();
    let parts = [
        shuffled(i64::from(round % 32)),
        shuffled(i64::from(lane ^ (round % 32))),
        shuffled(i64::from(lane) - i64::from(round % 32)),
        shuffled(i64::from(lane) + i64::from(round % 32)),
        ballot,
        same,
        u32::from(lane == lanes[0]),
        values.iter().fold(0u32, |a, &b| a.wrapping_add(b)),
        values.iter().copied().min().unwrap_or(0),
        values.iter().copied().max().unwrap_or(0),
        values.iter().fold(u32::MAX, |a, &b| a & b),
        values.iter().fold(0, |a, &b| a | b),
        values.iter().fold(0, |a, &b| a ^ b),
    ];
    parts.iter().fold(0, |all, &part| mix(all, part))
}

fn mix(all: u64, part: u32) -> u64 {
    (all ^ u64::from(part)).wrapping_mul(0x1000_0000_01B3).rotate_left(17)
}

/// The same on the device. A shuffle from a lane outside the mask is undefined, so it counts as 0 on both sides.
fn on_device(round: u32, mask: u32, lane: u32) -> u64 {
    let own = value(round, lane);
    let defined = |source: i64, got: u32| {
        let source = if (0..32).contains(&source) { source as u32 } else { lane };
        if mask >> source & 1 == 1 { got } else { 0 }
    };
    let by = round % 32;
    let parts = [
        defined(i64::from(by), device::shuffle(mask, Shuffle::Index, own, by)),
        defined(i64::from(lane ^ by), device::shuffle(mask, Shuffle::Xor, own, by)),
        defined(i64::from(lane) - i64::from(by), device::shuffle(mask, Shuffle::Up, own, by)),
        defined(i64::from(lane) + i64::from(by), device::shuffle(mask, Shuffle::Down, own, by)),
        device::ballot(mask, own & 4 != 0),
        device::match_any(mask, own),
        u32::from(device::elect(mask)),
        device::reduce(mask, Reduce::Add, own),
        device::reduce(mask, Reduce::Min, own),
        device::reduce(mask, Reduce::Max, own),
        device::reduce(mask, Reduce::And, own),
        device::reduce(mask, Reduce::Or, own),
        device::reduce(mask, Reduce::Xor, own),
    ];
    parts.iter().fold(0, |all, &part| mix(all, part))
}

/// The disjoint masks that a round splits the warp into; the lane takes the one that names it.
fn mask(round: u32, lane: u32) -> u32 {
    let split = [u32::MAX, 0x0F0F_00FF, 0x8000_0001, 0x5555_5555][(round % 4) as usize];
    if split >> lane & 1 == 1 { split } else { !split }
}

#[test]
fn warp_operations_agree_with_the_reference_for_whole_and_split_warps() {
    const ROUNDS: u32 = 40;
    for mode in modes() {
        let machine = machine(1, mode);
        let out = machine.allocate(0, 8 * 64 * u64::from(ROUNDS), 256).expect("fits");
        run(
            &machine,
            launch("collectives", 1, 64, move || {
                let thread = device::thread_index();
                for round in 0..ROUNDS {
                    let result = on_device(round, mask(round, thread % 32), thread % 32);
                    device::store(word(out, u64::from(round * 64 + thread)), result, WEAK);
                }
            }),
        )
        .expect("the kernel runs");
        let got = machine.read(out, 64 * ROUNDS as usize).expect("in bounds");
        for round in 0..ROUNDS {
            for thread in 0..64 {
                let lane = thread % 32;
                let expected = reference(round, mask(round, lane), lane);
                assert_eq!(got[(round * 64 + thread) as usize], expected, "{mode:?} round {round} thread {thread}");
            }
        }
    }
}

#[test]
fn a_barrier_separates_every_producer_from_every_consumer() {
    for mode in modes() {
        let machine = machine(1, mode);
        let out = machine.allocate(0, 8 * 4, 256).expect("fits");
        run(
            &machine,
            launch("barriers", 4, 256, move || {
                let (thread, mut wrong) = (u64::from(device::thread_index()), 0);
                for round in 0..20u64 {
                    device::store(shared(8 * thread), round * 1000 + thread, WEAK);
                    device::barrier(0, 0);
                    let other = (thread + 37 * (round + 1)) % 256;
                    wrong += u64::from(device::load::<u64>(shared(8 * other), WEAK) != round * 1000 + other);
                    device::barrier(0, 0);
                }
                add(word(out, u64::from(device::block_index())), wrong);
            }),
        )
        .expect("the kernel runs");
        assert_eq!(machine.read(out, 4).expect("in bounds"), [0; 4], "{mode:?}");
    }
}

#[test]
fn the_check_above_fails_without_the_barrier() {
    let machine = machine(1, Mode::Fast { workers: 1 });
    let out = machine.allocate(0, 8, 256).expect("fits");
    run(
        &machine,
        launch("no barrier", 1, 256, move || {
            let thread = u64::from(device::thread_index());
            device::store(shared(8 * thread), 1000 + thread, WEAK);
            let other = (thread + 37) % 256;
            add(word(out, 0), u64::from(device::load::<u64>(shared(8 * other), WEAK) != 1000 + other));
        }),
    )
    .expect("the kernel runs");
    assert_ne!(machine.read(out, 1).expect("in bounds")[0], 0);
}

#[test]
fn named_barriers_pair_half_blocks_and_votes_are_uniform() {
    for mode in modes() {
        let machine = machine(1, mode);
        let out = machine.allocate(0, 8 * 128, 256).expect("fits");
        run(
            &machine,
            launch("named", 1, 128, move || {
                let thread = device::thread_index();
                let half = thread / 64;
                let mut votes = 0u64;
                for round in 0..10 {
                    for _ in 0..=half {
                        device::barrier(1 + half, 64);
                    }
                    votes = votes << 1 | u64::from(device::barrier_or(0, round % 3 == 0 && thread == 77));
                    if round == 9 && thread < 32 {
                        // A part of the block goes on with the vote's barrier before the others have read the vote.
                        device::barrier(0, 32);
                    }
                }
                device::store(word(out, u64::from(thread)), votes, WEAK);
            }),
        )
        .expect("the kernel runs");
        assert_eq!(machine.read(out, 128).expect("in bounds"), [0b10_0100_1001; 128], "{mode:?}");
    }
}
