//! Quantising and dequantising are bitwise what the plain reference says, for every shape and schedule.
use crate::assert_error;
use crate::support;

use epoxide::quantize::{Quantizer, scale_stride, scale_stride_of};
use epoxide::{Comm, Error, Mode, Result, WireFormat, bf16};
use proptest::prelude::*;
use support::packed;
use support::reference::{self, same};
use support::routing::Random;
use support::{Device, replay};

/// What the groups of a row hold.
#[derive(Clone, Copy, Debug)]
enum Content {
    /// Any finite number.
    AnyFinite,
    /// Numbers around 1.
    Ordinary,
    /// Mostly zeros of both signs.
    Zeros,
    /// Subnormals.
    Subnormal,
    /// Near the largest finite number.
    Huge,
    /// One number everywhere.
    Equal,
    /// Finite numbers and now and then an infinity.
    Infinities,
    /// Products that lie exactly between two codes.
    Ties,
}

#[derive(Clone, Debug)]
struct Case {
    rows: u32,
    hidden: u32,
    content: Content,
    data: u64,
    mode: Mode,
}

fn cases(device: Device) -> impl Strategy<Value = Case> {
    let content = prop_oneof![
        Just(Content::AnyFinite),
        Just(Content::Ordinary),
        Just(Content::Zeros),
        Just(Content::Subnormal),
        Just(Content::Huge),
        Just(Content::Equal),
        Just(Content::Infinities),
        Just(Content::Ties),
    ];
    let fast = Just(Mode::Fast { workers: 0 });
    let mode = match device {
        Device::Simulated => prop_oneof![fast, any::<u64>().prop_map(|seed| Mode::Seeded { seed })].boxed(),
        Device::Cuda => fast.boxed(),
    };
    // Rows that end in the middle of a group, at its end, and many short ones.
    let hidden = prop_oneof![1..=40u32, 1..=128u32, Just(16), Just(17), Just(15)].prop_map(|eights| eights * 8);
    let rows = match device {
        Device::Simulated => 0..=24u32,
        Device::Cuda => 0..=600,
    };
    (rows, hidden, content, any::<u64>(), mode).prop_map(|(rows, hidden, content, data, mode)| Case {
        rows,
        hidden,
        content,
        data,
        mode,
    })
}

impl Case {
    fn x(&self) -> Vec<bf16> {
        let mut random = Random::new(self.data);
        let equal = finite(&mut random);
        let elements = self.rows as usize * self.hidden as usize;
        (0..elements).map(|at| self.element(at, equal, &mut random)).collect()
    }

    fn element(&self, at: usize, equal: bf16, random: &mut Random) -> bf16 {
        let bits = random.draw() as u16;
        let sign = bits & 0x8000;
        match self.content {
            Content::AnyFinite => finite(random),
            Content::Ordinary => bf16::from_bits(bits & 0x80ff | 0x3f00),
            Content::Zeros => bf16::from_bits(if random.below(64) == 0 { bits & 0xbfff } else { sign }),
            Content::Subnormal => bf16::from_bits(bits & 0x807f),
            Content::Huge => bf16::from_bits(sign | (0x7f00 + random.below(0x80) as u16)),
            Content::Equal => equal,
            Content::Infinities if random.below(200) == 0 => bf16::from_bits(sign | 0x7f80),
            Content::Infinities => finite(random),
            // The group's amax is 448, so every element is its own quotient; 3 to 4 mantissa bits hit the midpoints.
            Content::Ties if (at % self.hidden as usize).is_multiple_of(128) => bf16::from_f32(448.0),
            Content::Ties => bf16::from_bits((sign | 0x3a80) + (random.below(0x90) << 3) as u16),
        }
    }
}

fn finite(random: &mut Random) -> bf16 {
    let x = bf16::from_bits(random.draw() as u16);
    if x.is_finite() { x } else { bf16::from_bits(x.to_bits() & 0xbfff) }
}

/// Quantises and dequantises `x` on a rank; codes, scales and rows. The padding of the scales keeps what was there.
fn on_device(comm: &Comm, x: &[bf16], rows: u32, hidden: u32) -> Result<(Vec<u8>, Vec<f32>, Vec<bf16>)> {
    let quantizer = Quantizer::new(comm)?;
    let strides = rows as usize * scale_stride(hidden) as usize;
    let (mut codes, mut scales) = (comm.tensor(&vec![0xaau8; x.len()])?, comm.tensor(&vec![0.0f32; strides])?);
    let (from, mut y) = (comm.tensor(x)?, comm.tensor(&vec![bf16::from_bits(0x5a5a); x.len()])?);
    quantizer.quantize(&from, u64::from(rows), hidden, &mut codes, &mut scales)?;
    quantizer.dequantize(&codes, &scales, u64::from(rows), hidden, &mut y)?;
    comm.synchronize()?;
    Ok((codes.to_vec()?, scales.to_vec()?, y.to_vec()?))
}

