//! What a kernel may touch: one live allocation at a time, and no shared memory that its block no longer has.

mod rig;

use epoxide_sim::{Allocation, Machine, MemoryKind, Mode, SimError, device};
use rig::*;

/// Runs a kernel of one thread that must fail in every mode. `kernel` is given a machine and makes its one thread's body.
fn fails<F: Fn() + Send + Sync + 'static>(kernel: impl Fn(&Machine) -> F, parts: &[&str]) {
    for mode in modes() {
        let machine = machine(1, mode);
        let body = kernel(&machine);
        let launch = launch("wild", 1, 32, move || {
            if device::thread_index() == 5 {
                body();
            }
        });
        match run(&machine, launch) {
            Err(SimError::KernelFailed { block: 0, thread: 5, message, location, .. }) => {
                assert!(location.contains("bounds.rs"), "{mode:?}: {location}");
                for part in parts {
                    assert!(message.contains(part), "{mode:?}: no {part:?} in {message}");
                }
            }
            other => panic!("{mode:?}, {parts:?}: {other:?}"),
        }
    }
}

/// Three allocations of `bytes` bytes, one after the other; the middle one.
fn middle(machine: &Machine, bytes: u64) -> u64 {
    [0; 3].map(|_| machine.allocate(0, bytes, 256).expect("fits"))[1]
}

#[test]
fn who_walks_out_of_an_allocation_is_found_before_the_next() {
    for bytes in [8, 12, 256, 4096, 100_000, 1 << 20] {
        let of = format!("an allocation of {bytes} bytes");
        let end = bytes & !7;
        fails(
            |machine| {
                let at = middle(machine, bytes);
                // A word after the other, as far as they go.
                move || (0..1 << 20).for_each(|index| device::store(word(at, index), 1u64, WEAK))
            },
            &["out of bounds", &of],
        );
        fails(
            |machine| {
                let at = middle(machine, bytes);
                move || {
                    device::load::<u64>(word(at - 8, 0), WEAK);
                }
            },
            &["it is 8 bytes before", &of],
        );
        // The first whole word that is not inside, with the last one touched before.
        fails(
            |machine| {
                let at = middle(machine, bytes);
                move || {
                    if end >= 8 {
                        device::load::<u64>(word(at + end - 8, 0), WEAK);
                    }
                    add(word(at + end, 0), 1);
                }
            },
            &["out of bounds", &of],
        );
    }
}

#[test]
fn a_bulk_copy_lies_in_one_allocation() {
    for (bytes, what) in [(272, "16 bytes beyond"), (4096, "3840 bytes beyond")] {
        fails(
            |machine| {
                let at = middle(machine, 256);
                move || bulk_store(at, 0, bytes)
            },
            &["bulk_store", "out of bounds", what, "an allocation of 256 bytes"],
        );
        fails(
            |machine| {
                let at = middle(machine, 256);
                move || {
                    device::mbarrier_init(4088, 1);
                    bulk_load(0, at, bytes, 4088);
                }
            },
            &["bulk_load", "out of bounds", what],
        );
    }
    fails(
        |machine| {
            let at = middle(machine, 256);
            move || bulk_store(at + 256, 0, 16)
        },
        &["bulk_store", "it is 0 bytes behind an allocation of 256 bytes"],
    );
}

#[test]
fn freed_memory_is_nobodys_also_for_who_touched_it_last() {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 4096, 256).expect("fits");
        let touch = || {
            launch("touches", 1, 32, move || {
                if device::thread_index() == 0 {
                    add(word(at, 3), 1);
                }
            })
        };
        machine.expect_actors(&[0]).expect("in range");
        let (actor, stream) = actor(&machine, 0);
        actor.start(stream, touch()).expect("a legal launch");
        actor.synchronize(stream).expect("it is live");
        // SAFETY: the kernel that used it has ended.
        unsafe { machine.free(at) }.expect("live");
        assert!(matches!(machine.read(at, 1), Err(SimError::InvalidArgument { argument: "from", .. })));
        actor.start(stream, touch()).expect("a legal launch");
        let error = actor.synchronize(stream).expect_err("nobody's").to_string();
        assert!(error.contains("no live allocation is there"), "{mode:?}: {error}");
    }
}

#[test]
fn accesses_to_many_allocations_in_turn_find_each() {
    for mode in modes() {
        let machine = machine(2, mode);
        let sizes = [8, 16, 24, 256, 4096, 100_000];
        let all: Vec<(u64, u64)> = (0..2)
            .flat_map(|rank| sizes.map(|size| (machine.allocate(rank, size, 256).expect("fits"), size)))
            .collect();
        let places = all.clone();
        let kernel = launch("round and round", 2, 64, move || {
            for _ in 0..20 {
                for &(at, size) in &*places {
                    add(word(at, 0), 1);
                    add(word(at, size / 8 - 1), 1);
                }
            }
        });
        run(&machine, kernel).expect("all are live");
        for (at, size) in all {
            // In the smallest they are one word.
            let times = if size == 8 { 2 } else { 1 };
            let expected = 2 * 64 * 20 * times;
            assert_eq!(machine.read(at, 1).expect("live"), [expected], "{mode:?}: {size}");
            assert_eq!(machine.read(at + size - 8, 1).expect("live"), [expected], "{mode:?}: {size}");
        }
    }
}

/// How a thread ends its bulk stores.
type Ending = fn();

