//! Warp collectives against plain loops over the lanes, under whole and partial masks.
mod rig;

use epoxide_dsl::prelude::*;
use rig::*;

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct WarpArgs {
    /// `[threads]`.
    values: Global<u32>,
    /// `[threads][RESULTS]`.
    results: Global<u32>,
    mask: u32,
    flip: u32,
    distance: u32,
    floor: u32,
}

const RESULTS: u64 = 8;

/// The lane of `mask` after `lane`, around.
fn next(mask: u32, lane: u32) -> u32 {
    let above = if lane == 31 { 0 } else { mask & (u32::MAX << (lane + 1)) };
    if above == 0 { mask.trailing_zeros() } else { above.trailing_zeros() }
}

#[kernel(threads = 96)]
fn warp_operations(args: WarpArgs) {
    let i = u64::from(thread::block_index() * 96 + thread::index());
    let (mask, lane) = (args.mask, warp::lane());
    let value = args.values.load_weak(i);
    if mask >> lane & 1 == 1 {
        let out = args.results.at(i * RESULTS);
        out.store_weak(0, warp::shuffle(mask, value, next(mask, lane)));
        out.store_weak(1, warp::shuffle_xor(mask, value, args.flip));
        out.store_weak(2, warp::shuffle_up(mask, value, args.distance));
        out.store_weak(3, warp::ballot(mask, value > args.floor));
        out.store_weak(4, warp::match_any(mask, value % 5));
        out.store_weak(5, warp::sum(mask, value));
        out.store_weak(6, warp::min(mask, value));
        out.store_weak(7, warp::max(mask, value));
    }
}

/// What one warp's lanes must get; lanes outside the mask get nothing.
fn reference(values: &[u32], args: &WarpArgs) -> Vec<[u32; RESULTS as usize]> {
    let lanes: Vec<u32> = (0..32).filter(|lane| args.mask >> lane & 1 == 1).collect();
    let of = |lane: u32| values[lane as usize];
    let lanes_where = |p: &dyn Fn(u32) -> bool| lanes.iter().filter(|&&l| p(l)).fold(0, |all, l| all | 1 << l);
    let one = |lane: u32| {
        if !lanes.contains(&lane) {
            return [0; RESULTS as usize];
        }
        [
            of(next(args.mask, lane)),
            of(lane ^ args.flip),
            if lane >= args.distance { of(lane - args.distance) } else { of(lane) },
            lanes_where(&|l| of(l) > args.floor),
            lanes_where(&|l| of(l) % 5 == of(lane) % 5),
            lanes.iter().fold(0, |sum: u32, &l| sum.wrapping_add(of(l))),
            lanes.iter().map(|&l| of(l)).min().unwrap_or(0),
            lanes.iter().map(|&l| of(l)).max().unwrap_or(0),
        ]
    };
    (0..32).map(one).collect()
}

#[test]
fn warp_operations_are_those_of_plain_loops() {
    // A shuffle reads lanes of its own mask only, or none: flip and distance are chosen so.
    for (mask, flip, distance) in [
        (warp::ALL, 0, 0),
        (warp::ALL, 31, 1),
        (warp::ALL, 16, 31),
        (0x0000_ffff, 8, 3),
        (0x5555_5555, 2, 4),
        (0x8000_0001, 31, 31),
        (1 << 7, 0, 31),
    ] {
        for mode in modes() {
            let machine = machine(1, mode);
            let values: Vec<u32> = (0..192).map(|i| scramble(i) as u32).collect();
            let results = zeros(&machine, 0, 192 * RESULTS as usize / 2);
            let args = WarpArgs {
                values: global(filled(&machine, 0, &pack(&values))),
                results: global(results),
                mask,
                flip,
                distance,
                floor: u32::MAX / 3,
            };
            run(&machine, [warp_operations.simulated(2, 0, args)]).expect("it ends");
            let expected: Vec<u32> = values.chunks(32).flat_map(|warp| reference(warp, &args)).flatten().collect();
            assert_eq!(read_u32(&machine, results, expected.len()), expected, "{mode:?}, mask {mask:#x}");
        }
    }
}

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct GroupArgs {
    values: Global<f32>,
    /// `[6][threads]`.
    maxima: Global<f32>,
}

