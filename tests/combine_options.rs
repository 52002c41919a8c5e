//! Combine's options are bitwise what the plain reference says, in every layout: biases, accumulation, sums in f32, gate weights, and
//! weights that travel back. What a buffer or a layout does not have is refused.
use crate::support;

use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, IndexType, Layout, Mode,
    RawCombineInput, Result, ReturnedWeights, WireFormat, bf16,
};
use proptest::prelude::*;
use support::combine_options::{Agreed, Extra, Own, check_combine, combined, weights_back, weights_of_rows};
use support::exchange::{Tensors, expert_outputs};
use support::reference::{Wire, World, round, same};
use support::routing::{Bounds, Case, Choice, Random};
use support::{Checked, Device, complaints, replay};

/// Layouts and whether their rows can be gate-weighted.
const LAYOUTS: [Layout; 2] = [Layout::Compact, Layout::ExpertContiguous { alignment: 4 }];

fn config(case: &Case, layout: Layout) -> Config {
    case.config().with_layout(layout).with_returned_weights().with_routing_slots(2).with_fp8_combine()
}

/// What ranks can agree on where rows lie so.
fn agreements(layout: Layout) -> impl Iterator<Item = Agreed> {
    let all = (0..8).map(|i| Agreed { returned: i % 2 == 1, gated: i / 2 % 2 == 1, fp8: i / 4 == 1 });
    all.filter(move |agreed| layout != Layout::Compact || !agreed.gated)
}

/// Rounds on one buffer, one for each of `plan`: what ranks agree on, and what each does as it likes. Every second replays the routing of
/// the one before with other rows.
fn rounds(
    device: Device,
    case: &Case,
    layout: Layout,
    plan: &[Agreed],
    own: impl Fn(usize, u32) -> Own + Sync,
) -> Checked {
    let worlds: Vec<World> = (0..plan.len() as u64)
        .map(|round| {
            let of = |data| Case { data, ..case.clone() }.world();
            let mut world = of(case.data.wrapping_add(round / 2));
            let other = of(case.data.wrapping_add(1000 + round));
            world.inputs.iter_mut().zip(other.inputs).for_each(|(input, other)| input.x = other.x);
            world
        })
        .collect();
    device.check(case.ranks, case.mode, |comm| {
        let mut buffer = ElasticBuffer::new(&comm, config(case, layout))?;
        let tokens = case.tokens[comm.rank() as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        let (mut checked, mut before) = (Ok(()), None);
        for (number, (&agreed, world)) in plan.iter().zip(&worlds).enumerate() {
            tensors.fill(world, comm.rank())?;
            let handle = match &before {
                Some(before) if number % 2 == 1 => buffer.dispatch_again(before, &tensors.x)?,
                _ => tensors.dispatch(&mut buffer, tokens)?,
            };
            let wires: Vec<Wire> = world.wires();
            let (own, salt) = (own(number, comm.rank()), case.data ^ number as u64);
            let right = check_combine(&comm, &mut buffer, &handle, world, &wires, agreed, own, salt)?;
            checked = checked.and(right.map_err(|why| format!("round {number}: {why}")));
            before = Some(handle);
        }
        buffer.close()?;
        Ok(checked)
    })
}

/// Three ranks, one of which has no token; tokens that select nothing, and some with several experts on a rank.
fn uneven(data: u64, mode: Mode) -> Case {
    Case {
        ranks: 3,
        experts: 7,
        top_k: 5,
        hidden: 72,
        format: WireFormat::Bf16,
        num_sms: 2,
        tokens: vec![9, 0, 6],
        index: IndexType::I32,
        choice: Choice::Uniform,
        holes: 4,
        data,
        mode,
    }
}

#[test]
fn every_combination_is_bitwise_the_reference() {
    let device = Device::from_env();
    let own: Vec<_> = Own::all().collect();
    for layout in LAYOUTS {
        let plan: Vec<_> = agreements(layout).flat_map(|agreed| vec![agreed; own.len()]).collect();
        for seed in replay::seeds(1) {
            let case = uneven(seed, Mode::Fast { workers: 0 });
            rounds(device, &case, layout, &plan, |round, _| own[round % own.len()]).unwrap_or_else(|why| {
                let line = replay::line(module_path!(), "every_combination_is_bitwise_the_reference", seed);
                panic!("{layout:?}: {why}\n{line}")
            });
        }
    }
}

/// Each rank with options of its own, but for those that all agree on.
#[test]
fn random_routings_and_options_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=6, experts: 1..=40, top_k: 32, hidden: 320, tokens: 12 };
    let layouts = prop_oneof![Just(LAYOUTS[0]), Just(Layout::ExpertContiguous { alignment: 1 }), Just(LAYOUTS[1])];
    let cases = (bounds.cases(device), layouts);
    replay::law(
        module_path!(),
        "random_routings_and_options_are_bitwise_the_reference",
        12,
        cases,
        |(case, layout)| {
            let mut random = Random::new(case.data);
            let all: Vec<_> = agreements(layout).collect();
            let plan: Vec<_> = (0..2).map(|_| all[random.below(all.len() as u32) as usize]).collect();
            rounds(device, &case, layout, &plan, |round, rank| {
                Own::random(&mut Random::new(case.data ^ u64::from(rank) << 8 ^ round as u64))
            })
        },
    );
}