#[test]
fn a_thread_that_returns_with_a_bulk_store_in_flight_is_named() {
    let in_flight: [Ending; 5] = [
        || {},
        || device::bulk_commit(),
        // The newest group is the one that is left.
        || {
            device::bulk_commit();
            device::bulk_wait(1, false);
        },
        || {
            device::bulk_commit();
            device::bulk_wait(1, true);
        },
        // Waits end committed groups, and this one is committed after the wait.
        || {
            device::bulk_wait(0, false);
            device::bulk_commit();
        },
    ];
    for ending in in_flight {
        fails(
            |machine| {
                let at = middle(machine, 256);
                move || {
                    bulk_store(at, 0, 64);
                    ending();
                }
            },
            &["thread 5 returned with a bulk store in flight", "bulk_wait"],
        );
    }
    let over: [Ending; 3] = [
        || {
            device::bulk_commit();
            device::bulk_wait(0, false);
        },
        || {
            device::bulk_commit();
            device::bulk_wait(0, true);
        },
        // An empty group is newer.
        || {
            device::bulk_commit();
            device::bulk_commit();
            device::bulk_wait(1, true);
        },
    ];
    for ending in over {
        for mode in modes() {
            let machine = machine(1, mode);
            let at = middle(&machine, 256);
            let kernel = launch("waits", 1, 32, move || {
                if device::thread_index() == 5 {
                    device::store(shared(0), 9u64, WEAK);
                    bulk_store(at, 0, 64);
                    ending();
                }
            });
            run(&machine, kernel).unwrap_or_else(|error| panic!("{mode:?}: {error}"));
            assert_eq!(machine.read(at, 1).expect("live"), [9], "{mode:?}");
        }
    }
}

/// Runs a kernel in which thread 0 loads in bulk and `waiter` waits for it.
fn load_that_is_waited_for_by(waiter: Option<u32>, mode: Mode) -> Result<(), SimError> {
    let machine = machine(1, mode);
    let at = middle(&machine, 256);
    let kernel = launch("loads", 1, 64, move || {
        let thread = device::thread_index();
        if thread == 0 {
            device::mbarrier_init(4088, 1);
        }
        device::barrier(0, 0);
        // Two phases: that the first was waited for does not end the second.
        for phase in 0..2 {
            if thread == 0 {
                arrive(4088, 64);
                bulk_load(0, at, 64, 4088);
            }
            if (phase == 0 && thread == 0) || waiter == Some(thread) {
                while !try_wait(4088, phase) {}
            }
            device::barrier(0, 0);
        }
    });
    run(&machine, kernel)
}

#[test]
fn a_block_that_ends_with_a_bulk_load_in_flight_is_named() {
    for mode in modes() {
        load_that_is_waited_for_by(Some(0), mode).expect("its thread waits");
        load_that_is_waited_for_by(Some(40), mode).expect("another thread waits");
        match load_that_is_waited_for_by(None, mode) {
            Err(SimError::KernelFailed { block: 0, message, location, .. }) => {
                assert!(message.contains("a bulk load in flight") && message.contains("mbarrier 0xff8"), "{message}");
                assert!(location.contains("bounds.rs"), "{location}");
            }
            other => panic!("{mode:?}: {other:?}"),
        }
    }
}

/// A window of two named regions, with memory of nobody's interest around it.
fn window(machine: &Machine) -> u64 {
    let window = Allocation::new(0, 4096)
        .with_kind(MemoryKind::Window)
        .with_name("the rank's window")
        .with_region("landed words", 3072, 1000, 8)
        .with_region("rows", 64, 2048, 16);
    [&Allocation::new(0, 64), &window, &Allocation::new(0, 64)].map(|what| machine.allocate_as(what).expect("fits"))[1]
}

#[test]
fn a_report_names_the_allocation_and_the_region() {
    let cases: [(i64, u32, &str); 3] = [
        (-16, 16, "16 bytes before an allocation of 4096 bytes"),
        (4064, 64, "32 bytes beyond an allocation of 4096 bytes"),
        (4096, 16, "0 bytes behind an allocation of 4096 bytes"),
    ];
    let regions =
        ["before its region \"rows\"", "in its region \"landed words\"", "behind its region \"landed words\""];
    for ((at, bytes, whereabouts), region) in cases.into_iter().zip(regions) {
        fails(
            |machine| {
                let at = window(machine).wrapping_add_signed(at);
                move || bulk_store(at, 0, bytes)
            },
            &["bulk_store", whereabouts, ": window \"the rank's window\"", region],
        );
    }
    fails(
        |machine| {
            let at = window(machine);
            move || device::store(word(at, 512), 1u64, WEAK)
        },
        &["0 bytes behind", ": window \"the rank's window\", behind its region \"landed words\""],
    );
}

#[test]
fn regions_lie_inside_in_whole_elements() {
    let machine = machine(1, Mode::Fast { workers: 1 });
    let of = |offset, bytes, element| Allocation::new(0, 64).with_region("words", offset, bytes, element);
    for (good, what) in [(true, of(0, 64, 8)), (true, of(64, 0, 1)), (false, of(8, 64, 8)), (false, of(u64::MAX, 8, 8))]
    {
        assert_eq!(machine.allocate_as(&what).is_ok(), good, "{what:?}");
    }
    for what in [of(0, 60, 8), of(0, 8, 0)] {
        let error = machine.allocate_as(&what).expect_err("no whole elements");
        assert!(matches!(&error, SimError::InvalidArgument { argument: "region", .. }), "{error}");
    }
}
