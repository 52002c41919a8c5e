//! What `#[kernel]` makes for the host: a descriptor with the function's bounds and an entry that runs its body.
mod rig;

use epoxide_dsl::prelude::*;
use rig::*;

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct FillArgs {
    out: Global<u64>,
    n: u64,
    value: u64,
}

/// Documented.
#[kernel(threads = 96, blocks_per_sm = 3, cooperative)]
fn fill(mut args: FillArgs) {
    let i = u64::from(thread::block_index() * thread::block_threads() + thread::index());
    if i >= args.n {
        return;
    }
    // The argument is this thread's own.
    args.value += i;
    args.out.store_weak(i, args.value);
}

#[kernel(threads = 32)]
fn smallest(_n: u32) {}

#[test]
fn the_descriptor_says_what_the_attribute_said() {
    assert_eq!((fill.name(), fill.threads(), fill.blocks_per_sm(), fill.cooperative()), ("fill", 96, 3, true));
    assert_eq!((smallest.name(), smallest.threads(), smallest.blocks_per_sm()), ("smallest", 32, 1));
    assert!(!smallest.cooperative());
}

#[test]
fn the_entry_runs_the_body_with_the_argument() {
    for mode in modes() {
        let machine = machine(1, mode);
        let out = zeros(&machine, 0, 200);
        run(&machine, [fill.simulated(2, 0, FillArgs { out: global(out), n: 150, value: 1000 })]).expect("it ends");
        let expected: Vec<u64> = (0..200).map(|i| if i < 150 { 1000 + i } else { 0 }).collect();
        assert_eq!(machine.read(out, 200).expect("in bounds"), expected, "{mode:?}");
    }
}

#[test]
fn an_access_out_of_bounds_is_reported_with_kernel_thread_and_line() {
    for mode in modes() {
        let machine = machine(1, mode);
        let args = FillArgs { out: global(0x1000), n: 1, value: 0 };
        let message = run(&machine, [fill.simulated(1, 0, args)]).expect_err("nothing is there").to_string();
        for part in ["kernel fill", "block 0, warp 0, lane 0", "descriptor.rs:24:", "out of bounds"] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
}

#[test]
#[should_panic(expected = "outside")]
fn a_kernel_outside_a_machine_panics_with_a_message() {
    fill.entry()(FillArgs { out: global(0x1000), n: 1, value: 0 });
}