fn check(device: Device, mode: Mode, x: &[bf16], rows: u32, hidden: u32) -> std::result::Result<(), String> {
    let (want_codes, want_scales) = reference::quantize(x, hidden);
    let stride = scale_stride(hidden) as usize;
    let mut want = vec![bf16::ZERO; x.len()];
    let per_row = want_codes.chunks(hidden as usize).zip(want_scales.chunks(stride));
    for ((codes, scales), row) in per_row.zip(want.chunks_mut(hidden as usize)) {
        reference::dequantize_row(codes, scales, row);
    }
    device.check(1, mode, |comm| {
        let (codes, scales, y) = on_device(&comm, x, rows, hidden)?;
        Ok(same("codes", &codes, &want_codes, hidden as usize)
            .and_then(|()| same("scales", &scales, &want_scales, stride))
            .and_then(|()| same("dequantised rows", &y, &want, hidden as usize)))
    })
}

/// The same with powers of two for scales.
fn check_packed(
    device: Device,
    mode: Mode,
    format: WireFormat,
    x: &[bf16],
    hidden: u32,
) -> std::result::Result<(), String> {
    let (row, group) = (hidden as usize, packed::group(format));
    let rows = (x.len() / row) as u64;
    let (want_codes, want_scales) = packed::quantize(x, hidden, group);
    let stride = packed::scale_stride(hidden, group);
    assert_eq!(scale_stride_of(format, hidden) as usize, stride);
    let mut want = vec![bf16::ZERO; x.len()];
    let per_row = want_codes.chunks(row).zip(want_scales.chunks(stride));
    for ((codes, scales), to) in per_row.zip(want.chunks_mut(row)) {
        packed::dequantize_row(codes, scales, group, to);
    }
    device
        .check(1, mode, |comm| {
            let quantizer = Quantizer::with_packed_scales(&comm, format)?;
            let (mut codes, mut scales) =
                (comm.tensor(&vec![0xaau8; x.len()])?, comm.tensor(&vec![0; want_scales.len()])?);
            let (from, mut y) = (comm.tensor(x)?, comm.tensor(&vec![bf16::from_bits(0x5a5a); x.len()])?);
            // What a row's scales take is written to its last byte; what lies behind is not touched.
            let untouched: Vec<u32> =
                (0..want_scales.len()).map(|at| if at % stride < row.div_ceil(4 * group) { !0 } else { 0 }).collect();
            scales.copy_from_host(&untouched)?;
            quantizer.quantize_packed(&from, rows, hidden, &mut codes, &mut scales)?;
            quantizer.dequantize_packed(&codes, &scales, rows, hidden, &mut y)?;
            comm.synchronize()?;
            let (codes, scales, y) = (codes.to_vec()?, scales.to_vec()?, y.to_vec()?);
            Ok(same("codes", &codes, &want_codes, row)
                .and_then(|()| same("scales", &scales, &want_scales, stride))
                .and_then(|()| same("dequantised rows", &y, &want, row)))
        })
        .map_err(|why| format!("{format:?}: {why}"))
}

/// What is not finite spoils its group and no other, in groups of either size.
#[test]
fn what_has_no_power_of_two_is_nan() {
    let device = Device::from_env();
    for bad in [bf16::NAN, bf16::INFINITY, bf16::NEG_INFINITY] {
        for at in [0, 31, 200, 271] {
            let mut x = vec![bf16::ONE; 2 * 272];
            x[272 + at] = bf16::from_bits(bad.to_bits());
            for format in [WireFormat::Fp8Ue8m0, WireFormat::Mxfp8] {
                check_packed(device, Mode::Fast { workers: 0 }, format, &x, 272).unwrap();
            }
        }
    }
}

/// Formats that have no packed scales are refused by name, and so are packed scales where their kernels are not loaded.
#[test]
fn other_formats_have_no_packed_scales() {
    let results = support::errors::run(1, support::errors::schedules()[0], |comm| {
        let (plain, mx) = (Quantizer::new(&comm)?, Quantizer::with_packed_scales(&comm, WireFormat::Mxfp8)?);
        let (mut x, mut codes) = (comm.tensor(&[bf16::ONE; 64])?, comm.empty::<u8>(64)?);
        let (mut scales, mut short) = (comm.empty::<u32>(4)?, comm.empty::<u32>(3)?);
        Ok([
            Quantizer::with_packed_scales(&comm, WireFormat::Fp8).unwrap_err(),
            plain.quantize_packed(&x, 1, 64, &mut codes, &mut scales).unwrap_err(),
            plain.dequantize_packed(&codes, &scales, 1, 64, &mut x).unwrap_err(),
            mx.quantize_packed(&x, 1, 64, &mut codes, &mut short).unwrap_err(),
            mx.dequantize_packed(&codes, &short, 1, 64, &mut x).unwrap_err(),
        ])
    });
    let [format, quantize, dequantize, short, short_too] = results.into_iter().next().unwrap().unwrap();
    assert_eq!(format.to_string(), "format = Fp8: a format with packed scales: Fp8Ue8m0 or Mxfp8");
    for error in [quantize, dequantize] {
        assert_error!(error, Error::InvalidArgument { argument: "format", .. }, "Quantizer::with_packed_scales");
    }
    for error in [short, short_too] {
        assert_error!(error, Error::BufferTooSmall { argument: "scales", needed: 16, given: 12, .. }, "16 bytes");
    }
}

