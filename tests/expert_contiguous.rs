//! Where rows lie by expert, dispatch and combine are bitwise what the plain reference says, for every shape, routing, alignment and
//! schedule.
use crate::support;

use std::time::Duration;

use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, IndexType, Layout, LocalGroup,
    Mode, Result, Rows, WireFormat, bf16,
};
use epoxide_sim::Mutation;
use proptest::prelude::*;
use support::brought::{Brought, Lie};
use support::by_expert::{check_round, check_round_of, combined, predicted_outputs};
use support::exchange::Tensors;
use support::reference::{Wire, same};
use support::routing::{Bounds, Case, Choice, Random, alignments};
use support::{Checked, Device, replay};

/// A case, its alignment, and whether padding is zeroed.
type Aligned = (Case, u32, bool);

fn config(&(ref case, alignment, zeroed): &Aligned) -> Config {
    let config = case.config().with_layout(Layout::ExpertContiguous { alignment });
    if zeroed { config.with_zero_padding() } else { config }
}

/// Runs a case on a group of its own, `rounds` times with other data.
fn check(device: Device, aligned: &Aligned, rounds: u64) -> Checked {
    let (case, alignment, _) = aligned;
    let worlds: Vec<_> =
        (0..rounds).map(|round| Case { data: case.data.wrapping_add(round), ..case.clone() }.world()).collect();
    let wires: Vec<Vec<Wire>> = worlds.iter().map(|world| world.wires()).collect();
    device.check(case.ranks, case.mode, |comm| {
        let mut buffer = ElasticBuffer::new(&comm, config(aligned))?;
        let tokens = case.tokens[comm.rank() as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        let mut checked = Ok(());
        for (world, wires) in worlds.iter().zip(&wires) {
            tensors.fill(world, comm.rank())?;
            comm.barrier()?;
            let round = check_round(&comm, &mut buffer, &mut tensors, world, wires, *alignment)?;
            checked = checked.and(round);
        }
        buffer.close()?;
        Ok(checked)
    })
}

fn aligned(cases: impl Strategy<Value = Case>) -> impl Strategy<Value = Aligned> {
    (cases, alignments(), any::<bool>())
}

#[test]
fn random_routings_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=8, experts: 1..=64, top_k: 32, hidden: 320, tokens: 24 };
    let cases = aligned(bounds.cases(device));
    replay::law(module_path!(), "random_routings_are_bitwise_the_reference", 8, cases, |case| check(device, &case, 2));
}

#[test]
fn many_experts_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=8, experts: 1..=2048, top_k: 16, hidden: 64, tokens: 60 };
    let cases = aligned(bounds.cases(device)).prop_map(|(case, alignment, zeroed)| (case, alignment.min(8), zeroed));
    replay::law(module_path!(), "many_experts_are_bitwise_the_reference", 3, cases, |case| check(device, &case, 1));
}

/// One expert, all tokens; every token the same experts; none at all; top-1.
#[test]
fn extremes_are_bitwise_the_reference() {
    let device = Device::from_env();
    for case in Case::extremes().map(|case| Case { num_sms: 2, ..case }) {
        for (format, alignment) in [(WireFormat::Bf16, 1), (WireFormat::Fp8, 64)] {
            let case = (Case { format, ..case.clone() }, alignment, true);
            check(device, &case, 2).unwrap_or_else(|error| panic!("{case:?}: {error}"));
        }
    }
}

/// Rows that were quantised before, and new rows by the routings of two dispatches that are kept, in turn.
#[test]
fn brought_rows_and_replays_are_bitwise_the_reference() {
    const ALIGNMENT: u32 = 4;
    let device = Device::from_env();
    for seed in replay::seeds(1) {
        for mode in device.schedules([seed]) {
            let case = Case { format: WireFormat::Fp8, mode, ..uneven(seed) };
            let worlds: Vec<_> = (0..2).map(|i| Case { data: case.data + i, ..case.clone() }.world()).collect();
            let checked = device.check(case.ranks, mode, |comm| {
                let config = config(&(case.clone(), ALIGNMENT, false)).with_routing_slots(2);
                let mut buffer = ElasticBuffer::new(&comm, config)?;
                let tokens = case.tokens[comm.rank() as usize];
                let (mut handles, mut checked) = (Vec::new(), Ok(()));
                let mut y = comm.empty::<bf16>(u64::from(tokens) * u64::from(case.hidden))?;
                for step in 0..6 {
                    // New rows, by the selections of one of the two worlds.
                    let mut world = worlds[step % 2].clone();
                    let other = Case { data: case.data + 10 + step as u64, ..case.clone() }.world();
                    for (input, other) in world.inputs.iter_mut().zip(other.inputs) {
                        input.x = other.x;
                    }
                    let wires: Vec<Wire> = world.wires();
                    let input = &world.inputs[comm.rank() as usize];
                    let brought =
                        Brought::new(&comm, &wires[comm.rank() as usize], case.hidden.div_ceil(128), Lie::default())?;
                    let x = comm.tensor(&input.x)?;
                    // A rank brings them or lets dispatch quantise them: what arrives is the same.
                    let rows = if comm.rank() == 1 { Rows::from(&x) } else { brought.rows()? };
                    let handle = if step < 2 {
                        let (idx, weights) = (comm.tensor(&input.topk_idx)?, comm.tensor(&input.topk_weights)?);
                        buffer.dispatch(&DispatchInput::new(tokens, rows, &idx, &weights))?
                    } else {
                        buffer.dispatch_again(&handles[step % 2], rows)?
                    };
                    let right = check_round_of(&comm, &mut buffer, &handle, &mut y, &world, &wires, ALIGNMENT)?;
                    checked = checked.and(right.map_err(|why| format!("step {step}: {why}")));
                    handles.push(handle);
                }
                buffer.close()?;
                Ok(checked)
            });
            if let Err(why) = checked {
                panic!(
                    "{why}\n{}",
                    replay::line(module_path!(), "brought_rows_and_replays_are_bitwise_the_reference", seed)
                );
            }
        }
    }
}

