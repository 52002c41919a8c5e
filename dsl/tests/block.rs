//! Block collectives, indices, shared memory, clocks and unrolled loops.
mod rig;

use epoxide_dsl::prelude::*;
use rig::*;

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct OutArgs {
    out: Global<u64>,
    n: u64,
}

#[kernel(threads = 64)]
fn indices(args: OutArgs) {
    let (t, b) = (u64::from(thread::index()), u64::from(thread::block_index()));
    let sizes = u64::from(thread::block_threads()) << 16 | u64::from(thread::grid_blocks());
    args.out.store_weak(b * 64 + t, b << 48 | t << 32 | sizes);
}

#[test]
fn every_thread_of_the_grid_has_its_indices() {
    for mode in modes() {
        let machine = machine(1, mode);
        let out = zeros(&machine, 0, 320);
        run(&machine, [indices.simulated(5, 0, OutArgs { out: global(out), n: 0 })]).expect("it ends");
        let expected: Vec<u64> = (0..320).map(|i| (i / 64) << 48 | (i % 64) << 32 | 64 << 16 | 5).collect();
        assert_eq!(machine.read(out, 320).expect("in bounds"), expected, "{mode:?}");
    }
}

/// Reverses the block's words through shared memory, `n` times.
#[kernel(threads = 128)]
fn reverse(args: OutArgs) {
    let words = Shared::<u64>::dynamic(64);
    let t = thread::index();
    let mut mine = u64::from(t) << 8 | u64::from(thread::block_index());
    let mut round = 0;
    while round < args.n {
        words.store_weak(t, mine);
        block::sync();
        mine = words.load_weak(127 - t) + 1;
        block::sync();
        round += 1;
    }
    args.out.store_weak(u64::from(thread::block_index() * 128 + t), mine);
}

#[test]
fn a_block_that_met_sees_what_its_threads_wrote_and_no_other_blocks() {
    for mode in modes() {
        let machine = machine(1, mode);
        let out = zeros(&machine, 0, 384);
        run(&machine, [reverse.simulated(3, 64 + 1024, OutArgs { out: global(out), n: 5 })]).expect("it ends");
        let expected: Vec<u64> = (0..384).map(|i| ((127 - i % 128) << 8 | (i / 128)) + 5).collect();
        assert_eq!(machine.read(out, 384).expect("in bounds"), expected, "{mode:?}");
    }
}

/// In round `r` the predicate holds in thread `r` alone; in the last round nowhere.
#[kernel(threads = 64)]
fn anyone(args: OutArgs) {
    let mut answers = 0u64;
    let mut round = 0;
    while round <= 64 {
        if block::any(thread::index() == round && round != 20).get() {
            answers += if round < 63 { 1 << round } else { 1 << 63 };
        }
        round += 1;
    }
    args.out.store_weak(u64::from(thread::index()), answers);
}

#[test]
fn any_is_true_in_all_threads_if_it_is_in_one() {
    for mode in modes() {
        let machine = machine(1, mode);
        let out = zeros(&machine, 0, 64);
        run(&machine, [anyone.simulated(1, 0, OutArgs { out: global(out), n: 0 })]).expect("it ends");
        assert_eq!(machine.read(out, 64).expect("in bounds"), [!(1u64 << 20); 64], "{mode:?}");
    }
}

/// One thread per element type: writes it and its neighbours in shared memory, and copies the bytes out.
#[kernel(threads = 128)]
fn shared_types(args: OutArgs) {
    let t = thread::index();
    let base = Shared::<u8>::dynamic(0);
    base.store_weak(t, t as u8);
    base.cast::<u16>().at(64).store_weak(t, 0x1000 + t as u16);
    base.cast::<f32>().at(96).store_weak(t, t as f32);
    base.cast::<i64>().at(112).store_weak(t, -i64::from(t));
    base.cast::<Bf16>().at(960).store_weak(t, Bf16(t as u16));
    base.cast::<E4m3>().at(2176).store_weak(t, E4m3(255 - t as u8));
    block::sync();
    // A neighbour's, so that a store of the wrong size or place would show.
    let n = (t + 1) % 128;
    let mut word = u64::from(base.load_weak(n));
    word += u64::from(base.cast::<u16>().at(64).load_weak(n)) << 8;
    word += (base.cast::<f32>().at(96).load_weak(n) as u64) << 24;
    word += (base.cast::<i64>().at(112).load_weak(n).unsigned_abs()) << 32;
    word += u64::from(base.cast::<Bf16>().at(960).load_weak(n).0) << 40;
    word += u64::from(base.cast::<E4m3>().at(2176).load_weak(n).0) << 48;
    args.out.store_weak(u64::from(t), word);
    // A vector is four words.
    if t < 8 {
        let vector = base.cast::<U32x4>().load_weak(t);
        base.cast::<U32x4>().at(200).store_weak(t, [vector[3], vector[2], vector[1], vector[0]]);
        let back = base.cast::<u64>().at(400);
        args.out.store_weak(128 + u64::from(2 * t), back.load_weak(2 * t));
        args.out.store_weak(129 + u64::from(2 * t), back.load_weak(2 * t + 1));
    }
    if t == 0 {
        args.out.store_weak(144, u64::from(base.at(40).address() - base.address()));
    }
}