/// A group with a NaN is NaN, codes and scale, and nothing else is.
#[test]
fn a_nan_spoils_its_group_and_no_other() {
    let device = Device::from_env();
    // Two rows of two groups and a partial one; the NaN is in the second group of the second row.
    let hidden = 272;
    let mut x = vec![bf16::ONE; 2 * hidden];
    x[hidden + 200] = bf16::NAN;
    for mode in device.schedules([1]) {
        let results = device.run_all(1, mode, |comm| on_device(&comm, &x, 2, hidden as u32));
        let (codes, scales, y) = results.into_iter().next().unwrap().unwrap();
        let stride = scale_stride(hidden as u32) as usize;
        for row in 0..2 {
            for column in 0..hidden {
                let spoiled = (row, column / 128) == (1, 1);
                let (code, y) = (codes[row * hidden + column], y[row * hidden + column]);
                assert_eq!(code, if spoiled { 0x7f } else { 0x7e }, "{mode:?}: row {row}, column {column}");
                assert_eq!(y.is_nan(), spoiled, "{mode:?}: row {row}, column {column}: {y}");
                assert_eq!(
                    scales[row * stride + column / 128].is_nan(),
                    spoiled,
                    "{mode:?}: row {row}, column {column}"
                );
            }
        }
    }
}

#[test]
fn quantize_is_bitwise_the_reference() {
    let device = Device::from_env();
    // On a GPU most of a case is the making of its group.
    let tries = if device == Device::Cuda { 50 } else { 400 };
    replay::law(module_path!(), "quantize_is_bitwise_the_reference", tries, cases(device), |case| {
        check(device, case.mode, &case.x(), case.rows, case.hidden)?;
        let format = if case.data.is_multiple_of(2) { WireFormat::Fp8Ue8m0 } else { WireFormat::Mxfp8 };
        check_packed(device, case.mode, format, &case.x(), case.hidden)
    });
}

/// Every BF16 number that is not a NaN, each the largest of its group in turn, and each beside a fixed largest one.
#[test]
fn every_bf16_number_is_quantised_as_the_reference_does() {
    let device = Device::from_env();
    let numbers: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).filter(|x| !x.is_nan()).collect();
    let (alone, beside) = numbers.as_chunks::<128>().0.split_at(numbers.len() / 128);
    assert!(beside.is_empty());
    let ordered: Vec<bf16> = alone.iter().flatten().copied().collect();
    let scaled = |amax: f32| {
        let beside = ordered.chunks(127).flat_map(move |numbers| {
            let fitting = numbers.iter().map(move |x| if f32::from(*x).abs() <= amax { *x } else { bf16::ONE });
            std::iter::once(bf16::from_f32(amax))
                .chain(fitting)
                .chain(std::iter::repeat_n(bf16::ZERO, 127 - numbers.len()))
        });
        beside.collect::<Vec<bf16>>()
    };
    for mode in device.schedules([]) {
        for x in [ordered.clone(), scaled(448.0), scaled(1.0), scaled(3.0), scaled(0.0)] {
            let rows = x.len() as u32 / 128;
            check(device, mode, &x, rows, 128).unwrap();
            for format in [WireFormat::Fp8Ue8m0, WireFormat::Mxfp8] {
                check_packed(device, mode, format, &x, 128).unwrap();
            }
        }
    }
}

/// The two roundings of the reference itself: the obvious one, and the one that is fast enough.
#[test]
fn the_reference_rounds_to_the_nearest_code() {
    for high in 0..=u16::MAX {
        for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let x = f32::from_bits(u32::from(high) << 16 | low);
            assert_eq!(reference::e4m3(x), reference::nearest_e4m3(x), "{x:e} ({:08x})", x.to_bits());
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn large_tensors_are_quantised_on_the_gpu() {
    for (rows, hidden) in [(4096, 7168), (4097, 2880), (33_000, 256), (1, 1 << 20), (70_001, 8), (9_001, 136)] {
        let mut random = Random::new(u64::from(rows) << 32 | u64::from(hidden));
        let x = support::routing::rows(&mut random, rows, hidden);
        check(Device::Cuda, Mode::Fast { workers: 0 }, &x, rows, hidden).unwrap();
        for format in [WireFormat::Fp8Ue8m0, WireFormat::Mxfp8] {
            check_packed(Device::Cuda, Mode::Fast { workers: 0 }, format, &x, hidden).unwrap();
        }
    }
}

#[test]
fn every_schedule_gives_the_same_codes() {
    let case = Case { rows: 5, hidden: 200, content: Content::Ordinary, data: 7, mode: Mode::Seeded { seed: 0 } };
    for seed in 0..12 {
        check(Device::Simulated, Mode::Seeded { seed }, &case.x(), case.rows, case.hidden).unwrap();
    }
}
