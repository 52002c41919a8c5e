//! The host's own reads and writes of device memory, and things that belong to one machine.

mod rig;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use epoxide_sim::{Mode, SimError, device};
use rig::*;

#[test]
fn a_safe_read_is_refused_while_any_stream_has_work() {
    for mode in modes() {
        within(Duration::from_secs(60), move || {
            let machine = machine(2, mode);
            let (flag, other) =
                (machine.allocate(1, 8, 256).expect("fits"), machine.allocate(0, 64, 256).expect("fits"));
            let (reads, _stream) = actor(&machine, 0);
            let (waits, stream) = actor(&machine, 1);
            assert_eq!(machine.read(other, 8).expect("nothing was launched"), [0; 8]);
            let kernel = launch("waits", 1, 32, move || {
                wait_for(word(flag, 0), 1, 0, None);
            });
            waits.start(stream, kernel).expect("a legal launch");
            // It may run, and touch anything, also memory that it has no business with.
            let refused = |result: Result<(), SimError>| match result {
                Err(SimError::Busy { what, .. }) => assert!(what.contains("stream 0 of rank 1"), "{what}"),
                other => panic!("{mode:?}: {other:?}"),
            };
            refused(machine.read(other, 8).map(drop));
            refused(machine.read_bytes(other, &mut [0; 5]));
            // SAFETY: nothing writes the first, and the second is a word that the kernel polls as one.
            let seen = unsafe { [machine.peek(other, 1), machine.peek(flag, 1)] };
            assert_eq!(seen, [Ok(vec![0]), Ok(vec![0])]);
            // SAFETY: a word that the kernel polls as one, and nobody has a reference to.
            unsafe { machine.write(flag, &[1]) }.expect("live");
            reads.leave();
            waits.synchronize(stream).expect("the flag is there");
            assert_eq!(machine.read(flag, 1).expect("the stream is idle"), [1]);
        });
    }
}

#[test]
fn a_call_on_a_stream_does_not_read_as_if_nothing_ran() {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 64, 256).expect("fits");
        let (actor, stream) = actor(&machine, 0);
        let (refused, handle) = (Arc::new(AtomicBool::new(false)), machine.clone());
        let told = Arc::clone(&refused);
        let call = move || told.store(matches!(handle.read(at, 1), Err(SimError::Busy { .. })), Ordering::Relaxed);
        actor.host_call(stream, Box::new(call)).expect("queued");
        actor.synchronize(stream).expect("done");
        assert!(refused.load(Ordering::Relaxed), "{mode:?}");
    }
}

#[test]
fn memory_can_be_read_after_a_failure() {
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 8, 256).expect("fits");
        let kernel = launch("fails", 8, 64, move || {
            add(word(at, 0), 1);
            assert!(device::block_index() != 3, "as it must");
            wait_for(shared(0), u64::MAX, 0, None);
        });
        assert!(matches!(run(&machine, kernel), Err(SimError::KernelFailed { .. })));
        // Every worker is out of its blocks, so that it stays what it is.
        let seen = machine.read(at, 1).expect("the machine stopped");
        assert_eq!(machine.read(at, 1).expect("the machine stopped"), seen, "{mode:?}");
    }
}

#[test]
fn bytes_beside_those_that_are_written_and_read_are_not_touched() {
    // Two host threads write the parts of one word again and again. Were a write one of the whole word, it would now and then
    // put back what the other one had there before.
    let machine = machine(1, Mode::Fast { workers: 1 });
    let at = machine.allocate(0, 16, 256).expect("fits");
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        for (first, bytes) in [(0, 3), (3, 13)] {
            let (machine, start) = (&machine, &start);
            scope.spawn(move || {
                start.wait();
                let (mut mine, mut seen) = ([0; 16], [0; 16]);
                let (mine, seen) = (&mut mine[..bytes], &mut seen[..bytes]);
                for round in 0..1_500_000u32 {
                    mine.fill(round as u8);
                    // SAFETY: these bytes are this thread's, and no kernel runs.
                    unsafe {
                        if round % 2 == 0 {
                            machine.write_bytes(at + first, mine).expect("live");
                        } else {
                            machine.fill_bytes(at + first, round as u8, bytes as u64).expect("live");
                        }
                        machine.peek_bytes(at + first, seen).expect("live");
                    }
                    assert_eq!(seen, mine, "round {round}");
                }
            });
        }
    });
}