/// Padding that a replay would have to zero is refused.
#[test]
fn a_replay_does_not_promise_zero_padding() {
    let group = LocalGroup::simulated(1, Mode::Fast { workers: 1 }).expect("a group");
    let error = group.run(|comm| {
        let config =
            Config::new(2, 1, 64, 4).with_layout(Layout::ExpertContiguous { alignment: 8 }).with_zero_padding();
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        let (x, weights) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[1.0f32])?);
        let handle = buffer.dispatch(&DispatchInput::new(1, &x, &comm.tensor(&[1i64])?, &weights))?;
        buffer.dispatch_again(&handle, &x).map(drop)
    });
    assert!(
        error.expect_err("it is refused").to_string().starts_with("zero_padding = true: a replay writes no padding")
    );
}

/// Ranks that differ in what pads differ in what they would refuse: they are told so when they make their buffers.
#[test]
fn ranks_agree_on_zero_padding() {
    let group = LocalGroup::simulated(2, Mode::Fast { workers: 1 }).expect("a group");
    let results = group.run_all(|comm| {
        let config = Config::new(2, 1, 64, 4).with_layout(Layout::ExpertContiguous { alignment: 8 });
        let config = if comm.rank() == 0 { config.with_zero_padding() } else { config };
        ElasticBuffer::new(&comm, config).map(drop)
    });
    for result in results {
        let error = result.expect_err("they differ");
        assert!(
            matches!(&error, Error::ConfigMismatch { .. }) && error.to_string().contains("zero_padding"),
            "{error}"
        );
    }
}

/// A case of uneven rounds: some tokens of three ranks, on one schedule.
fn uneven(seed: u64) -> Case {
    Case {
        ranks: 3,
        experts: 7,
        top_k: 5,
        hidden: 64,
        format: if seed.is_multiple_of(2) { WireFormat::Bf16 } else { WireFormat::Fp8 },
        num_sms: 2,
        tokens: vec![9 + (seed % 7) as u32, 0, 14],
        index: IndexType::I32,
        choice: Choice::Uniform,
        holes: 2,
        data: seed.wrapping_mul(0x9e37_79b9),
        mode: Mode::Seeded { seed },
    }
}

/// Rounds on one buffer whose ranks are late at random, each with data of its own. In every third the host looks at what arrived; the
/// others are enqueued one behind the other, with outputs that the reference predicts, handed over after the dispatch or before it.
fn uneven_rounds(comm: &Comm, case: &Case, rounds: u64) -> Result<Checked> {
    const ALIGNMENT: u32 = 4;
    let rank = comm.rank();
    let mut random = Random::new(case.data ^ u64::from(rank + 1) << 40);
    let mut late = || comm.delay(Duration::from_nanos([1, 1, 20_000, 400_000][random.below(4) as usize]));
    let mut buffer = ElasticBuffer::new(comm, config(&(case.clone(), ALIGNMENT, false)))?;
    let tokens = case.tokens[rank as usize];
    let mut prepared = Vec::new();
    for round in 0..rounds {
        let world = Case { data: case.data.wrapping_add(round), ..case.clone() }.world();
        let wires: Vec<Wire> = world.wires();
        let mut tensors = Tensors::empty(comm, tokens, case.hidden, case.top_k, case.index)?;
        tensors.fill(&world, rank)?;
        let outputs = comm.tensor(&predicted_outputs(&world, rank, &wires, ALIGNMENT))?;
        prepared.push((world, wires, tensors, outputs));
    }
    comm.barrier()?;
    let mut checked = Ok(());
    for (round, (world, wires, tensors, outputs)) in prepared.iter_mut().enumerate() {
        late()?;
        if round % 3 == 0 {
            let right = check_round(comm, &mut buffer, tensors, world, wires, ALIGNMENT)?;
            checked = checked.and(right.map_err(|why| format!("round {round}: {why}")));
            continue;
        }
        let early = round % 3 == 2;
        if early {
            buffer.lend_expert_outputs()?;
            buffer.stage_lent_expert_outputs(&*outputs)?;
            late()?;
        }
        let handle = tensors.dispatch(&mut buffer, tokens)?;
        late()?;
        let from = if early { ExpertOutputs::InPlace } else { (&*outputs).into() };
        buffer.combine(&handle, CombineInput::new(from, &mut tensors.y))?;
    }
    buffer.synchronize()?;
    for (round, (world, wires, tensors, _)) in prepared.iter().enumerate() {
        let want = combined(world, rank, &wires[rank as usize]);
        let right = same("combined rows", &tensors.sums(tokens, case.hidden)?, &want, case.hidden as usize);
        checked = checked.and(right.map_err(|why| format!("round {round}: {why}")));
    }
    buffer.close()?;
    Ok(checked)
}

