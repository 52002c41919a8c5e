//! The small floats, converted by kernels, against the plain definitions of their formats.
mod rig;

use epoxide_dsl::prelude::*;
use epoxide_sim::Mode;
use rig::*;

#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
struct FloatArgs {
    x: Global<f32>,
    bf16: Global<Bf16>,
    /// Pairs of codes.
    e4m3: Global<u16>,
    n: u64,
}

#[kernel(threads = 256)]
fn narrow(args: FloatArgs) {
    let mut i = u64::from(thread::block_index() * 256 + thread::index());
    while 2 * i < args.n {
        let (low, high) = (args.x.load_weak(2 * i), args.x.load_weak(2 * i + 1));
        args.bf16.store_weak(2 * i, Bf16::from_f32(low));
        args.bf16.store_weak(2 * i + 1, Bf16((Bf16::pair_from_f32(low, high) >> 16) as u16));
        // Both ways to convert, in turn.
        let four = E4m3::four_from_f32([high, low, low, high]);
        let pair = E4m3::pair_from_f32(low, high);
        args.e4m3.store_weak(i, if i.is_multiple_of(2) { pair } else { (four >> 16) as u16 });
        i += u64::from(thread::grid_blocks() * 256);
    }
}

/// The value of a code, by the definition of the format (OCP FP8, table 1).
fn e4m3_value(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match (exponent, code & 0x7f) {
        (_, 0x7f) => f64::NAN,
        (0, _) => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if code >> 7 == 1 { -magnitude } else { magnitude }
}

/// The nearest finite code, an even one of two.
fn nearest_e4m3(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let distance = |code: u8| (e4m3_value(code) - f64::from(x.abs()).min(1e9)).abs();
    let best = (0..0x7f).min_by(|&a: &u8, &b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
    best.unwrap_or(0) | if x.is_sign_negative() { 0x80 } else { 0 }
}

/// The nearest of the two neighbours of 16 bits, an even one of two.
fn nearest_bf16(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    if x.is_infinite() {
        return (x.to_bits() >> 16) as u16;
    }
    let down = (x.to_bits() >> 16) as u16;
    // Above the largest is what would be the next power of two: infinity.
    let value = |bits: u16| {
        if bits & 0x7fff == 0x7f80 { 2f64.powi(128) } else { f64::from(f32::from_bits(u32::from(bits) << 16)).abs() }
    };
    let (below, above) = (f64::from(x.abs()) - value(down), value(down + 1) - f64::from(x.abs()));
    if below < above || below == above && down & 1 == 0 { down } else { down + 1 }
}

#[test]
fn floats_are_rounded_to_the_nearest_ties_to_even() {
    // All of the upper 16 bits, with lower bits that are below, at and above every tie.
    let lows = [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
    let bits: Vec<u32> = (0..=0xffffu32).flat_map(|high| lows.map(|low| high << 16 | low)).collect();
    for mode in [Mode::Fast { workers: 2 }, Mode::Seeded { seed: 3 }] {
        let machine = machine(1, mode);
        let [bf16, e4m3] = [bits.len() / 4, bits.len() / 8].map(|words| zeros(&machine, 0, words));
        let x = filled(&machine, 0, &pack(&bits));
        let args = FloatArgs { x: global(x), bf16: global(bf16), e4m3: global(e4m3), n: bits.len() as u64 };
        run(&machine, [narrow.simulated(4, 0, args)]).expect("it ends");
        let halves = machine.read(bf16, bits.len() / 4).expect("in bounds");
        let codes = machine.read(e4m3, bits.len() / 8).expect("in bounds");
        for (i, &bits) in bits.iter().enumerate() {
            let x = f32::from_bits(bits);
            assert_eq!((halves[i / 4] >> (16 * (i % 4))) as u16, nearest_bf16(x), "{bits:#010x} = {x:e} as bf16");
            assert_eq!((codes[i / 8] >> (8 * (i % 8))) as u8, nearest_e4m3(x), "{bits:#010x} = {x:e} as e4m3");
        }
    }
}

#[test]
fn widening_is_exact() {
    for code in 0..=u8::MAX {
        let (found, expected) = (f64::from(E4m3(code).to_f32()), e4m3_value(code));
        assert!(found == expected || found.is_nan() && expected.is_nan(), "{code:#04x}: {found}, not {expected}");
        assert_eq!(found.is_sign_negative() && !found.is_nan(), code >> 7 == 1 && code != 0xff, "{code:#04x}");
    }
    assert_eq!(f64::from(E4m3::MAX), e4m3_value(0x7e));
    for bits in 0..=u16::MAX {
        assert_eq!(Bf16(bits).to_f32().to_bits(), u32::from(bits) << 16);
    }
    // A word's numbers, the low ones first.
    for low in 0..=u16::MAX {
        let high = low.wrapping_mul(40_503);
        let pair = Bf16::unpack(u32::from(high) << 16 | u32::from(low));
        assert_eq!(pair.map(f32::to_bits), [low, high].map(|bits| Bf16(bits).to_f32().to_bits()));
        let codes = [low as u8, (low >> 8) as u8, high as u8, (high >> 8) as u8];
        let four = E4m3::unpack(u32::from_le_bytes(codes));
        assert_eq!(four.map(f32::to_bits), codes.map(|code| E4m3(code).to_f32().to_bits()));
    }
}
