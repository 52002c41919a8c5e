//! Bulk copies and mbarriers: what arrives, when, and what a kernel that is too early gets.

mod rig;

use epoxide_sim::device::{self, Address, BulkCopy, BulkReduction, Completion, Rmw, Strength};
use epoxide_sim::{Launch, Mode, SimError};
use rig::*;

const STAGE: u32 = 1024;

/// Copies `rows` stages from one place to another through two stages of shared memory.
fn copy_kernel(from: u64, to: u64, rows: u64, wait_for_source: bool) -> Launch {
    launch("copies", 2, 32, move || {
        if device::thread_index() != 0 {
            return;
        }
        let barriers = [4080, 4088];
        for barrier in barriers {
            device::mbarrier_init(barrier, 1);
        }
        let mut row = u64::from(device::block_index());
        let mut uses = 0u32;
        while row < rows {
            let (stage, parity) = (uses % 2, uses / 2 % 2);
            let barrier = barriers[stage as usize];
            // The stage was stored from two rows ago: one newer group may still be under way.
            if wait_for_source {
                device::bulk_wait(1, true);
            }
            arrive(barrier, STAGE);
            bulk_load(stage * STAGE, from + row * u64::from(STAGE), STAGE, barrier);
            while !try_wait(barrier, parity) {}
            bulk_store(to + row * u64::from(STAGE), stage * STAGE, STAGE);
            device::bulk_commit();
            uses += 1;
            row += 2;
        }
        device::bulk_wait(0, false);
    })
}

/// Whether the copied rows are right.
fn copies(mode: Mode, wait_for_source: bool) -> bool {
    const ROWS: u64 = 40;
    let machine = machine(1, mode);
    let words = (ROWS * u64::from(STAGE) / 8) as usize;
    let [from, to] = [0; 2].map(|_| machine.allocate(0, 8 * words as u64, 256).expect("fits"));
    let data: Vec<u64> = (0..words as u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1).collect();
    // SAFETY: this test's own allocation, which no kernel has yet.
    unsafe { machine.write(from, &data) }.expect("in bounds");
    run(&machine, copy_kernel(from, to, ROWS, wait_for_source)).expect("the kernel runs");
    machine.read(to, words).expect("in bounds") == data
}

#[test]
fn a_correct_pipeline_copies_every_row_in_every_mode() {
    for mode in modes().into_iter().chain((100..200).map(|seed| Mode::Seeded { seed })) {
        assert!(copies(mode, true), "{mode:?}");
    }
}

#[test]
fn reusing_a_store_source_too_early_is_caught_by_some_seed() {
    let caught = (0..100).filter(|&seed| !copies(Mode::Seeded { seed }, false)).count();
    assert!(caught > 10, "only {caught} of 100 seeds overwrote a stage that was still to be read");
}

#[test]
fn a_read_only_wait_does_not_make_the_bytes_visible_at_once() {
    let seen_late = |seed| {
        let machine = machine(1, Mode::Seeded { seed });
        let at = machine.allocate(0, 32, 256).expect("fits");
        run(
            &machine,
            launch("early", 1, 32, move || {
                if device::thread_index() == 0 {
                    device::store(shared(0), 7u64, WEAK);
                    device::store(shared(8), 7u64, WEAK);
                    bulk_store(at, 0, 16);
                    device::bulk_commit();
                    device::bulk_wait(0, true);
                    // Its source was read, so this must never show.
                    device::store(shared(0), 8u64, WEAK);
                    add(word(at, 2), u64::from(device::load::<u64>(word(at, 0), WEAK) == 0));
                    device::bulk_wait(0, false);
                    assert_eq!(device::load::<u64>(word(at, 0), WEAK), 7);
                }
            }),
        )
        .expect("the kernel runs");
        machine.read(at, 3).expect("in bounds")[2] == 1
    };
    assert!((0..50).any(seen_late), "a read-only wait always made the store visible");
}