#[kernel(threads = 64)]
fn group_maxima(args: GroupArgs) {
    let i = u64::from(thread::index());
    let x = args.values.load_weak(i);
    args.maxima.store_weak(i, warp::max_in_group::<1>(x));
    args.maxima.store_weak(64 + i, warp::max_in_group::<2>(x));
    args.maxima.store_weak(128 + i, warp::max_in_group::<4>(x));
    args.maxima.store_weak(192 + i, warp::max_in_group::<8>(x));
    args.maxima.store_weak(256 + i, warp::max_in_group::<16>(x));
    args.maxima.store_weak(320 + i, warp::max_in_group::<32>(x));
}

#[test]
fn the_largest_of_a_group_goes_to_all_of_it_and_a_nan_is_larger_than_all() {
    let mut values: Vec<f32> = (0..64).map(|i| (scramble(i) % 1000) as f32 / 7.0).collect();
    values[3] = 0.0;
    values[9] = f32::INFINITY;
    // Its sign bit alone would make it the largest number.
    values[20] = -0.0;
    values[40] = f32::NAN;
    for mode in modes() {
        let machine = machine(1, mode);
        let bits: Vec<u32> = values.iter().map(|x| x.to_bits()).collect();
        let maxima = zeros(&machine, 0, 192);
        let args = GroupArgs { values: global(filled(&machine, 0, &pack(&bits))), maxima: global(maxima) };
        run(&machine, [group_maxima.simulated(1, 0, args)]).expect("it ends");
        let found = read_u32(&machine, maxima, 384);
        for (size, found) in [1, 2, 4, 8, 16, 32].into_iter().zip(found.chunks(64)) {
            for (i, &found) in found.iter().enumerate() {
                let group = &values[i / size * size..][..size];
                let nan = group.iter().any(|x| x.is_nan());
                let largest = if nan { f32::NAN } else { group.iter().map(|x| x.abs()).fold(0.0, f32::max) };
                assert_eq!(found, largest.to_bits(), "{mode:?}, groups of {size}, lane {i}");
            }
        }
    }
}

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct OutArgs {
    out: Global<u64>,
}

#[kernel(threads = 96)]
fn indices(args: OutArgs) {
    let word = u64::from(warp::lane()) | u64::from(warp::index()) << 8 | u64::from(warp::count()) << 16;
    args.out.store_weak(u64::from(thread::index()), word);
}

#[test]
fn lane_index_and_count_come_from_the_thread_index() {
    for mode in modes() {
        let machine = machine(1, mode);
        let out = zeros(&machine, 0, 96);
        run(&machine, [indices.simulated(1, 0, OutArgs { out: global(out) })]).expect("it ends");
        let expected: Vec<u64> = (0..96).map(|t| (t % 32) + ((t / 32) << 8) + (3 << 16)).collect();
        assert_eq!(machine.read(out, 96).expect("in bounds"), expected, "{mode:?}");
    }
}

/// Ten rounds of "write mine, meet, read my neighbour's, meet".
#[kernel(threads = 64)]
fn neighbours(args: OutArgs) {
    let words = Shared::<u32>::dynamic(warp::index() * 128);
    let mut sum = 0;
    let mut round = 0;
    while round < 10 {
        words.store_weak(warp::lane(), round * 100 + warp::lane());
        warp::sync(warp::ALL);
        sum += u64::from(words.load_weak((warp::lane() + 1) % 32));
        warp::sync(warp::ALL);
        round += 1;
    }
    args.out.store_weak(u64::from(thread::index()), sum);
}

#[test]
fn a_warp_that_met_sees_what_its_lanes_wrote() {
    for mode in modes() {
        let machine = machine(1, mode);
        let out = zeros(&machine, 0, 64);
        run(&machine, [neighbours.simulated(1, 256, OutArgs { out: global(out) })]).expect("it ends");
        let expected: Vec<u64> = (0..64u64).map(|t| 4500 + 10 * ((t + 1) % 32)).collect();
        assert_eq!(machine.read(out, 64).expect("in bounds"), expected, "{mode:?}");
    }
}

/// Lanes of the upper half leave early, and the others wait for all.
#[kernel(threads = 32)]
fn absent_lanes(args: OutArgs) {
    if warp::lane() < 16 {
        args.out.store_weak(0, u64::from(warp::ballot(warp::ALL, true)));
    }
}