/// More rows in a sum than are loaded at once: eight ranks, and biases and sums behind them.
#[test]
fn many_ranks_with_all_options_are_bitwise_the_reference() {
    let device = Device::from_env();
    for layout in LAYOUTS {
        let all: Vec<_> = agreements(layout).collect();
        let case = Case {
            ranks: 8,
            experts: 24,
            top_k: 16,
            tokens: vec![5; 8],
            holes: 0,
            ..uneven(3, Mode::Fast { workers: 0 })
        };
        let own = |_, rank: u32| Own { biases: 2, accumulate: true, wide: rank % 2 == 1, cut: false };
        rounds(device, &case, layout, &all, own).unwrap_or_else(|why| panic!("{layout:?}: {why}"));
    }
}

/// Weights that are in the region already are returned from there, and addresses do what tensors do.
#[test]
fn raw_addresses_and_weights_in_place() {
    let device = Device::from_env();
    for mode in device.schedules([5]) {
        let case = uneven(11, mode);
        let world = case.world();
        let results = device.run_all(case.ranks, mode, |comm| {
            let mut buffer = ElasticBuffer::new(&comm, config(&case, Layout::Compact))?;
            let (rank, tokens) = (comm.rank(), case.tokens[comm.rank() as usize]);
            let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
            tensors.fill(&world, rank)?;
            let handle = tensors.dispatch(&mut buffer, tokens)?;
            let received = buffer.received(&handle)?;
            let outputs = expert_outputs(rank, case.hidden, &received);
            let weights = comm.tensor(&weights_of_rows(&world, rank, Layout::Compact, 0, 1))?;
            let mut back = comm.empty::<f32>(u64::from(tokens * case.top_k))?;
            buffer.write_expert_outputs(&handle, &outputs)?;
            let input = CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y);
            buffer.combine(&handle, input.with_returned_weights(&weights, &mut back))?;
            // They stay where they were copied to.
            let again = buffer.dispatch_again(&handle, &tensors.x)?;
            buffer.write_expert_outputs(&again, &outputs)?;
            let (view, arrays) = (buffer.recv_view(&again)?, buffer.recv_arrays(&again)?);
            let lent = arrays.returned_weights.expect("the buffer has a region for them");
            let mut shaped = same("address", &[lent.address() as u32], &[view.returned_weights as u32], 1);
            shaped = shaped.and(same("strides", &[lent.strides()[0] as u32], &[view.top_k_stride], 1));
            let extra = Extra::new((tokens * case.hidden) as usize, 2);
            let [first, second] = [comm.tensor(&extra.biases[0])?, comm.tensor(&extra.biases[1])?];
            let y = comm.tensor(&extra.before)?;
            back.copy_from_host(&vec![7.0; (tokens * case.top_k) as usize])?;
            let input = RawCombineInput::new_f32(y.address()).with_bias(first.address()).with_bias(second.address());
            let input = input.accumulating().with_returned_weights(back.address());
            // SAFETY: tensors of the sizes that it asks for, which live on until the stream has passed the combine.
            unsafe { buffer.combine_raw(&again, &input)? };
            buffer.synchronize()?;
            let (y, back) = (y.to_vec()?, back.to_vec()?);
            buffer.close()?;
            let own = Own { biases: 2, accumulate: true, wide: true, cut: false };
            let agreed = Agreed { returned: true, ..Agreed::default() };
            let want = combined(&world, rank, &world.wire(rank), Layout::Compact, agreed, own, &extra);
            let sums = same("sums", &y, &want, case.hidden as usize);
            Ok(shaped.and(sums).and(same("weights", &back, &weights_back(&world, rank, 1), case.top_k as usize)))
        });
        complaints(results).unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}

