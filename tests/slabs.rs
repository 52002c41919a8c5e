//! Slabs: an expert's rows begin where its slab does, in the order of every layout by expert. What does not fit is an error on all ranks, or is dropped,
//! the same selections whatever the schedule.
use crate::support;

use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, IndexType, Layout, LocalGroup,
    Mode, Overflow, Result, WireFormat, bf16,
};
use proptest::prelude::*;
use support::by_expert::{Padding, check_round, check_round_of, dropped};
use support::exchange::Tensors;
use support::overflow::{over, told};
use support::reference::{World, owned};
use support::routing::{Bounds, Case, Choice};
use support::{Checked, Device, replay};

fn config(case: &Case, capacity: u32, zeroed: bool) -> Config {
    let config = case.config().with_layout(Layout::Slab { capacity });
    if zeroed { config.with_zero_padding() } else { config }
}

/// Selections of each expert.
fn selections(world: &World) -> Vec<u32> {
    dropped(world, 0).1
}

fn worlds(case: &Case, rounds: u64) -> Vec<World> {
    (0..rounds).map(|round| Case { data: case.data.wrapping_add(round), ..case.clone() }.world()).collect()
}

/// Rounds of which those that fit are checked bit for bit; of the others that every rank is told of the same expert, and gets zeros.
fn refusing(comm: &Comm, case: &Case, capacity: u32, zeroed: bool, worlds: &[World]) -> Result<Checked> {
    let rank = comm.rank();
    let tokens = case.tokens[rank as usize];
    let mut buffer = ElasticBuffer::new(comm, config(case, capacity, zeroed))?;
    let mut tensors = Tensors::empty(comm, tokens, case.hidden, case.top_k, case.index)?;
    let mut checked = Ok(());
    for (round, world) in worlds.iter().enumerate() {
        tensors.fill(world, rank)?;
        let over = over(world, Layout::Slab { capacity }, capacity.into(), 2 * round as u64 + 1);
        let right = match over {
            None => check_round(comm, &mut buffer, &mut tensors, world, &world.wires(), Padding::Slab(capacity))?,
            Some(over) => {
                let handle = tensors.dispatch(&mut buffer, tokens)?;
                buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
                let zeros = tensors.sums(tokens, case.hidden)?.iter().all(|y| y.to_bits() == 0);
                let zeros = if zeros { Ok(()) } else { Err("the sums are not +0".to_owned()) };
                told("synchronize", buffer.synchronize(), over).and(zeros)
            }
        };
        checked = checked.and(right.map_err(|why| format!("round {round}: {why}")));
    }
    buffer.close()?;
    Ok(checked)
}

#[test]
fn slabs_are_bitwise_the_reference_and_one_row_too_many_is_an_error() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=8, experts: 1..=64, top_k: 16, hidden: 256, tokens: 24 };
    let test = "slabs_are_bitwise_the_reference_and_one_row_too_many_is_an_error";
    replay::law(module_path!(), test, 10, (bounds.cases(device), any::<bool>()), |(case, zeroed)| {
        let mut worlds = worlds(&case, 2);
        worlds.push(worlds[0].clone());
        let most = selections(&worlds[0]).into_iter().max().unwrap_or(0);
        for capacity in [most, most.saturating_sub(1)].into_iter().filter(|capacity| *capacity > 0) {
            device
                .check(case.ranks, case.mode, |comm| refusing(&comm, &case, capacity, zeroed, &worlds))
                .map_err(|why| format!("slabs of {capacity} rows: {why}"))?;
        }
        Ok(())
    });
}

/// Rounds in which what does not fit is dropped; then new rows by the routing of the last.
fn dropping(comm: &Comm, case: &Case, capacity: u32, worlds: &[World]) -> Result<Checked> {
    let rank = comm.rank();
    let tokens = case.tokens[rank as usize];
    let mut buffer = ElasticBuffer::new(comm, config(case, capacity, false).with_overflow(Overflow::Drop))?;
    let mut tensors = Tensors::empty(comm, tokens, case.hidden, case.top_k, case.index)?;
    let (mut checked, mut last) = (Ok(()), None);
    for (round, world) in worlds.iter().enumerate() {
        tensors.fill(world, rank)?;
        let (mut kept, of_experts) = dropped(world, capacity);
        let handle = match (round + 1 == worlds.len(), &last) {
            (true, Some((handle, routing))) => {
                // New rows, by the selections of the round before.
                let routing: &World = routing;
                kept.inputs.iter_mut().zip(&routing.inputs).for_each(|(input, routed)| {
                    input.topk_idx.clone_from(&routed.topk_idx);
                    input.topk_weights.clone_from(&routed.topk_weights);
                });
                buffer.dispatch_again(handle, &tensors.x)?
            }
            _ => {
                let handle = tensors.dispatch(&mut buffer, tokens)?;
                let mine = owned(case.experts, case.ranks)[rank as usize].clone();
                let here: u32 = mine.map(|expert| of_experts[expert as usize]).sum();
                let counts = buffer.recv_counts(&handle)?;
                let (got, want) = ([counts.dropped, counts.dropped_in_all], [here, of_experts.iter().sum()]);
                if got != want {
                    checked = checked.and(Err(format!("round {round}: dropped {got:?}, expected {want:?}")));
                }
                handle
            }
        };
        let (wires, padding) = (kept.wires(), Padding::Slab(capacity));
        let right = check_round_of(comm, &mut buffer, &handle, &mut tensors.y, &kept, &wires, padding)?;
        checked = checked.and(right.map_err(|why| format!("round {round}: {why}")));
        last = Some((handle, kept));
    }
    buffer.close()?;
    Ok(checked)
}

