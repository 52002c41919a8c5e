//! From a dispatch to the experts and back: what arrived in the caller's vectors, grouped by expert and as f32, and parts of tensors
//! wherever a tensor is taken.
use crate::assert_error;
use crate::support;

use std::collections::BTreeSet;

use epoxide::quantize::{Quantizer, scale_stride};
use epoxide::{
    CombineInput, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, IndexType, Mode, Received, Result,
    WireFormat, WireRows, bf16,
};
use proptest::prelude::*;
use support::errors::{dispatch, run, schedules, small};
use support::exchange::{Tensors, check_received, expert_outputs};
use support::reference::{self, same};
use support::routing::{Case, Choice};
use support::{Checked, Device};

/// An operation of three ranks with several local experts each.
fn case(format: WireFormat, tokens: [u32; 3], data: u64) -> Case {
    Case {
        ranks: 3,
        experts: 10,
        top_k: 5,
        hidden: 208,
        format,
        num_sms: 2,
        tokens: tokens.to_vec(),
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 2,
        data,
        mode: Mode::Fast { workers: 0 },
    }
}

/// Every selection of the grouped rows is one of the received ones, in order, and none is missing.
fn check_grouped(received: &Received, experts: usize, top_k: usize) -> Checked {
    let grouped = received.by_expert().map_err(|error| error.to_string())?;
    if grouped.experts() != experts || grouped.offsets[0] != 0 || grouped.offsets[experts] != grouped.rows.len() {
        return Err(format!("{} experts, offsets {:?}", grouped.experts(), grouped.offsets));
    }
    let selected = |expert: usize| {
        let rows = received.topk_idx.chunks(top_k).zip(received.topk_weights.chunks(top_k)).enumerate();
        let rows = rows.flat_map(move |(row, (experts, weights))| {
            experts.iter().zip(weights).filter(move |(e, _)| **e == expert as i32).map(move |(_, w)| (row, w.to_bits()))
        });
        rows.collect::<Vec<_>>()
    };
    for expert in 0..experts {
        let got: Vec<_> = grouped.rows_of(expert).map(|(row, weight)| (row, weight.to_bits())).collect();
        let (want, count) = (selected(expert), received.counts.by_expert[expert]);
        if got != want || got.len() != count as usize {
            return Err(format!("expert {expert}: {got:?}, expected {want:?}, {count} of them"));
        }
    }
    if grouped.rows_of(experts).next().is_some() || grouped.rows_of(usize::MAX).next().is_some() {
        return Err("an expert that is not there has rows".to_owned());
    }
    Ok(())
}

/// Rounds of different sizes, the largest first, in the same vectors.
#[test]
fn what_was_received_is_grouped_by_expert_and_read_into_the_same_vectors() {
    let device = Device::from_env();
    for format in [WireFormat::Bf16, WireFormat::Fp8, WireFormat::Mxfp8] {
        for mode in device.schedules([1, 2]) {
            let worlds = [[40, 33, 37], [0, 0, 0], [5, 0, 17], [40, 33, 37]].map(|n| case(format, n, 7).world());
            device
                .check(3, mode, |comm| {
                    let config = Config::new(10, 5, 208, 40).with_format(format).with_num_sms(2);
                    let mut buffer = ElasticBuffer::new(&comm, config)?;
                    let mut tensors = Tensors::empty(&comm, 40, 208, 5, IndexType::I64)?;
                    let experts = buffer.local_experts().1 as usize;
                    let (mut received, mut checked, mut at) = (Received::default(), Ok(()), BTreeSet::new());
                    comm.barrier()?;
                    for world in &worlds {
                        tensors.fill(world, comm.rank())?;
                        let handle = tensors.dispatch(&mut buffer, world.inputs[comm.rank() as usize].tokens)?;
                        buffer.received_into(&handle, &mut received)?;
                        let wires: Vec<_> = (0..3).map(|source| world.wire(source)).collect();
                        let want = world.arrivals(comm.rank());
                        checked = checked
                            .and_then(|()| check_received(world, &wires, &want, &received))
                            .and_then(|()| check_grouped(&received, experts, 5));
                        let outputs = expert_outputs(comm.rank(), 208, &received);
                        buffer.write_expert_outputs(&handle, &outputs)?;
                        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
                        let rows = match &received.x {
                            WireRows::Bf16(x) => vec![x.as_ptr().addr()],
                            WireRows::Fp8 { codes, scales, .. } => vec![codes.as_ptr().addr(), scales.as_ptr().addr()],
                            WireRows::Fp8Packed { codes, scales, .. } => {
                                vec![codes.as_ptr().addr(), scales.as_ptr().addr()]
                            }
                            WireRows::Opaque { rows, scales, .. } => vec![rows.as_ptr().addr(), scales.as_ptr().addr()],
                        };
                        let (idx, weights) = (received.topk_idx.as_ptr(), received.topk_weights.as_ptr());
                        at.insert((rows, idx.addr(), weights.addr(), received.sources.as_ptr().addr()));
                    }
                    buffer.close()?;
                    Ok(checked.and_then(|()| match at.len() {
                        1 => Ok(()),
                        places => Err(format!("the vectors were in {places} places: {at:?}")),
                    }))
                })
                .unwrap();
        }
    }
}