/// A dispatch of one token to both ranks of a group, which each received two.
fn two_rows(buffer: &mut ElasticBuffer, comm: &Comm) -> Result<epoxide::Dispatched> {
    let (x, weights) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[1.0f32; 2])?);
    buffer.dispatch(&DispatchInput::new(1, &x, &comm.tensor(&[0i64, 3])?, &weights))
}

fn small(layout: Layout) -> Config {
    Config::new(4, 2, 64, 4).with_layout(layout).with_num_sms(1)
}

/// Where nobody wrote weights to return, a debugging buffer returns NaN, and 0 where there is no selection all the same.
#[test]
fn weights_that_nobody_wrote_are_poisoned() {
    let device = Device::from_env();
    for layout in LAYOUTS {
        let results = device.run_all(2, Mode::Fast { workers: 0 }, |comm| {
            let config = small(layout).with_returned_weights().with_poisoned_expert_outputs();
            let mut buffer = ElasticBuffer::new(&comm, config)?;
            let (x, weights) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[1.0f32; 2])?);
            let handle = buffer.dispatch(&DispatchInput::new(1, &x, &comm.tensor(&[-1i64, 3])?, &weights))?;
            let (mut y, mut back) = (comm.empty::<bf16>(64)?, comm.empty::<f32>(2)?);
            let input = CombineInput::new(ExpertOutputs::InPlace, &mut y);
            buffer.combine(&handle, input.with_returned_weights(ReturnedWeights::InPlace, &mut back))?;
            buffer.synchronize()?;
            let back = back.to_vec()?;
            buffer.close()?;
            Ok(back)
        });
        for back in results {
            let back = back.unwrap();
            assert!(back[0].to_bits() == 0 && back[1].is_nan(), "{layout:?}: {back:?}");
        }
    }
}

/// Options that one rank has and its peer has not, where both need not agree: biases with a plain combine.
#[test]
fn a_plain_combine_meets_one_with_options() {
    let device = Device::from_env();
    for (layout, mode) in
        LAYOUTS.into_iter().flat_map(|layout| device.schedules([3, 4]).into_iter().map(move |m| (layout, m)))
    {
        let results = device.run_all(2, mode, |comm| {
            let mut buffer = ElasticBuffer::new(&comm, small(layout).with_combine_options())?;
            let handle = two_rows(&mut buffer, &comm)?;
            let outputs = vec![bf16::from_f32(2.0); 64 * buffer.recv_counts(&handle)?.rows as usize];
            buffer.write_expert_outputs(&handle, &outputs)?;
            let (bias, mut y) = (comm.tensor(&[bf16::from_f32(0.5); 64])?, comm.empty::<bf16>(64)?);
            let mut input = CombineInput::new(ExpertOutputs::InPlace, &mut y);
            if comm.rank() == 1 {
                input = input.with_bias(&bias);
            }
            buffer.combine(&handle, input)?;
            buffer.synchronize()?;
            let y = y.to_vec()?;
            buffer.close()?;
            Ok(y)
        });
        for (y, sum) in results.into_iter().zip([4.0, 4.5]) {
            assert_eq!(y.unwrap(), [round(sum); 64], "{layout:?} {mode:?}");
        }
    }
}