#[test]
fn a_lane_that_does_not_come_is_reported_and_not_waited_for() {
    for mode in modes() {
        let machine = machine(1, mode);
        let args = OutArgs { out: global(zeros(&machine, 0, 1)) };
        let message = run(&machine, [absent_lanes.simulated(1, 0, args)]).expect_err("16 lanes miss").to_string();
        assert!(message.contains("absent_lanes") && message.contains("warp.rs"), "{mode:?}: {message}");
    }
}

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct FloatWarpArgs {
    /// `[threads]`.
    x: Global<f32>,
    /// `[6][threads]`.
    y: Global<f32>,
}

#[kernel(threads = 64)]
fn float_operations(args: FloatWarpArgs) {
    let i = thread::index();
    let x = args.x.load_weak(i);
    args.y.store_weak(i, warp::shuffle(warp::ALL, x, 31 - warp::lane()));
    args.y.at(64).store_weak(i, warp::shuffle_xor(warp::ALL, x, 5));
    args.y.at(128).store_weak(i, warp::shuffle_up(warp::ALL, x, 3));
    args.y.at(192).store_weak(i, warp::sum_f32(x));
    args.y.at(256).store_weak(i, warp::sum_in_group::<8>(x));
    args.y.at(320).store_weak(i, warp::max_f32(x));
    // A signed number is moved as it is.
    let negative = warp::shuffle_xor(warp::ALL, -(i as i32), 1);
    if negative != -((i ^ 1) as i32) {
        args.y.store_weak(i, f32::NAN);
    }
}

/// Neighbours first, then pairs, and so on.
fn tree_sum(x: &[f32]) -> f32 {
    match x {
        [x] => *x,
        _ => tree_sum(&x[..x.len() / 2]) + tree_sum(&x[x.len() / 2..]),
    }
}

/// The largest in the total order of IEEE 754, and the one NaN that a maximum gives.
fn total_max(x: &[f32]) -> f32 {
    let nan = x.iter().any(|x| x.is_nan());
    if nan { f32::from_bits(0x7fff_ffff) } else { x.iter().copied().max_by(f32::total_cmp).expect("not empty") }
}

#[test]
fn floats_are_moved_and_reduced_in_the_order_that_is_documented() {
    let random = |i: u64| (scramble(i) % 2000) as f32 / 7.0 - 140.0;
    let wide = |i: u64| random(i) * 2f32.powi((scramble(i + 99) % 40) as i32 - 20);
    let zeros_of_both_signs = |i: u64| if i == 7 || i > 40 { 0.0 } else { -0.0 };
    let with_nans = |i: u64| if i == 9 { -f32::NAN } else { random(i) };
    let with_infinity = |i: u64| if i % 32 == 30 { f32::NEG_INFINITY } else { -random(i).abs() };
    let inputs: [&dyn Fn(u64) -> f32; 6] =
        [&random, &wide, &zeros_of_both_signs, &with_nans, &with_infinity, &|_| -0.0];
    for mode in modes() {
        for (number, input) in inputs.iter().enumerate() {
            let machine = machine(1, mode);
            let x: Vec<f32> = (0..64).map(input).collect();
            let bits: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
            let y = zeros(&machine, 0, 192);
            let args = FloatWarpArgs { x: global(filled(&machine, 0, &pack(&bits))), y: global(y) };
            run(&machine, [float_operations.simulated(1, 0, args)]).expect("it ends");
            let found = read_u32(&machine, y, 384);
            for i in 0..64 {
                let (first, lane) = (i / 32 * 32, i % 32);
                let warp = &x[first..][..32];
                let expected = [
                    warp[31 - lane],
                    warp[lane ^ 5],
                    warp[if lane < 3 { lane } else { lane - 3 }],
                    tree_sum(warp),
                    tree_sum(&warp[lane / 8 * 8..][..8]),
                    total_max(warp),
                ];
                for (what, expected) in expected.into_iter().enumerate() {
                    let found = f32::from_bits(found[64 * what + i]);
                    // A sum's NaN is any.
                    let same = found.to_bits() == expected.to_bits()
                        || (3..5).contains(&what) && found.is_nan() && expected.is_nan();
                    assert!(same, "{mode:?}, input {number}, result {what} of {i}: {found:e}, not {expected:e}");
                }
            }
        }
    }
}