#[test]
fn the_last_selections_of_an_expert_are_dropped_and_counted() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=8, experts: 1..=64, top_k: 16, hidden: 256, tokens: 24 };
    let test = "the_last_selections_of_an_expert_are_dropped_and_counted";
    let cases = (bounds.cases(device), 0..=100u32);
    replay::law(module_path!(), test, 16, cases, |(case, percent)| {
        let worlds = worlds(&case, 3);
        let most = selections(&worlds[0]).into_iter().max().unwrap_or(0);
        let capacity = (most * percent / 100).max(1);
        device
            .check(case.ranks, case.mode, |comm| dropping(&comm, &case, capacity, &worlds))
            .map_err(|why| format!("slabs of {capacity} rows: {why}"))
    });
}

/// Slabs that are full, empty and half full in turn: what rows came to is padding the next time, and says so.
#[test]
fn rows_of_a_slab_are_padding_again() {
    let device = Device::from_env();
    for mode in device.schedules(replay::seeds(3)) {
        let case = Case {
            ranks: 2,
            experts: 5,
            top_k: 2,
            hidden: 64,
            format: WireFormat::Bf16,
            num_sms: 2,
            tokens: vec![12, 7],
            index: IndexType::I64,
            choice: Choice::Uniform,
            holes: 0,
            data: 5,
            mode,
        };
        let mut worlds = worlds(&case, 6);
        for (round, kept) in [(1, 0), (3, 2), (4, 9)] {
            for input in &mut worlds[round].inputs {
                input.topk_idx.iter_mut().skip(kept).for_each(|selection| *selection = -1);
            }
        }
        let capacity = worlds.iter().flat_map(selections).max().unwrap_or(0) + 3;
        let checked = device.check(case.ranks, mode, |comm| refusing(&comm, &case, capacity, false, &worlds));
        checked.unwrap_or_else(|why| panic!("{why}"));
    }
}

/// Two ranks with 3 and 2 experts, all of whose tokens select the same three: the second rank's share of the last row is all dropped.
#[test]
fn a_token_of_which_everything_is_dropped_sends_nothing_and_becomes_zero() {
    let device = Device::from_env();
    for mode in device.schedules(1..=4) {
        let results = device.run_all(2, mode, |comm| {
            let config =
                Config::new(5, 3, 64, 3).with_layout(Layout::Slab { capacity: 5 }).with_overflow(Overflow::Drop);
            let mut buffer = ElasticBuffer::new(&comm, config)?;
            let (x, weights) = (comm.tensor(&[bf16::ONE; 3 * 64])?, comm.tensor(&[0.5f32; 9])?);
            let idx = comm.tensor(&[0i64, 4, 1].repeat(3))?;
            let mut y = comm.tensor(&[bf16::ONE; 3 * 64])?;
            let handle = buffer.dispatch(&DispatchInput::new(3, &x, &idx, &weights))?;
            let arrays = buffer.recv_arrays(&handle)?;
            let experts = u64::from(buffer.local_experts().1);
            assert_eq!(
                (arrays.x.shape(), arrays.expert_outputs.shape()),
                (&[experts, 5, 64][..], &[experts, 5, 64][..])
            );
            assert_eq!((arrays.sources.shape(), arrays.topk_idx.strides()), (&[experts, 5][..], &[5, 1][..]));
            let received = buffer.received(&handle)?;
            let ones = vec![bf16::ONE; received.sources.len() * 64];
            buffer.write_expert_outputs(&handle, &ones)?;
            buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            buffer.synchronize()?;
            let y: Vec<f32> = y.to_vec()?.iter().step_by(64).map(|y| y.to_f32()).collect();
            buffer.close()?;
            Ok((received.counts, y))
        });
        for (rank, result) in results.into_iter().enumerate() {
            let (counts, y) = result.expect("the rank came to its end");
            let (experts, mine) = if rank == 0 { (vec![5, 5, 0], 2) } else { (vec![0, 5], 1) };
            assert_eq!((counts.by_expert, counts.offsets.last()), (experts, Some(&(if rank == 0 { 15 } else { 10 }))));
            assert_eq!((counts.by_source, counts.dropped, counts.dropped_in_all), (vec![3 * mine, 2 * mine], mine, 3));
            // The sixth token is the last of rank 1.
            assert_eq!(y, if rank == 0 { [3.0; 3] } else { [3.0, 3.0, 0.0] });
        }
    }
}

