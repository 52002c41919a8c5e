//! Order in and between streams, and what a launch must satisfy.

mod rig;

use std::sync::{Arc, Mutex};

use epoxide_sim::{Launch, Machine, MachineConfig, Mode, SimError, device};
use rig::*;

#[test]
fn a_stream_runs_its_work_in_order() {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 8, 256).expect("fits");
        let (actor, stream) = actor(&machine, 0);
        let log = Arc::new(Mutex::new(Vec::new()));
        for step in 0..10u64 {
            // Each kernel doubles and adds; only one order gives the right number.
            let kernel = launch("step", 1, 32, move || {
                if device::thread_index() == 0 {
                    let old = device::load::<u64>(word(at, 0), WEAK);
                    device::store(word(at, 0), 2 * old + step % 2, WEAK);
                }
            });
            actor.start(stream, kernel).expect("a legal launch");
            let (log, machine) = (Arc::clone(&log), machine.clone());
            let note = move || {
                // SAFETY: the stream's kernels are the only ones that write it, and none of them runs now.
                let word = unsafe { machine.peek(at, 1) }.expect("in bounds")[0];
                log.lock().expect("whole").push(word);
            };
            actor.host_call(stream, Box::new(note)).expect("queued");
        }
        actor.synchronize(stream).expect("done");
        let expected: Vec<u64> = (0..10)
            .scan(0, |old, step| {
                *old = 2 * *old + step % 2;
                Some(*old)
            })
            .collect();
        assert_eq!(*log.lock().expect("whole"), expected, "{mode:?}");
    }
}

#[test]
fn an_event_orders_two_streams_and_carries_time() {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 8 * 64, 256).expect("fits");
        let (actor, first) = actor(&machine, 0);
        let second = actor.create_stream();
        let before = actor.record_event(first).expect("recorded");
        actor
            .start(
                first,
                launch("writes", 8, 256, move || {
                    for _ in 0..20 {
                        device::barrier(0, 0);
                    }
                    add(word(at, u64::from(device::block_index())), 1);
                }),
            )
            .expect("a legal launch");
        let event = actor.record_event(first).expect("recorded");
        actor.wait_event(second, &event).expect("same machine");
        actor
            .start(
                second,
                launch("reads", 1, 32, move || {
                    for block in 0..8 {
                        assert_eq!(device::load::<u64>(word(at, block), WEAK), 256);
                    }
                }),
            )
            .expect("a legal launch");
        actor.synchronize(second).expect("done in order");
        assert!(event.is_complete());
        assert!(event.wall_time() >= before.wall_time() && before.wall_time().is_some());
        assert!(event.virtual_ns() > before.virtual_ns(), "{mode:?}: 2048 threads took no virtual time");
        actor.synchronize_event(&event).expect("long reached");
    }
}

#[test]
fn streams_of_a_rank_run_concurrently_and_blocks_wait_for_sms() {
    for mode in modes() {
        let machine = Machine::new(MachineConfig::new(1, mode).with_sms_per_rank(2)).expect("a machine");
        let at = machine.allocate(0, 24, 256).expect("fits");
        let (actor, first) = actor(&machine, 0);
        let second = actor.create_stream();
        actor
            .start(
                first,
                launch("waits", 1, 32, move || {
                    wait_for(word(at, 0), 32 * 20, 0, None);
                }),
            )
            .expect("a legal launch");
        // 20 blocks take turns on the one SM that is left; the most ever resident is noted.
        actor
            .start(
                second,
                launch("raises", 20, 32, move || {
                    let resident = if device::thread_index() == 0 { add(word(at, 1), 1) + 1 } else { 0 };
                    device::rmw(word(at, 2), device::Rmw::Max, resident, RELAXED);
                    device::barrier(0, 0);
                    if device::thread_index() == 0 {
                        add(word(at, 1), u64::MAX);
                    }
                    add(word(at, 0), 1);
                }),
            )
            .expect("a legal launch");
        actor.synchronize(first).expect("the other stream raises the flag");
        actor.synchronize(second).expect("done");
        assert_eq!(machine.read(at, 3).expect("in bounds"), [640, 0, 1], "{mode:?}");
    }
}

#[test]
fn launches_that_break_a_rule_name_argument_value_and_rule() {
    let machine = machine(1, Mode::Fast { workers: 1 });
    let (actor, stream) = actor(&machine, 0);
    let of = |grid, threads| launch("never runs", grid, threads, || panic!("a refused launch ran"));
    let cases: [(&str, &str, Launch); 8] = [
        ("grid", "0", of(0, 32)),
        ("threads", "0", of(1, 0)),
        ("threads", "33", of(1, 33)),
        ("threads", "1056", of(1, 1056)),
        ("shared_bytes", "232449", of(1, 32).with_shared_bytes(232_449)),
        ("blocks_per_sm", "0", of(1, 32).with_blocks_per_sm(0)),
        ("grid", "133", of(133, 32).with_cooperative(true)),
        ("grid", "265", of(265, 32).with_cooperative(true).with_blocks_per_sm(2)),
    ];
    for (name, number, launch) in cases {
        match actor.start(stream, launch) {
            Err(SimError::InvalidArgument { argument, value, rule, .. }) => {
                assert_eq!((argument, value.as_str()), (name, number));
                assert!(!rule.is_empty());
            }
            other => panic!("{name} = {number}: {other:?}"),
        }
    }
    actor.synchronize(stream).expect("nothing was launched");
}

#[test]
fn a_stream_and_an_event_belong_to_their_makers() {
    let machines = [machine(2, Mode::Fast { workers: 1 }), machine(1, Mode::Fast { workers: 1 })];
    let (zero, stream) = actor(&machines[0], 0);
    let (one, _) = actor(&machines[0], 1);
    let (other, theirs) = actor(&machines[1], 0);
    assert!(matches!(one.synchronize(stream), Err(SimError::InvalidArgument { argument: "stream", .. })));
    let event = zero.record_event(stream).expect("recorded");
    assert!(matches!(other.wait_event(theirs, &event), Err(SimError::InvalidArgument { argument: "event", .. })));
}

#[test]
fn a_cooperative_grid_is_resident_as_a_whole() {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 8, 256).expect("fits");
        let grid_barrier = launch("grid barrier", 264, 32, move || {
            if device::thread_index() == 0 {
                add(word(at, 0), 1);
                wait_for(word(at, 0), 264, 0, None);
            }
        });
        run(&machine, grid_barrier.with_cooperative(true).with_blocks_per_sm(2)).expect("all arrive");
    }
}

#[test]
fn sizes_out_of_range_are_refused() {
    for workers in [1025, usize::MAX] {
        let error = Machine::new(MachineConfig::new(1, Mode::Fast { workers })).expect_err("too many");
        assert!(matches!(&error, SimError::InvalidArgument { argument: "workers", .. }), "{error}");
    }
    let machine = machine(1, Mode::Fast { workers: 1 });
    let at = machine.allocate(0, 64, 256).expect("fits");
    for words in [usize::MAX, 1 << 61, (1 << 61) + 1, 1 << 60] {
        let error = machine.read(at, words).expect_err("too many");
        assert!(matches!(&error, SimError::InvalidArgument { argument: "from", .. }), "{error}");
    }
    assert!(matches!(machine.read(at + 4, 1), Err(SimError::InvalidArgument { argument: "from", .. })));
    assert!(matches!(machine.read_bytes(at - 1, &mut [0]), Err(SimError::InvalidArgument { argument: "from", .. })));
    assert_eq!(machine.read(at, 8).expect("in bounds"), [0; 8]);
}
