//! Kernels that break a rule: each must end in a report, and nothing may hang.

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use epoxide_sim::device::{self, Address, Space};
use epoxide_sim::{Allocation, Launch, Machine, MachineConfig, Mode, SimError};
use rig::*;

/// A machine of one rank with so few SMs that blocks wait for one.
fn small(mode: Mode) -> Machine {
    Machine::new(MachineConfig::new(1, mode).with_sms_per_rank(4)).expect("a machine")
}

/// Runs a kernel that must fail, in every mode, and gives thread, message and location to `check`.
fn fails(launch: &Launch, check: impl Fn(u32, u32, &str, &str)) {
    for mode in modes() {
        match run(&machine(1, mode), launch.clone()) {
            Err(SimError::KernelFailed { kernel, rank: 0, block, thread, message, location, .. }) => {
                assert_eq!(kernel, launch.kernel);
                check(block, thread, &message, &location);
            }
            other => panic!("{mode:?}: {other:?}"),
        }
    }
}

/// Runs a kernel that must deadlock, in every mode, and looks for all `parts` in the report.
fn deadlocks(launch: &Launch, parts: &[&str]) {
    for mode in modes() {
        match run(&machine(1, mode), launch.clone()) {
            Err(SimError::Deadlock { report, .. }) => {
                for part in parts {
                    assert!(report.contains(part), "{mode:?}: no {part:?} in\n{report}");
                }
            }
            other => panic!("{mode:?}: {other:?}"),
        }
    }
}

#[test]
fn an_access_out_of_bounds_names_thread_address_and_line() {
    let line = line!() + 4;
    let wild = launch("wild", 3, 64, || {
        if device::block_index() == 2 && device::thread_index() == 45 {
            let wild = Address { space: Space::Global, at: 0x1000 };
            device::store(wild, 1u32, WEAK);
        }
    });
    fails(&wild, |block, thread, message, location| {
        assert_eq!((block, thread), (2, 45));
        assert!(message.contains("0x1000") && message.contains("out of bounds"), "{message}");
        assert!(location.contains(&format!("faults.rs:{line}:")), "{location}, not line {line}");
    });
    let error = run(&machine(1, modes()[0]), wild).expect_err("it fails").to_string();
    assert!(error.contains("kernel wild failed on rank 0, block 2, warp 1, lane 13"), "{error}");
}

#[test]
fn shared_memory_ends_where_the_launch_says_and_words_are_aligned() {
    let last = launch("last word", 1, 32, || device::store(shared(4088), 1u64, WEAK));
    run(&machine(1, modes()[0]), last).expect("the last word is inside");
    for (at, what) in
        [(4092, "misaligned"), (4096, "out of bounds"), (u64::MAX - 7, "out of bounds"), (2, "misaligned")]
    {
        let wild = launch("wild", 1, 32, move || device::store(shared(at), 1u64, WEAK));
        fails(&wild, |_, _, message, _| assert!(message.contains(what), "{at}: {message}"));
    }
}

#[test]
fn a_panic_ends_the_machine_with_its_message_and_line() {
    let line = line!() + 3;
    let panics = launch("panics", 2, 32, || {
        if device::thread_index() == 7 {
            panic!("expert {} is out of range", 99);
        }
        device::warp_sync(ALL);
    });
    fails(&panics, |_, thread, message, location| {
        assert_eq!((thread, message), (7, "panicked: expert 99 is out of range"));
        assert!(location.contains(&format!("faults.rs:{line}:")), "{location}, not line {line}");
    });
}

