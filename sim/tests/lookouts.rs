//! A host thread that waits for a word of device memory while kernels run.

mod rig;

use epoxide_sim::{Mode, SimError, device};
use rig::*;

/// A kernel writes a word and goes on for long: the host thread goes on at the word.
#[test]
fn a_host_thread_goes_on_when_the_word_changes() {
    let mut midway = 0;
    for mode in modes() {
        let machine = machine(1, mode);
        let at = machine.allocate(0, 16, 256).expect("fits");
        let (actor, stream) = actor(&machine, 0);
        let kernel = launch("writes", 1, 32, move || {
            device::barrier(0, 0);
            if device::thread_index() == 0 {
                device::store(word(at, 1), 7u64, WEAK);
            }
            for _ in 0..2000 {
                device::barrier(0, 0);
            }
        });
        actor.start(stream, kernel).expect("a legal launch");
        let end = actor.record_event(stream).expect("recorded");
        // SAFETY: the kernel writes whole words there.
        unsafe { actor.wait_words(&[(at, 0), (at + 8, 0)], u64::MAX) }.expect("it is written");
        midway += u32::from(!end.is_complete());
        let mut seen = [0; 2];
        // SAFETY: as above.
        unsafe { actor.peek(at, &mut seen) }.expect("in bounds");
        assert_eq!(seen, [0, 7], "{mode:?}");
        // What is so already is not waited for.
        // SAFETY: as above.
        unsafe { actor.wait_words(&[(at + 8, 0)], u64::MAX) }.expect("at once");
        actor.synchronize(stream).expect("done");
    }
    assert!(midway > 1, "it only saw the end");
}

/// Time passes while it waits, with a kernel or without, and not beyond its end.
#[test]
fn it_waits_no_longer_than_it_says() {
    for mode in modes() {
        let machine = machine(2, mode);
        let at = machine.allocate(0, 8, 256).expect("fits");
        let ((actor, stream), (other, _)) = (actor(&machine, 0), actor(&machine, 1));
        drop(other);
        let until = machine.virtual_ns() + 1_000_000_000;
        // SAFETY: nobody writes it.
        unsafe { actor.wait_words(&[(at, 0)], until) }.expect("time passes");
        assert!((until..until + 1_000_000).contains(&machine.virtual_ns()), "{mode:?}: {}", machine.virtual_ns());
        let kernel = launch("sleeps", 1, 32, || device::sleep_until(device::clock_ns() + 3_000_000_000));
        actor.start(stream, kernel).expect("a legal launch");
        let until = machine.virtual_ns() + 1_000_000_000;
        // SAFETY: nobody writes it.
        unsafe { actor.wait_words(&[(at, 0)], until) }.expect("time passes");
        let now = machine.virtual_ns();
        let on_time = (until..until + 1_000_000).contains(&now);
        // In the fast mode who runs holds up no sleeper: the kernel may have woken before the wait began, at the end of its sleep.
        let woke = until + 2_000_000_000;
        let early = matches!(mode, Mode::Fast { .. }) && (woke..woke + 1_000_000).contains(&now);
        assert!(on_time || early, "{mode:?}: {now}");
        // SAFETY: it is refused.
        let refused = unsafe { actor.wait_words(&[(at + 4, 0)], until) };
        assert!(matches!(refused, Err(SimError::InvalidArgument { .. })), "{refused:?}");
        actor.synchronize(stream).expect("done");
    }
}