#[test]
fn a_load_is_late_until_its_mbarrier_says_so() {
    let stale = |seed| {
        let machine = machine(1, Mode::Seeded { seed });
        let at = machine.allocate(0, 32, 256).expect("fits");
        // SAFETY: as above.
        unsafe { machine.write(at, &[5, 6]) }.expect("in bounds");
        run(
            &machine,
            launch("early", 1, 32, move || {
                if device::thread_index() == 0 {
                    device::mbarrier_init(64, 1);
                    bulk_load(0, at, 16, 64);
                    let early = device::load::<u64>(shared(0), WEAK);
                    // The announcement may come after the bytes: the count goes below zero for a while.
                    arrive(64, 16);
                    while !try_wait(64, 0) {}
                    assert_eq!(device::load::<u64>(shared(8), WEAK), 6);
                    device::store(word(at, 2), u64::from(early != 5), WEAK);
                }
            }),
        )
        .expect("the kernel runs");
        machine.read(at, 3).expect("in bounds")[2] == 1
    };
    assert!((0..50).any(stale));
}

#[test]
fn an_mbarrier_counts_arrivals_and_phases() {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 8, 256).expect("fits");
        run(
            &machine,
            launch("phases", 1, 64, move || {
                let thread = device::thread_index();
                if thread == 0 {
                    device::mbarrier_init(0, 63);
                }
                device::barrier(0, 0);
                for phase in 0..6 {
                    if thread > 0 {
                        device::store(shared(64 + 8 * u64::from(thread)), u64::from(phase), WEAK);
                        arrive(0, 0);
                    } else {
                        while !try_wait(0, phase % 2) {}
                        for other in 1..64 {
                            assert_eq!(device::load::<u64>(shared(64 + 8 * other), WEAK), u64::from(phase));
                        }
                        add(word(at, 0), 1);
                    }
                    device::barrier(0, 0);
                }
            }),
        )
        .expect("the kernel runs");
        assert_eq!(machine.read(at, 1).expect("in bounds"), [6], "{mode:?}");
    }
}