#[test]
fn after_a_failure_every_call_returns_it_on_every_rank() {
    for mode in modes() {
        let machine = machine(2, mode);
        on_all_ranks(&machine, |actor, stream| {
            let rank = actor.rank();
            let kernel = launch("half broken", 4, 64, move || {
                assert!(rank == 0, "rank 1 breaks");
                device::poll_pause(device::PollWait {
                    what: "never",
                    word: shared(0),
                    bytes: 8,
                    peer: 1,
                    expected: 1,
                    seen: 0,
                    deadline_ns: None,
                });
                wait_for(shared(0), u64::MAX, 1, None);
            });
            let first =
                actor.start(stream, kernel.clone()).and_then(|()| actor.synchronize(stream)).expect_err("halted");
            assert!(matches!(first, SimError::KernelFailed { rank: 1, .. }), "{first}");
            assert_eq!(actor.start(stream, kernel).expect_err("halted"), first);
            assert_eq!(actor.synchronize(stream).expect_err("halted"), first);
            assert_eq!(actor.exchange(b"").expect_err("halted"), first);
        });
    }
}

#[test]
fn a_host_call_that_panics_halts_the_machine() {
    for mode in modes() {
        let machine = machine(1, mode);
        let (actor, stream) = actor(&machine, 0);
        // The panic is meant: resumed, so that no hook prints it.
        actor.host_call(stream, Box::new(|| std::panic::resume_unwind(Box::new("disk full")))).expect("queued");
        let error = actor.synchronize(stream).expect_err("it panicked");
        assert!(matches!(&error, SimError::HostCallFailed { message, .. } if message == "disk full"), "{error}");
    }
}

#[test]
fn a_report_says_which_launch_of_the_rank_it_was() {
    for mode in modes() {
        for (stuck, part) in
            [(false, "kernel third failed on rank 1"), (true, "kernel third (launch 3), rank 1, block 0")]
        {
            let machine = machine(2, mode);
            machine.expect_actors(&[0, 1]).expect("in range");
            let (other, _) = actor(&machine, 0);
            let (actor, stream) = actor(&machine, 1);
            // The other rank's launches count for themselves.
            other.start(other.create_stream(), launch("another", 1, 32, || {})).expect("a legal launch");
            drop(other);
            for kernel in ["first", "second"] {
                actor.start(stream, launch(kernel, 1, 32, || {})).expect("a legal launch");
            }
            let third = move || {
                assert!(stuck || device::thread_index() != 7);
                wait_for(shared(0), u64::MAX, 0, None);
            };
            actor.start(stream, launch("third", 1, 32, third)).expect("a legal launch");
            let error = actor.synchronize(stream).expect_err("it never ends").to_string();
            assert!(error.contains(part), "{mode:?}: {error}");
            assert_eq!(error.contains("lane 7 (thread 7), launch 3 of the rank, at"), !stuck, "{mode:?}: {error}");
        }
    }
}

#[test]
fn mismatched_barriers_are_a_deadlock_with_both_sides() {
    let mismatched = launch("two doors", 2, 128, || {
        device::barrier(if device::thread_index() < 64 { 1 } else { 2 }, 128);
    });
    let sides = [
        "warp 0-1, lanes 0-31: at barrier 1",
        "warp 2-3, lanes 0-31: at barrier 2",
        "64 of 128",
        "block 1",
        "faults.rs",
    ];
    deadlocks(&mismatched, &sides);
}

#[test]
fn a_missing_lane_is_a_deadlock_that_names_it() {
    let missing = launch("missing lane", 1, 64, || {
        if device::thread_index() == 37 {
            device::barrier(3, 32 * 2);
        }
        device::warp_sync(ALL);
        device::barrier(3, 0);
    });
    deadlocks(
        &missing,
        &["warp 1, lanes 0-4, 6-31: in warp_sync", "waiting for lanes 5", "warp 1, lanes 5: at barrier 3"],
    );
}

#[test]
fn a_poll_for_what_never_comes_is_a_deadlock_with_expected_and_seen() {
    let hopeless = launch("hopeless", 1, 32, || {
        if device::thread_index() == 3 {
            device::store(shared(0), 4u64, WEAK);
            wait_for(shared(0), 5, 6, None);
        }
    });
    deadlocks(
        &hopeless,
        &[
            "lanes 3: polling flag of peer 6",
            "expected 5, seen 4 in the 8 bytes at shared offset 0x0",
            "host thread of rank 0 synchronizes",
        ],
    );
}