/// What was read in one format is no obstacle to the other.
#[test]
fn vectors_of_another_format_are_replaced() {
    let received = run(2, schedules()[0], |comm| {
        let mut received = Received::default();
        let ue8m0 = WireFormat::Fp8Ue8m0;
        for format in [WireFormat::Fp8, WireFormat::Bf16, ue8m0, WireFormat::Fp8, WireFormat::Mxfp8, ue8m0] {
            let config = Config::new(8, 2, 64, 4).with_num_sms(2).with_format(format);
            let mut buffer = ElasticBuffer::new(&comm, config)?;
            let handle = dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
            buffer.received_into(&handle, &mut received)?;
            assert_eq!(matches!(received.x, WireRows::Fp8 { .. }), format == WireFormat::Fp8);
            let group = if let WireRows::Fp8Packed { group, .. } = received.x { group } else { 0 };
            let groups = [(ue8m0, 128), (WireFormat::Mxfp8, 32), (format, 0)];
            assert_eq!(Some(group), groups.iter().find(|of| of.0 == format).map(|of| of.1));
            assert_eq!(received.x.to_f32(64)?.len(), 128);
            buffer.close()?;
        }
        Ok(())
    });
    received.into_iter().for_each(|result| result.unwrap());
}

#[test]
fn what_no_dispatch_brought_is_not_grouped() {
    let good = || {
        let mut counts = epoxide::RecvCounts::default();
        (counts.rows, counts.by_expert) = (2, vec![1, 1]);
        Received { counts, topk_idx: vec![0, -1, -1, 1], topk_weights: vec![1.0; 4], ..Received::default() }
    };
    good().by_expert().unwrap();
    assert_eq!(Received::default().by_expert().unwrap().offsets, [0]);
    type Spoil = fn(&mut Received);
    let spoils: [(&str, &str, Spoil); 5] = [
        ("topk_idx", "-1 or one of 2", |r| r.topk_idx[0] = 2),
        ("topk_idx", "-1 or one of 2", |r| r.topk_idx[3] = -2),
        ("topk_idx", "of 3 rows", |r| r.counts.rows = 3),
        ("topk_idx", "of 0 rows", |r| r.counts.rows = 0),
        ("topk_weights", "3 gate weights", |r| r.topk_weights.truncate(3)),
    ];
    for (name, text, spoil) in spoils {
        let mut received = good();
        spoil(&mut received);
        assert_error!(
            received.by_expert().unwrap_err(),
            Error::InvalidArgument { argument, .. } if *argument == name,
            text
        );
    }
}