#[test]
fn what_slabs_do_not_take_is_refused() {
    let said = |config: Config| epoxide::bytes_needed(&config, 4, 2).map(drop).unwrap_err().to_string();
    let slabs = |capacity| Config::new(8, 2, 64, 16).with_layout(Layout::Slab { capacity });
    assert!(said(slabs(0)).starts_with("capacity = 0: an expert's slab has at least 1 row"));
    assert!(said(slabs(1 << 31)).starts_with("capacity = 2147483648: an expert's slab"));
    assert!(said(slabs(4).with_capacity(9)).starts_with("capacity = 9: a layout of slabs has a capacity of its own"));
    let compact = Config::new(8, 2, 64, 16);
    assert!(said(compact.clone().with_capacity(9).with_overflow(Overflow::Drop)).starts_with("overflow = Drop: "));
    assert_eq!(said(compact.with_capacity(0)), "capacity = 0: a rank has room for 1 to 64 rows");
    let group = LocalGroup::simulated(1, Mode::Fast { workers: 1 }).expect("a group");
    let big = Config::new(64, 8, 7168, 131_072).with_layout(Layout::ExpertContiguous { alignment: 128 });
    let error = group.run(|comm| ElasticBuffer::new(&comm, big.clone()).map(drop)).expect_err("it is much").to_string();
    assert!(
        error.starts_with("capacity = None: the worst case takes a window of ") && error.contains("u64::MAX"),
        "{error}"
    );
}

/// Uneven ranks and experts, enqueued one behind the other without a look: some dispatches fit and some do not.
#[test]
fn operations_that_are_enqueued_behind_one_that_does_not_fit_are_as_ever() {
    let device = Device::from_env();
    for seed in replay::seeds(4) {
        for mode in device.schedules([seed]) {
            let case = Case {
                ranks: 3,
                experts: 7,
                top_k: 3,
                hidden: 64,
                format: WireFormat::Bf16,
                num_sms: 2,
                tokens: vec![9, 0, 14],
                index: IndexType::I64,
                choice: Choice::Uniform,
                holes: 1,
                data: seed,
                mode,
            };
            let worlds = worlds(&case, 8);
            let mut most: Vec<_> =
                worlds.iter().map(|world| selections(world).into_iter().max().unwrap_or(0)).collect();
            let of_rounds = most.clone();
            most.sort_unstable();
            let capacity = most[3].max(1);
            let checked = device.check(case.ranks, mode, |comm| {
                let rank = comm.rank();
                let tokens = case.tokens[rank as usize];
                let mut buffer = ElasticBuffer::new(&comm, config(&case, capacity, false))?;
                let mut prepared = Vec::new();
                for world in &worlds {
                    let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
                    tensors.fill(world, rank)?;
                    let outputs = vec![bf16::ONE; buffer.local_experts().1 as usize * capacity as usize * 64];
                    prepared.push((tensors, comm.tensor(&outputs)?));
                }
                comm.barrier()?;
                for (tensors, outputs) in &mut prepared {
                    let handle = tensors.dispatch(&mut buffer, tokens)?;
                    buffer.combine(&handle, CombineInput::new(&*outputs, &mut tensors.y))?;
                }
                let first = of_rounds.iter().position(|most| *most > capacity).map(|round| 2 * round as u64 + 1);
                let told = match buffer.synchronize() {
                    Ok(()) => None,
                    Err(Error::CapacityExceeded { epoch, .. }) => Some(epoch),
                    Err(other) => return Err(other),
                };
                let mut checked =
                    if told == first { Ok(()) } else { Err(format!("told of {told:?}, expected {first:?}")) };
                for (round, (tensors, _)) in prepared.iter().enumerate() {
                    let y = tensors.sums(tokens, 64)?;
                    let fits = of_rounds[round] <= capacity;
                    for token in 0..tokens {
                        let selected = worlds[round].selections(rank, token).iter().filter(|e| **e >= 0).count();
                        let want = bf16::from_f32(if fits { selected as f32 } else { 0.0 });
                        if y[token as usize * 64..][..64].iter().any(|y| y.to_bits() != want.to_bits()) {
                            checked = checked.and(Err(format!("round {round}, token {token} is not {want}")));
                        }
                    }
                }
                buffer.close()?;
                Ok(checked)
            });
            if let Err(why) = checked {
                let test = "operations_that_are_enqueued_behind_one_that_does_not_fit_are_as_ever";
                panic!("{why}\n{}", replay::line(module_path!(), test, seed));
            }
        }
    }
}