#[test]
fn a_poll_for_what_never_comes_names_the_word_and_its_allocation() {
    for mode in modes() {
        let machine = machine(2, mode);
        let at = machine.allocate_as(&Allocation::new(1, 64).with_name("flags").with_region("landed", 16, 48, 8));
        let at = at.expect("fits");
        let hopeless = launch("hopeless", 1, 32, move || {
            wait_for(word(at, 3), 5, 1, None);
        });
        let report = run(&machine, hopeless).expect_err("nobody posts it").to_string();
        let place = format!(
            "seen 0 in the 8 bytes at device address {:#x}, 24 bytes into rank 1's allocation of 64 bytes: device memory \"flags\", in its region \"landed\"",
            at + 24
        );
        assert!(report.contains(&place), "{mode:?}: no {place} in {report}");
    }
}

#[test]
fn an_mbarrier_nobody_completes_is_a_deadlock() {
    let hopeless = launch("hopeless", 1, 32, || {
        if device::thread_index() == 0 {
            device::mbarrier_init(8, 2);
            arrive(8, 64);
            while !try_wait(8, 0) {}
        }
    });
    deadlocks(&hopeless, &["mbarrier 0x8", "1 of 2 arrivals and 64 bytes missing"]);
}

#[test]
fn an_event_that_is_never_recorded_is_a_deadlock() {
    for mode in modes() {
        let machine = machine(2, mode);
        std::thread::scope(|scope| {
            let machine = &machine;
            scope.spawn(move || {
                let (actor, stream) = actor(machine, 0);
                let hopeless = launch("hopeless", 1, 32, || {
                    wait_for(shared(0), u64::MAX, 0, None);
                });
                actor.start(stream, hopeless).expect("a legal launch");
                let event = actor.record_event(stream).expect("recorded");
                let other = actor.create_stream();
                actor.wait_event(other, &event).expect("same machine");
                assert!(matches!(actor.synchronize(other), Err(SimError::Deadlock { .. })));
            });
            scope.spawn(move || {
                let (actor, _) = actor(machine, 1);
                let error = actor.exchange(b"").expect_err("rank 0 never comes");
                assert!(error.to_string().contains("host thread of rank 1 is in an exchange"), "{error}");
            });
        });
    }
}

#[test]
fn threads_that_return_early_break_what_waits_for_them() {
    let meets = launch("leaves its warp", 1, 32, || {
        if device::thread_index() != 9 {
            device::warp_sync(ALL);
        }
    });
    fails(&meets, |_, _, message, _| assert!(message.contains("warp_sync") && message.contains('9'), "{message}"));
    let barrier = launch("leaves its block", 1, 64, || {
        if device::thread_index() < 63 {
            device::barrier(0, 0);
        }
    });
    fails(&barrier, |_, _, message, _| assert!(message.contains("barrier 0"), "{message}"));
}

#[test]
fn wrong_masks_and_operations_are_named() {
    let outsider = launch("outsider", 1, 32, || device::warp_sync(0xFFFF));
    fails(&outsider, |_, thread, message, _| {
        assert!(thread >= 16 && message.contains("does not name it"), "{thread}: {message}");
    });
    let mixed = launch("mixed", 1, 32, || {
        if device::thread_index() < 16 {
            device::warp_sync(ALL);
        } else {
            device::ballot(ALL, true);
        }
    });
    fails(&mixed, |_, _, message, _| assert!(message.contains("ballot") && message.contains("warp_sync"), "{message}"));
}