fn wire_rows() -> impl Strategy<Value = (u32, WireRows)> {
    (0usize..5, 1u32..50).prop_flat_map(|(rows, eights)| {
        let hidden = eights * 8;
        let elements = rows * hidden as usize;
        let stride = scale_stride(hidden);
        let finite = any::<f32>().prop_filter("scales are finite", |s| s.is_finite());
        let scales = prop::collection::vec(prop_oneof![finite, Just(1e-6f32), Just(f32::MAX)], rows * stride as usize);
        let codes = prop::collection::vec(any::<u8>(), elements);
        (codes, scales).prop_map(move |(codes, scales)| (hidden, WireRows::Fp8 { codes, scales, scale_stride: stride }))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// All codes, and scales that overflow and vanish: rounded to BF16, it is bit for bit what the kernel makes.
    #[test]
    fn fp8_rows_as_f32_are_what_the_kernel_rounds((hidden, x) in wire_rows()) {
        let WireRows::Fp8 { codes, scales, .. } = &x else { unreachable!("FP8 rows were made") };
        let rows = codes.len() as u64 / u64::from(hidden);
        let kernel = run(1, Mode::Fast { workers: 1 }, |comm| {
            let (codes, scales) = (comm.tensor(codes)?, comm.tensor(scales)?);
            let mut y = comm.empty::<bf16>(codes.len())?;
            Quantizer::new(&comm)?.dequantize(&codes, &scales, rows, hidden, &mut y)?;
            y.to_vec()
        });
        let kernel = kernel.into_iter().next().unwrap().unwrap();
        let host: Vec<bf16> = x.to_f32(hidden).unwrap().into_iter().map(reference::round).collect();
        prop_assert_eq!(same("rows", &host, &kernel, hidden as usize), Ok(()));
    }
}

#[test]
fn rows_as_f32_are_the_product_before_it_is_rounded() {
    // 13 * 2^-9 * 1.1 has more digits than BF16.
    let x = WireRows::Fp8 { codes: vec![0x0d; 136], scales: vec![1.0, 1.1, 0.0, 0.0], scale_stride: 4 };
    let values = x.to_f32(136).unwrap();
    assert_eq!(values[127..129], [13.0 / 512.0, 13.0 / 512.0 * 1.1]);
    assert_eq!(WireRows::Bf16(vec![bf16::from_bits(0x3f81); 4]).to_f32(2).unwrap(), [1.0078125; 4]);
    let mut row = [0.0; 136];
    x.row_to_f32(0, &mut row).unwrap();
    assert_eq!(values, row);
    for hidden in [0, 135, 272] {
        assert_error!(x.to_f32(hidden).unwrap_err(), Error::InvalidArgument { argument: "hidden", .. }, "136 received");
    }
    for row_number in [1, usize::MAX] {
        let refused = x.row_to_f32(row_number, &mut row).unwrap_err();
        assert_error!(refused, Error::InvalidArgument { argument: "row", .. }, "rows of 136");
    }
    let unscaled = WireRows::Fp8 { codes: vec![0; 136], scales: vec![1.0], scale_stride: 1 };
    assert_error!(unscaled.to_f32(136).unwrap_err(), Error::InvalidArgument { argument: "row", .. }, "136");
}

/// All inputs and outputs are parts of one tensor each, with something else before and behind them.
#[test]
fn parts_of_tensors_are_taken_wherever_tensors_are() {
    for mode in schedules() {
        for staged in [false, true] {
            let results = run(2, mode, |comm| {
                let mut buffer = small(&comm)?;
                let row = |value: f32| vec![bf16::from_f32(value); 64];
                let x = comm.tensor(&[row(9.0), row(1.0), row(2.0), row(9.0)].concat())?;
                // From an odd element on: indices and weights have no rows to align.
                let idx = comm.tensor(&[5i32, 0, 7, 4, -1, 6])?;
                let weights = comm.tensor(&[9.0f32, 0.5, 0.25, 1.0, 0.0, 9.0])?;
                let mut y = comm.tensor(&row(7.0).repeat(4))?;
                let from_two = comm.tensor(&[row(9.0), row(3.0), row(4.0), row(9.0)].concat())?;
                let from_four = comm.tensor(&[row(9.0), row(3.0).repeat(4), row(9.0)].concat())?;
                comm.barrier()?;
                let input =
                    DispatchInput::new(2, x.slice(64..192)?, idx.slice(1..=4)?, weights.slice(1..)?.slice(..4)?);
                let handle = buffer.dispatch(&input)?;
                let received = buffer.received(&handle)?;
                // Experts 4 to 7 are rank 1's: token 0 goes to both ranks, token 1 to rank 1.
                let rows = u64::from(received.counts.rows);
                assert_eq!(rows, if comm.rank() == 0 { 2 } else { 4 });
                let outputs = if comm.rank() == 0 { &from_two } else { &from_four }.slice(64..64 + 64 * rows)?;
                let to = y.slice_mut(64..192)?;
                if staged {
                    buffer.stage_expert_outputs(&handle, outputs)?;
                    buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, to))?;
                } else {
                    buffer.combine(&handle, CombineInput::new(outputs, to))?;
                }
                buffer.synchronize()?;
                let y = y.to_vec()?;
                buffer.close()?;
                let WireRows::Bf16(x) = received.x else { unreachable!("BF16 on the wire") };
                Ok((x[0], received.topk_idx, received.topk_weights, y))
            });
            let results: Vec<_> = results.into_iter().map(Result::unwrap).collect();
            for (rank, (x, idx, weights, y)) in results.iter().enumerate() {
                assert_eq!(*x, bf16::ONE);
                if rank == 0 {
                    assert_eq!((idx.as_slice(), weights.as_slice()), (&[0, -1, 0, -1][..], &[0.5, 0.0, 0.5, 0.0][..]));
                } else {
                    assert_eq!(idx, &[-1, 3, 0, -1, -1, 3, 0, -1]);
                    assert_eq!(weights, &[0.0, 0.25, 1.0, 0.0, 0.0, 0.25, 1.0, 0.0]);
                }
                // Rank 0's outputs are 3 for its first received row and 4 for its second, rank 1's are 3.
                let first = if rank == 0 { 6.0 } else { 7.0 };
                let want = [7.0, first, 3.0, 7.0].map(|value| [bf16::from_f32(value); 64]).concat();
                assert_eq!(same("y", y, &want, 64), Ok(()), "rank {rank}, staged {staged}");
            }
        }
    }
}