/// Ranks that differ in what they must agree on are told.
#[test]
fn ranks_that_differ_are_out_of_step() {
    let device = Device::from_env();
    for returned in [false, true] {
        let results = device.run_all(2, Mode::Fast { workers: 0 }, |comm| {
            let mut buffer = ElasticBuffer::new(&comm, small(LAYOUTS[1]).with_returned_weights())?;
            let handle = two_rows(&mut buffer, &comm)?;
            let (mut y, mut back) = (comm.empty::<bf16>(64)?, comm.empty::<f32>(2)?);
            let mut input = CombineInput::new(ExpertOutputs::InPlace, &mut y);
            if comm.rank() == 1 {
                input = match returned {
                    true => input.with_returned_weights(ReturnedWeights::InPlace, &mut back),
                    false => input.gate_weighted(),
                };
            }
            buffer.combine(&handle, input)?;
            buffer.synchronize()
        });
        let name = if returned { "combine with returned weights" } else { "gate-weighted combine" };
        for error in results {
            let error = error.expect_err("they differ");
            assert!(matches!(error, Error::OutOfStep { .. }) && error.to_string().contains(name), "{error}");
        }
    }
}

/// Weights for fewer rows than were received: refused where the host knows, a fault where only the device does.
#[test]
fn too_few_weights_are_refused() {
    let device = Device::from_env();
    for (known, layout) in [(true, LAYOUTS[0]), (false, LAYOUTS[0]), (true, LAYOUTS[1]), (false, LAYOUTS[1])] {
        let results = device.run_all(2, Mode::Fast { workers: 0 }, |comm| {
            let mut buffer = ElasticBuffer::new(&comm, small(layout).with_returned_weights())?;
            let handle = two_rows(&mut buffer, &comm)?;
            if known {
                buffer.recv_counts(&handle)?;
            }
            let one = comm.empty::<f32>(buffer.recv_view(&handle)?.top_k_stride.into())?;
            let (mut y, mut back) = (comm.empty::<bf16>(64)?, comm.empty::<f32>(2)?);
            let input = CombineInput::new(ExpertOutputs::InPlace, &mut y).with_returned_weights(&one, &mut back);
            buffer.combine(&handle, input).and_then(|()| buffer.synchronize())
        });
        for error in results {
            let error = error.expect_err("a row is missing");
            match known {
                true => assert!(error.to_string().starts_with("weights to return = "), "{error}"),
                // A rank may hear of its peer's first.
                false => assert!(
                    matches!(error, Error::TooFewExpertOutputs { rows: 1, .. })
                        || error.to_string().contains("weights to return, were handed over there"),
                    "{error}"
                ),
            }
        }
    }
}