#[test]
fn copies_that_break_a_rule_fail() {
    let machine_of = |mode| machine(1, mode);
    for mode in modes() {
        for (shared_to, skew, bytes, what) in [
            (8, 0, 16, "multiples of 16"),
            (0, 8, 16, "multiples of 16"),
            (0, 0, 24, "multiples of 16"),
            (4080, 0, 32, "out of bounds"),
            (0, 1 << 40, 16, "out of bounds"),
        ] {
            let machine = machine_of(mode);
            let at = machine.allocate(0, 64, 256).expect("fits");
            let kernel = launch("wild", 1, 32, move || bulk_store(at + skew, shared_to, bytes));
            match run(&machine, kernel) {
                Err(SimError::KernelFailed { message, location, .. }) => {
                    assert!(message.contains(what), "{message}");
                    assert!(location.contains("bulk_copies.rs"), "{location}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_reduction_combines_with_what_is_there_once() {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 64, 256).expect("fits");
        let sums = launch("sums", 4, 32, move || {
            if device::thread_index() >= 8 {
                return;
            }
            // A stage of each thread: 16 bytes of a copy for each of the three reductions.
            let stage = 48 * device::thread_index();
            for word in 0..6 {
                device::store(shared(u64::from(stage) + 8 * word), (word + 1) << 32 | (word + 2), WEAK);
            }
            let reductions = [(Rmw::Add, 4), (Rmw::Add, 8), (Rmw::Max, 8)];
            for (i, (op, element)) in (0..).zip(reductions) {
                device::bulk_copy(BulkCopy {
                    from: shared(u64::from(stage + 16 * i)),
                    to: word(at, 2 * u64::from(i)),
                    bytes: 16,
                    completion: Completion::Group,
                    reduction: Some(BulkReduction { op, element }),
                });
            }
            device::bulk_commit();
            device::bulk_wait(0, true);
            // The source was read: this reaches nobody.
            device::store(shared(u64::from(stage)), 77u64, WEAK);
            device::bulk_wait(0, false);
        });
        run(&machine, sums).expect("it ends");
        let pair = |high: u64, low: u64| high << 32 | low;
        // 32 threads added each word, or kept the largest.
        let expected = [pair(32, 64), pair(64, 96), pair(96, 128), pair(128, 160), pair(5, 6), pair(6, 7)];
        assert_eq!(machine.read(at, 6).expect("at rest"), expected, "{mode:?}");
    }
}

/// What a thread asks for, given the address of 64 bytes, and what the refusal says.
type Ask = (fn(u64), &'static str);

#[test]
fn what_is_no_bulk_copy_fails_where_it_is_asked_for() {
    refuses(&[
        (|at| copy(word(at, 0), word(at, 2), Completion::Group, None), "the rule is from device to shared"),
        (|at| copy(word(at, 0), shared(0), Completion::Group, None), "the rule is from device to shared"),
        (|at| copy(shared(0), word(at, 0), Completion::Mbarrier(64), None), "the rule is from device to shared"),
        (|at| copy(shared(0), word(at, 0), Completion::Group, Some((Rmw::AddF32, 8))), "words of 4 or 8 bytes"),
        (|at| device::bulk_prefetch(word(at, 7), 16), "bulk_prefetch of 16 bytes"),
        (|at| device::bulk_prefetch(word(at, 6), 32), "16 bytes beyond an allocation of 64 bytes"),
        (|_| device::bulk_prefetch(shared(0), 16), "the rule is a device address"),
    ]);
}

#[test]
fn an_arrival_and_a_wait_keep_to_their_mbarriers_rules() {
    let lacks = "the rule is 1 to 3, which its phase lacks";
    refuses(&[
        (|_| arrive_at_one_of_three(0, RELEASE), lacks),
        (|_| arrive_at_one_of_three(4, RELEASE), lacks),
        (|_| arrive_at_one_of_three(1, ACQUIRE), "the rule is a release, or relaxed"),
        (|_| arrive_at_one_of_three(1, WEAK), "the rule is a release, or relaxed"),
        (|_| assert!(!wait_for_one(RELEASE)), "the rule is an acquire, or relaxed"),
    ]);
    for mode in modes() {
        let arrivals = launch("arrivals", 1, 32, || {
            if device::thread_index() != 0 {
                return;
            }
            arrive_at_one_of_three(2, RELAXED);
            assert!(!device::mbarrier_try_wait(64, 0, RELAXED), "one is missing");
            device::mbarrier_arrive(64, 1, 0, RELEASE);
            assert!(device::mbarrier_try_wait(64, 0, ACQUIRE), "all three are there");
        });
        run(&machine(1, mode), arrivals).unwrap_or_else(|error| panic!("{mode:?}: {error}"));
    }
}

/// Makes an mbarrier of three arrivals, and arrives.
#[track_caller]
fn arrive_at_one_of_three(count: u32, strength: Strength) {
    device::mbarrier_init(64, 3);
    device::mbarrier_arrive(64, count, 0, strength);
}

/// Makes an mbarrier, and looks at it.
#[track_caller]
fn wait_for_one(strength: Strength) -> bool {
    device::mbarrier_init(64, 1);
    device::mbarrier_try_wait(64, 0, strength)
}

/// Each must fail, in every mode and at its own line.
fn refuses(asks: &[Ask]) {
    for mode in modes() {
        for &(ask, part) in asks {
            let machine = machine(1, mode);
            let at = machine.allocate(0, 64, 256).expect("fits");
            match run(&machine, launch("refused", 1, 32, move || ask(at))) {
                Err(SimError::KernelFailed { message, location, .. }) => {
                    assert!(message.contains(part), "{mode:?}: no {part:?} in {message}");
                    assert!(location.contains("bulk_copies.rs"), "{mode:?}: {location}");
                }
                other => panic!("{mode:?}, {part}: {other:?}"),
            }
        }
    }
}

/// Starts a copy of 16 bytes.
#[track_caller]
fn copy(from: Address, to: Address, completion: Completion, reduction: Option<(Rmw, u32)>) {
    let reduction = reduction.map(|(op, element)| BulkReduction { op, element });
    device::bulk_copy(BulkCopy { from, to, bytes: 16, completion, reduction });
}