#[test]
fn uneven_rounds_are_bitwise_the_reference() {
    let device = Device::from_env();
    for seed in replay::seeds(3) {
        for mode in device.schedules([seed]) {
            let case = Case { mode, ..uneven(seed) };
            if let Err(why) = device.check(case.ranks, mode, |comm| uneven_rounds(&comm, &case, 20)) {
                panic!("{why}\n{}", replay::line(module_path!(), "uneven_rounds_are_bitwise_the_reference", seed));
            }
        }
    }
}

/// The waits that this layout adds matter, and that of a region which is lent early: some schedule is wrong without each of them, and none
/// with all.
#[test]
fn without_a_wait_of_this_layout_the_uneven_rounds_fail() {
    let wrong = |mutation: Option<Mutation>| {
        let of_seed = |seed| {
            let case = uneven(seed);
            let of_rank = |comm: Comm| uneven_rounds(&comm, &case, 6);
            Device::Simulated.check_without(case.ranks, case.mode, mutation, of_rank).err()
        };
        (0..4).find_map(of_seed)
    };
    assert_eq!(wrong(None), None);
    for (file, source, text) in [
        (
            "gpu-kernels/src/dispatch/by_expert/multiply.rs",
            include_str!("../gpu-kernels/src/dispatch/by_expert/multiply.rs"),
            "a.block_landed.wait(",
        ),
        (
            "gpu-kernels/src/combine/by_expert.rs",
            include_str!("../gpu-kernels/src/combine/by_expert.rs"),
            "a.reduced.wait(",
        ),
        ("gpu-kernels/src/lend.rs", include_str!("../gpu-kernels/src/lend.rs"), "op.done.wait("),
    ] {
        let wrong = wrong(Some(Mutation::of(file, source, text).expect("the wait is there")));
        assert!(wrong.is_some(), "no seed noticed that {text} is gone");
    }
}

/// A bad selection is told to all ranks, and a peer that never comes is named: nobody hangs.
#[test]
fn faults_are_named_as_in_every_layout() {
    for mode in Device::Simulated.schedules(1..=4) {
        let group = LocalGroup::simulated(3, mode).expect("a group");
        let results = group.run_all(|comm| {
            let config =
                Config::new(6, 2, 64, 4).with_layout(Layout::ExpertContiguous { alignment: 8 }).with_num_sms(2);
            let mut buffer = ElasticBuffer::new(&comm, config)?;
            let (x, weights) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[1.0f32; 2])?);
            let idx = comm.tensor(&if comm.rank() == 1 { [5i64, 6] } else { [0, 5] })?;
            buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
            Ok(buffer.synchronize())
        });
        for result in results {
            let error = result.expect("the rank came to its end").expect_err("an index is out of range");
            assert!(matches!(error, Error::IndexOutOfRange { .. }), "{error}");
        }
        let group = LocalGroup::simulated(3, mode).expect("a group");
        let results = group.run_all(|comm| {
            let config = Config::new(6, 2, 64, 4).with_layout(Layout::ExpertContiguous { alignment: 8 });
            let mut buffer = ElasticBuffer::new(&comm, config.with_timeout(Duration::from_millis(20)))?;
            if comm.rank() == 2 {
                return Ok(Ok(()));
            }
            let (x, weights) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[1.0f32; 2])?);
            let idx = comm.tensor(&[0i64, 5])?;
            let mut y = comm.empty::<bf16>(64)?;
            let handle = buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
            buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            Ok(buffer.synchronize())
        });
        let named = |error: &Error| matches!(error, Error::PeerTimeout { .. } | Error::PeerAborted { .. });
        for result in results.into_iter().take(2) {
            let error = result.expect("the rank came to its end").expect_err("a peer never came");
            assert!(named(&error), "{error}");
        }
    }
}

#[test]
fn alignments_that_no_buffer_has_are_refused() {
    for alignment in [0, 1025, u32::MAX] {
        let group = LocalGroup::simulated(1, Mode::Fast { workers: 1 }).expect("a group");
        let config = Config::new(8, 2, 64, 4).with_layout(Layout::ExpertContiguous { alignment });
        let error = group.run(|comm| ElasticBuffer::new(&comm, config.clone()).map(drop)).expect_err("it is refused");
        let want = format!("alignment = {alignment}: an expert's rows are padded to a multiple of 1 to 1024");
        assert_eq!(error.to_string(), want);
    }
}