/// What a buffer is not made for, and what no layout or combine has.
#[test]
fn options_that_are_not_there_are_refused_by_name() {
    let device = Device::from_env();
    let results = device.run_all(1, Mode::Fast { workers: 0 }, |comm| {
        let (bias, short) = (comm.tensor(&[bf16::ONE; 72])?, comm.tensor(&[bf16::ONE; 63])?);
        let (mut y, mut wide, mut back) = (comm.empty::<bf16>(72)?, comm.empty::<f32>(72)?, comm.empty::<f32>(2)?);
        let mut less = comm.empty::<f32>(1)?;
        let none = comm.empty::<f32>(5)?;
        let mut said = Vec::new();
        let mut buffer = ElasticBuffer::new(&comm, small(Layout::Compact))?;
        let handle = two_rows(&mut buffer, &comm)?;
        let at = ExpertOutputs::InPlace;
        said.push(buffer.combine(&handle, CombineInput::new(at, &mut y).with_bias(&bias)));
        said.push(buffer.combine(&handle, CombineInput::new(at, &mut y).accumulating()));
        said.push(buffer.combine(&handle, CombineInput::new(at, &mut wide)));
        said.push(buffer.combine(&handle, CombineInput::new(at, &mut y).gate_weighted()));
        let input = CombineInput::new(at, &mut y).with_returned_weights(ReturnedWeights::InPlace, &mut back);
        said.push(buffer.combine(&handle, input));
        // SAFETY: it is refused, and touches nothing.
        said.push(unsafe { buffer.combine_raw(&handle, &RawCombineInput::new(y.address()).accumulating()) });
        let lends = buffer.recv_view(&handle)?.returned_weights;
        let shown = buffer.recv_arrays(&handle)?.returned_weights.is_some();
        buffer.close()?;
        let mut buffer = ElasticBuffer::new(&comm, small(Layout::Compact).with_returned_weights())?;
        let handle = two_rows(&mut buffer, &comm)?;
        said.push(buffer.combine(&handle, CombineInput::new(at, &mut y).gate_weighted()));
        let three = CombineInput::new(at, &mut y).with_bias(&bias).with_bias(&bias).with_bias(&bias);
        said.push(buffer.combine(&handle, three));
        said.push(buffer.combine(&handle, CombineInput::new(at, &mut y).with_bias(&short)));
        said.push(buffer.combine(&handle, CombineInput::new(at, &mut y).with_bias(bias.slice(1..65)?)));
        said.push(buffer.combine(&handle, CombineInput::new(at, wide.slice_mut(2..66)?)));
        said.push(buffer.combine(&handle, CombineInput::new(at, wide.slice_mut(..63)?)));
        let input = CombineInput::new(at, &mut y).with_returned_weights(ReturnedWeights::InPlace, &mut less);
        said.push(buffer.combine(&handle, input));
        said.push(buffer.combine(&handle, CombineInput::new(at, &mut y).with_returned_weights(&none, &mut back)));
        // SAFETY: as above.
        said.push(unsafe { buffer.combine_raw(&handle, &RawCombineInput::new(y.address()).with_bias(0)) });
        // SAFETY: as above.
        let odd = unsafe {
            buffer.combine_raw(&handle, &RawCombineInput::new(y.address()).with_returned_weights(back.address() + 2))
        };
        said.push(odd);
        // None of it was done: the dispatch still waits for its combine.
        let last = buffer.combine(&handle, CombineInput::new(at, &mut y));
        buffer.close()?;
        Ok((said, lends, shown, last))
    });
    let (said, lends, shown, last) = results.into_iter().next().expect("a rank").unwrap();
    last.unwrap();
    assert!(lends == 0 && !shown);
    let options = "Config::with_combine_options";
    let wanted = [
        ("bias = 1: ", options),
        ("accumulating = true: ", options),
        ("y = f32: ", options),
        ("gate_weighted = true: ", options),
        ("returned weights = 0x", "Config::with_returned_weights"),
        ("accumulating = true: ", options),
        ("gate_weighted = true: ", "a compact row's output is a sum over its experts already"),
        ("bias = 3 of them: ", "at most two"),
        ("bias", "128"),
        ("bias = 0x", "multiple of 16"),
        ("y = 0x", "multiple of 16"),
        ("y", "256"),
        ("returned weights", "8"),
        ("weights to return = 5 elements: ", "whole rows of 4 words"),
        ("bias = 0x0: ", "[tokens, hidden]"),
        ("returned weights = 0x", "multiple of 4"),
    ];
    assert_eq!(said.len(), wanted.len());
    for (said, (begins, has)) in said.into_iter().zip(wanted) {
        let said = said.expect_err(begins).to_string();
        assert!(said.starts_with(begins) && said.contains(has), "{said}");
    }
}