#[test]
fn dropping_the_machine_with_work_under_way_does_not_hang() {
    for mode in modes() {
        let freed = Arc::new(());
        {
            let machine = small(mode);
            let (actor, stream) = actor(&machine, 0);
            let at = machine.allocate(0, 8, 256).expect("fits");
            for _ in 0..3 {
                actor
                    .start(
                        stream,
                        launch("forever", 8, 64, move || {
                            wait_for(word(at, 0), 1, 0, None);
                        }),
                    )
                    .expect("a legal launch");
            }
            let (kept, handle) = (Arc::clone(&freed), machine.clone());
            actor.host_call(stream, Box::new(move || drop((kept, handle)))).expect("queued");
        }
        // The queued call holds a handle, so the machine outlives this block; but no host thread is left and its kernel
        // waits for nothing, so it halts, and with its queue the last handle goes.
        until_unique(&freed, mode);
    }
}

#[test]
fn dropping_the_machine_drops_what_is_queued() {
    for mode in modes() {
        let freed = Arc::new(());
        let machine = small(mode);
        let (actor, stream) = actor(&machine, 0);
        let at = machine.allocate(0, 8, 256).expect("fits");
        actor
            .start(
                stream,
                launch("forever", 8, 64, move || {
                    wait_for(word(at, 0), 1, 0, None);
                }),
            )
            .expect("a legal launch");
        let kept = Arc::clone(&freed);
        actor.host_call(stream, Box::new(move || drop(kept))).expect("queued");
        drop((actor, machine));
        assert_eq!(Arc::strong_count(&freed), 1, "{mode:?}: a queued call outlived its machine");
    }
}

#[test]
fn a_kernel_may_own_the_last_handle_of_its_machine() {
    for mode in modes() {
        let freed = Arc::new(());
        {
            let machine = machine(1, mode);
            let (actor, stream) = actor(&machine, 0);
            // The handle goes before the token.
            let owned = (machine.clone(), Arc::clone(&freed));
            let kernel = launch("owns its machine", 3, 64, move || {
                let _owned = &owned;
                device::barrier(0, 0);
            });
            actor.start(stream, kernel).expect("a legal launch");
        }
        until_unique(&freed, mode);
    }
}

#[test]
fn blocks_that_never_found_an_sm_do_not_keep_their_machine() {
    for mode in modes() {
        let freed = Arc::new(());
        {
            let machine = small(mode);
            let (actor, stream) = actor(&machine, 0);
            let owned = (machine.clone(), Arc::clone(&freed));
            let kernel = launch("hopeless", 8, 32, move || {
                let _owned = &owned;
                wait_for(shared(0), u64::MAX, 0, None);
            });
            actor.start(stream, kernel).expect("a legal launch");
            assert!(matches!(actor.synchronize(stream), Err(SimError::Deadlock { .. })));
        }
        until_unique(&freed, mode);
    }
}

/// Waits until only the caller has the token: whatever had the other ones is dropped.
fn until_unique(token: &Arc<()>, mode: Mode) {
    let start = std::time::Instant::now();
    while Arc::strong_count(token) > 1 {
        assert!(start.elapsed().as_secs() < 20, "{mode:?}: something is kept for ever");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn the_facade_outside_a_machine_says_so() {
    // The message is what is tested; the hook would print it.
    let outcome = std::thread::spawn(|| std::panic::catch_unwind(|| device::load::<u32>(shared(0), WEAK)));
    let payload = outcome.join().expect("the panic was caught").expect_err("it panics");
    let text = payload.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(text.contains("device::load called outside a simulated machine: "), "{text}");
}

#[test]
fn the_last_handle_may_die_on_a_worker() {
    for mode in modes() {
        let ran = Arc::new(AtomicBool::new(false));
        let machine = machine(1, mode);
        let (actor, stream) = actor(&machine, 0);
        let (flag, handle) = (Arc::clone(&ran), machine.clone());
        let call = move || {
            std::thread::sleep(std::time::Duration::from_millis(5));
            flag.store(true, Ordering::Release);
            drop(handle);
        };
        actor.host_call(stream, Box::new(call)).expect("queued");
        drop((actor, machine));
        let start = std::time::Instant::now();
        while !ran.load(Ordering::Acquire) {
            assert!(start.elapsed().as_secs() < 10, "the call never ran");
            std::thread::yield_now();
        }
    }
}