#[test]
fn events_and_streams_of_a_machine_that_is_gone_belong_to_no_later_one() {
    for mode in [Mode::Fast { workers: 1 }, Mode::Seeded { seed: 1 }] {
        let old = {
            let machine = machine(1, mode);
            let (actor, stream) = actor(&machine, 0);
            (actor.record_event(stream).expect("recorded"), stream)
        };
        // One of these is likely to lie where the old one was.
        for _ in 0..20 {
            let machine = machine(1, mode);
            let (actor, stream) = actor(&machine, 0);
            for refused in [actor.wait_event(stream, &old.0), actor.synchronize_event(&old.0)] {
                assert!(matches!(refused, Err(SimError::InvalidArgument { argument: "event", .. })), "{refused:?}");
            }
            let refused = actor.synchronize(old.1);
            assert!(
                matches!(&refused, Err(SimError::InvalidArgument { argument: "stream", value, .. })
                if value.contains("another machine")),
                "{refused:?}"
            );
        }
    }
}

#[test]
fn an_actor_reads_and_writes_by_itself_and_fills_in_its_streams_order() {
    for mode in modes() {
        let machine = machine(2, mode);
        machine.expect_actors(&[1]).expect("in range");
        let at = machine.allocate(1, 16, 256).expect("fits");
        let (actor, stream) = actor(&machine, 1);
        // SAFETY: no kernel uses it yet.
        unsafe { actor.write_bytes(at + 3, &[7; 5]) }.expect("live");
        let kernel = launch("adds", 1, 32, move || {
            if device::thread_index() == 0 {
                add(word(at, 0), 1);
            }
        });
        actor.start(stream, kernel.clone()).expect("a legal launch");
        // SAFETY: in stream order nothing else uses the bytes, and they stay allocated.
        unsafe { actor.fill_bytes(stream, at + 1, 9, 2) }.expect("live");
        actor.start(stream, kernel).expect("a legal launch");
        actor.synchronize(stream).expect("done");
        let mut seen = [0; 16];
        // SAFETY: the stream is idle.
        unsafe { actor.peek_bytes(at, &mut seen) }.expect("live");
        let mut words = [0; 1];
        // SAFETY: as above.
        unsafe { actor.peek(at, &mut words) }.expect("live");
        assert_eq!(words[0].to_ne_bytes(), seen[..8]);
        assert_eq!(seen, [2, 9, 9, 7, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0], "{mode:?}");
        // SAFETY: all are refused.
        let refused = unsafe {
            [
                actor.write_bytes(at + 12, &[0; 5]),
                actor.peek_bytes(at + 16, &mut [0]),
                actor.peek(at + 4, &mut [0]),
                actor.fill_bytes(stream, at - 1, 0, 1),
            ]
        };
        let said = [
            ["to is 5 bytes", "for the host thread of rank 1", "1 bytes beyond an allocation of 16 bytes"],
            ["from is 1 bytes", "for the host thread of rank 1", "0 bytes behind an allocation of 16 bytes"],
            ["from is 1 words", "for the host thread of rank 1", "a multiple of 8"],
            ["to is 1 bytes", "in stream 0 of rank 1", "1 bytes before an allocation of 16 bytes"],
        ];
        for (refused, said) in refused.into_iter().zip(said) {
            let error = refused.expect_err("out of bounds").to_string();
            assert!(said.iter().all(|part| error.contains(part)), "{mode:?}: {error}");
        }
    }
}
