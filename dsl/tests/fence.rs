//! Fences reach the simulator, and so do atomics on shared memory: a seeded schedule may take the turn there.
mod rig;

use epoxide_dsl::prelude::*;
use epoxide_sim::Mode;
use rig::*;

/// A fence as a step of a kernel.
type Step = fn();

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct StepArgs {
    /// How many threads are between their two stores, and the most that anyone has seen there.
    inside: Global<u32>,
    most: Global<u32>,
    which: u32,
    reserved: u32,
}

const STEPS: [(&str, Step); 5] = [
    ("acquire", fence::acquire::<Block>),
    ("release", fence::release::<Gpu>),
    ("acq_rel", fence::acq_rel::<System>),
    ("atomics on shared memory", shared_atomics),
    ("nothing", || {}),
];

/// Changes no word.
fn shared_atomics() {
    let word = Shared::<u32>::dynamic(0);
    word.fetch_add_relaxed(0, 0);
    word.fetch_min_relaxed(0, u32::MAX);
    word.fetch_max_relaxed(0, 0);
}

/// Weak accesses never cost a thread its turn: what two threads are in at once holds something that may.
#[kernel(threads = 32)]
fn step(args: StepArgs) {
    let inside = args.inside.load_weak(0) + 1;
    args.inside.store_weak(0, inside);
    if inside > args.most.load_weak(0) {
        args.most.store_weak(0, inside);
    }
    if let Some((_, step)) = STEPS.get(args.which as usize) {
        step();
    }
    args.inside.store_weak(0, args.inside.load_weak(0) - 1);
}

#[test]
fn a_seeded_thread_may_lose_its_turn_at_every_fence_and_atomic() {
    for (which, (name, _)) in (0..).zip(STEPS) {
        let lost = (0..8).any(|seed| {
            let machine = machine(1, Mode::Seeded { seed });
            let [inside, most] = [zeros(&machine, 0, 1), zeros(&machine, 0, 1)];
            let args = StepArgs { inside: global(inside), most: global(most), which, reserved: 0 };
            run(&machine, [step.simulated(1, 128, args)]).expect("it ends");
            read_u32(&machine, most, 1)[0] > 1
        });
        assert_eq!(lost, name != "nothing", "{name}");
    }
}

#[test]
fn a_fence_outside_a_machine_says_so() {
    for fence in [fence::acquire::<Gpu> as Step, fence::release::<Gpu>, fence::acq_rel::<Gpu>] {
        let panic = std::panic::catch_unwind(fence).expect_err("there is no machine");
        let text = panic.downcast_ref::<String>().expect("a message");
        assert!(text.starts_with("device::fence called outside a simulated machine"), "{text}");
    }
}