#[test]
fn rows_that_begin_at_no_multiple_of_16_bytes_are_refused_by_name() {
    for mode in schedules() {
        let results = run(1, mode, |comm| {
            let mut buffer = small(&comm)?;
            let (x, idx, weights) =
                (comm.tensor(&[bf16::ONE; 136])?, comm.tensor(&[0i64, 7])?, comm.tensor(&[1f32; 2])?);
            let (mut y, mut codes) = (comm.empty::<bf16>(136)?, comm.empty::<u8>(136)?);
            let mut scales = comm.empty::<f32>(8)?;
            let quantizer = Quantizer::new(&comm)?;
            let mut refused = vec![buffer.dispatch(&DispatchInput::new(1, x.slice(1..)?, &idx, &weights)).map(|_| ())];
            // Eight elements further it is as good as the tensor's first.
            let handle = buffer.dispatch(&DispatchInput::new(1, x.slice(8..)?, &idx, &weights))?;
            let odd = x.slice(4..68)?;
            refused.push(buffer.stage_expert_outputs(&handle, odd));
            refused.push(buffer.combine(&handle, CombineInput::new(odd, &mut y)));
            refused.push(buffer.combine(&handle, CombineInput::new(x.prefix(64)?, y.slice_mut(2..)?)));
            refused.push(quantizer.quantize(x.slice(1..)?, 1, 64, &mut codes, &mut scales));
            refused.push(quantizer.quantize(&x, 1, 64, codes.slice_mut(8..)?, &mut scales));
            refused.push(quantizer.copy(x.slice(4..12)?, &mut y));
            refused.push(quantizer.copy(x.slice(8..16)?, y.slice_mut(4..)?));
            // Scales have no rows of 16 bytes.
            quantizer.quantize(&x, 1, 64, codes.slice_mut(16..)?, scales.slice_mut(1..)?)?;
            buffer.combine(&handle, CombineInput::new(x.slice(8..72)?, y.slice_mut(8..72)?))?;
            buffer.synchronize()?;
            let ranges = [x.slice(130..137).err(), x.prefix(137).err(), y.slice_mut(137..).err()];
            let short = buffer.dispatch(&DispatchInput::new(1, x.prefix(56)?, &idx, &weights)).map(|_| ());
            let y = y.slice(8..72)?.to_vec()?;
            buffer.close()?;
            Ok((refused, ranges, short, y))
        });
        let (refused, ranges, short, y) = results.into_iter().next().unwrap().unwrap();
        let arguments = ["x", "expert outputs", "expert outputs", "y", "bf16 rows", "codes", "from", "to"];
        for (refused, name) in refused.into_iter().zip(arguments) {
            let refused = refused.expect_err(name);
            assert_error!(refused, Error::InvalidArgument { argument, .. } if *argument == name, "multiple of 16");
        }
        for refused in ranges {
            let refused = refused.expect("136 elements");
            assert_error!(refused, Error::InvalidArgument { argument: "range", .. }, "within the 136 elements");
        }
        let short = short.expect_err("a row has 64 elements");
        assert_error!(short, Error::BufferTooSmall { argument: "x", needed: 128, given: 112, .. }, "x");
        assert_eq!(y, [bf16::ONE; 64]);
    }
}

/// A tensor of two halves, each another operation's.
#[test]
fn a_tensor_that_is_split_is_written_in_both_parts() {
    let results = run(1, schedules()[0], |comm| {
        let mut tensor = comm.tensor(&[0u32; 8])?;
        let (mut low, mut high) = tensor.slice_mut(..)?.split_at(3)?;
        low.copy_from_host(&[1; 3])?;
        high.slice_mut(1..)?.copy_from_host(&[2; 2])?;
        let refused = [low.copy_from_host(&[0; 4]), high.split_at(6).map(|_| ())];
        Ok((refused, tensor.to_vec()?))
    });
    let (refused, values) = results.into_iter().next().unwrap().unwrap();
    assert_eq!(values, [1, 1, 1, 0, 2, 2, 0, 0]);
    let mut refused = refused.into_iter().map(Result::unwrap_err);
    assert_error!(refused.next().unwrap(), Error::InvalidArgument { argument: "values", .. }, "4 elements", "has 3");
    assert_error!(refused.next().unwrap(), Error::InvalidArgument { argument: "range", .. }, "within the 5");
}