#[test]
fn shared_memory_holds_every_type_at_its_own_size() {
    for mode in modes() {
        let machine = machine(1, mode);
        let out = zeros(&machine, 0, 145);
        run(&machine, [shared_types.simulated(1, 4096, OutArgs { out: global(out), n: 0 })]).expect("it ends");
        let found = machine.read(out, 145).expect("in bounds");
        for (t, &word) in found[..128].iter().enumerate() {
            let n = (t as u64 + 1) % 128;
            let expected = n | (0x1000 + n) << 8 | n << 24 | n << 32 | n << 40 | (255 - n) << 48;
            assert_eq!(word, expected, "{mode:?}, thread {t}");
        }
        for t in 0..8u32 {
            let bytes = |at: u32| (0..4).fold(0, |all, i| all | u64::from(16 * t + at + i) << (8 * i));
            let expected = [bytes(12) | bytes(8) << 32, bytes(4) | bytes(0) << 32];
            assert_eq!(found[128 + 2 * t as usize..][..2], expected, "{mode:?}, vector {t}");
        }
        assert_eq!(found[144], 40, "{mode:?}");
    }
}

#[kernel(threads = 256)]
fn shared_atomics(args: OutArgs) {
    let count = Shared::<u32>::dynamic(16);
    let least = Shared::<u32>::dynamic(32);
    let t = thread::index();
    if t == 0 {
        // Shared memory begins as anything.
        count.store_weak(0, 0);
        count.store_weak(1, 1000);
        count.store_weak(2, 0);
        least.store_weak(1, u32::MAX);
    }
    block::sync();
    let before = count.fetch_add_relaxed(1, 3);
    let _ = least.fetch_min_relaxed(1, ((t * 77 + 5) % 256) << 24 | 1);
    args.out.store_weak(u64::from((before - 1000) / 3), 1);
    block::sync();
    if t == 0 {
        args.out.store_weak(256, u64::from(count.load_weak(1)));
        args.out.store_weak(257, u64::from(least.load_weak(1)));
        args.out.store_weak(258, u64::from(least.fetch_min_relaxed(1, 0)));
        args.out.store_weak(259, u64::from(count.load_weak(0) + count.load_weak(2)));
    }
}

#[test]
fn shared_atomics_lose_nothing() {
    for mode in modes() {
        let machine = machine(1, mode);
        let out = zeros(&machine, 0, 260);
        run(&machine, [shared_atomics.simulated(1, 64, OutArgs { out: global(out), n: 0 })]).expect("it ends");
        let found = machine.read(out, 260).expect("in bounds");
        assert_eq!(found[..256], [1; 256], "{mode:?}: each value before was seen once");
        assert_eq!(found[256..], [1000 + 3 * 256, 1, 1, 0], "{mode:?}");
    }
}

#[kernel(threads = 64)]
fn sleeps(args: OutArgs) {
    let t = u64::from(thread::index());
    let before = clock::global_ns();
    clock::sleep_until(args.n * (t % 4));
    // It never goes back, and the sleep was long enough and no more than a little too long.
    let after = clock::global_ns();
    let right = after >= before && after >= args.n * (t % 4);
    args.out.store_weak(t, u64::from(right) << 63 | after);
}

#[test]
fn a_sleep_ends_at_its_time() {
    const SECOND: u64 = 1_000_000_000;
    for mode in modes() {
        let machine = machine(1, mode);
        let out = zeros(&machine, 0, 64);
        run(&machine, [sleeps.simulated(1, 0, OutArgs { out: global(out), n: SECOND })]).expect("it ends");
        for (t, word) in machine.read(out, 64).expect("in bounds").into_iter().enumerate() {
            let (right, late) = (word >> 63 == 1, (word & (u64::MAX >> 1)) - SECOND * (t as u64 % 4));
            assert!(right && late < SECOND / 1000, "{mode:?}, thread {t}: {late} ns late");
        }
    }
}

#[kernel(threads = 32)]
fn unrolled(args: OutArgs) {
    let mut x = [0u64; 8];
    unroll!(J in 8 => { x[J] = 1 << (4 * J); });
    let mut sums = [0u64; 4];
    unroll!(A in 2 => { sums[0] += x[A]; });
    unroll!(A in 3 => { sums[1] += x[A]; });
    unroll!(A in 4 => { sums[2] += x[A]; });
    unroll!(A in 2 => { unroll!(B in 4 => { sums[3] += x[4 * A + B]; }); });
    unroll!(J in 4 => { args.out.store_weak(J as u64, sums[J]); });
}

