//! Layouts of shared memory: what the host counts is where the kernel's arrays are.
mod rig;

use epoxide_dsl::prelude::*;
use rig::*;

#[test]
fn arrays_follow_each_other_aligned_and_apart() {
    let mut layout = SharedLayout::new();
    let bytes = layout.array::<u8>(3);
    let halves = layout.array::<Bf16>(5);
    let words = layout.array::<u64>(2);
    let vectors = layout.array::<U32x4>(1);
    let codes = layout.array::<E4m3>(1);
    let rows = layout.array_aligned::<u8, 128>(7);
    let none = layout.array::<u32>(0);
    let offsets = [bytes.offset(), halves.offset(), words.offset(), vectors.offset(), codes.offset(), rows.offset()];
    assert_eq!(offsets, [0, 4, 16, 32, 48, 128]);
    assert_eq!((none.offset(), layout.bytes()), (136, 136));
    assert_eq!(SharedLayout::default().bytes(), 0);
}

#[test]
fn a_layout_is_a_constant_if_its_lengths_are() {
    const BYTES: u32 = {
        let mut layout = SharedLayout::new();
        layout.array::<f32>(10);
        layout.array::<u64>(1);
        layout.bytes()
    };
    assert_eq!(BYTES, 48);
}

#[test]
fn a_layout_that_is_too_large_stays_too_large() {
    for n in [u32::MAX / 4, u32::MAX / 4 + 1, u32::MAX] {
        let mut layout = SharedLayout::new();
        layout.array::<u8>(8);
        layout.array::<u32>(n);
        assert_eq!(layout.bytes(), u32::MAX, "{n}");
        layout.array::<u64>(1);
        assert_eq!(layout.array::<u8>(1).offset(), u32::MAX, "{n}");
        assert_eq!(layout.bytes(), u32::MAX, "{n}");
    }
}

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct LayoutArgs {
    out: Global<u64>,
    n: u32,
}

struct Lay {
    bytes: SharedArray<u8>,
    words: SharedArray<u64>,
    halves: SharedArray<u16>,
    total: u32,
}

#[inline(always)]
const fn lay(n: u32) -> Lay {
    let mut layout = SharedLayout::new();
    Lay { bytes: layout.array(n), words: layout.array(n), halves: layout.array(n), total: layout.bytes() }
}

#[kernel(threads = 64)]
fn lays(args: LayoutArgs) {
    let Lay { bytes, words, halves, .. } = lay(args.n);
    let t = thread::index();
    if t < args.n {
        bytes.address().store_weak(t, t as u8);
        words.address().store_weak(t, u64::from(t) << 40);
        halves.address().store_weak(t, 1000 + t as u16);
    }
    block::sync();
    if t < args.n {
        let word = words.address().load_weak(t) | u64::from(halves.address().load_weak(t)) << 8;
        args.out.store_weak(t, word | u64::from(bytes.address().load_weak(t)));
    }
}

#[test]
fn a_kernel_and_its_launch_agree_and_no_byte_is_missing() {
    for n in [1, 7, 33, 64] {
        for mode in modes() {
            let machine = machine(1, mode);
            let out = zeros(&machine, 0, 64);
            let args = LayoutArgs { out: global(out), n };
            run(&machine, [lays.simulated(1, lay(n).total, args)]).expect("it fits");
            let expected: Vec<u64> = (0..u64::from(n)).map(|t| t << 40 | (1000 + t) << 8 | t).collect();
            assert_eq!(machine.read(out, n as usize).expect("in bounds"), expected, "{mode:?}, {n}");
            run(&machine, [lays.simulated(1, lay(n).total - 1, args)]).expect_err("a byte less is too little");
        }
    }
}