#[test]
fn an_unrolled_loop_has_its_index_as_a_constant() {
    let machine = machine(1, modes()[0]);
    let out = zeros(&machine, 0, 4);
    run(&machine, [unrolled.simulated(1, 0, OutArgs { out: global(out), n: 0 })]).expect("it ends");
    assert_eq!(machine.read(out, 4).expect("in bounds"), [0x11, 0x111, 0x1111, 0x1111_1111]);
    // Outside of kernels too, and each body is a scope of its own.
    let mut counts = [0; 3];
    unroll!(J in 3 => {
        const TWICE: usize = 2 * J;
        counts[J] = TWICE;
    });
    assert_eq!(counts, [0, 2, 4]);
    // Those for which a condition holds, a constant one or not.
    const MOST: usize = 5;
    let (mut sum, one) = (0, 1);
    unroll!(J in 8 if J < MOST && J != one => { sum += 1 << J; });
    assert_eq!(sum, 0b11101);
}

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct ReduceArgs {
    x: Global<f32>,
    /// `[4][threads]`.
    y: Global<f32>,
    /// `[threads]`.
    threads: u64,
}

#[inline(always)]
#[track_caller]
fn reduce(args: ReduceArgs) {
    let mut layout = SharedLayout::new();
    let _before = layout.array::<u64>(1);
    let scratch = layout.array::<f32>(block::REDUCTION_WORDS).address();
    let i = u64::from(thread::index());
    let x = args.x.load_weak(i);
    // One after the other on the same words, and a third of the first's result.
    let sum = block::sum_f32(x, scratch).get();
    let max = block::max_f32(x, scratch).get();
    let again = block::sum_f32(x / sum, scratch).get();
    args.y.store_weak(i, sum);
    args.y.at(args.threads).store_weak(i, max);
    args.y.at(2 * args.threads).store_weak(i, again);
}

#[kernel(threads = 32)]
fn reduce_32(args: ReduceArgs) {
    reduce(args);
}
#[kernel(threads = 96)]
fn reduce_96(args: ReduceArgs) {
    reduce(args);
}
#[kernel(threads = 1024)]
fn reduce_1024(args: ReduceArgs) {
    reduce(args);
}

/// Neighbours first, then pairs, and so on.
fn tree_sum(x: &[f32]) -> f32 {
    match x {
        [x] => *x,
        _ => tree_sum(&x[..x.len() / 2]) + tree_sum(&x[x.len() / 2..]),
    }
}

/// Each warp's sum, then the warps', as if there were 32 of them.
fn block_sum(x: &[f32]) -> f32 {
    let mut warps: Vec<f32> = x.chunks(32).map(tree_sum).collect();
    warps.resize(32, -0.0);
    tree_sum(&warps)
}

#[test]
fn floats_of_a_block_are_reduced_in_one_order_in_every_schedule() {
    for (kernel, threads) in [(reduce_32, 32usize), (reduce_96, 96), (reduce_1024, 1024)] {
        for mode in modes() {
            let machine = machine(1, mode);
            let scaled = |i: u64| (scramble(i) % 2000) as f32 / 7.0 * 2f32.powi((i % 23) as i32 - 11) - 9.0;
            // The largest is in the last warp.
            let x: Vec<f32> =
                (0..threads as u64).map(|i| if i == threads as u64 - 3 { 1e7 } else { scaled(i) }).collect();
            let bits: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
            let y = zeros(&machine, 0, 2 * threads);
            let x_at = filled(&machine, 0, &pack(&bits));
            let args = ReduceArgs { x: global(x_at), y: global(y), threads: threads as u64 };
            run(&machine, [kernel.simulated(1, 8 + 4 * block::REDUCTION_WORDS, args)]).expect("it ends");
            let sum = block_sum(&x);
            let shares: Vec<f32> = x.iter().map(|x| x / sum).collect();
            let found = read_u32(&machine, y, 3 * threads);
            for (found, expected) in found.chunks(threads).zip([sum, 1e7, block_sum(&shares)]) {
                assert_eq!(found, vec![expected.to_bits(); threads], "{mode:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn the_sum_and_the_largest_of_a_block_of_negative_zeros_are_negative_zero() {
    let machine = machine(1, modes()[3]);
    let x = filled(&machine, 0, &[0x8000_0000_8000_0000; 48]);
    let y = zeros(&machine, 0, 192);
    let args = ReduceArgs { x: global(x), y: global(y), threads: 96 };
    run(&machine, [reduce_96.simulated(1, 8 + 128, args)]).expect("it ends");
    assert_eq!(read_u32(&machine, y, 192), [1 << 31; 192]);
}
