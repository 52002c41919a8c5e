//! Several dispatches with their rows in a buffer at once: micro-batches in flight, combined in any order and on any stream, rows that stay for
//! later, replays into other slots. Bitwise the reference, whatever the schedule.
use crate::support;

use std::time::Duration;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Comm, Config, DeviceTensor, DispatchInput, Dispatched, ElasticBuffer, ExpertOutputs, IndexType,
    Layout, Mode, ReplayInput, Result, Rows, WireFormat, bf16, bytes_needed,
};
use epoxide_sim::Mutation;
use support::exchange::{Indices, Tensors};
use support::flights::{Flight, HIDDEN, Place, Plan, Step};
use support::reference::same;
use support::routing::Random;
use support::{Checked, Device, replay};

/// A further stream.
fn beside(comm: &Comm) -> Result<Comm> {
    // SAFETY: all that these tests put on it is of the buffer, whose operations are in order by themselves, or behind an event.
    unsafe { comm.on_new_stream() }
}

/// Enqueues a flight.
fn start(buffer: &mut ElasticBuffer, flight: &Flight, tensors: &Tensors, handles: &[Dispatched]) -> Result<Dispatched> {
    if let Some(of) = flight.again {
        let mut input = ReplayInput::new(&tensors.x);
        (input.row_slot, input.keep_rows) = (flight.named, flight.keep);
        return buffer.dispatch_again(&handles[of], input);
    }
    let Indices::I64(idx) = &tensors.topk_idx else { unreachable!("the flights' selections are 64 bits wide") };
    let tokens = (tensors.x.len() / u64::from(HIDDEN)) as u32;
    let mut input = DispatchInput::new(tokens, Rows::from(&tensors.x), idx, &tensors.topk_weights);
    (input.row_slot, input.keep_rows) = (flight.named, flight.keep);
    buffer.dispatch(&input)
}

/// A flight's tensors, filled.
fn tensors(comm: &Comm, flight: &Flight) -> Result<Tensors> {
    let tokens = flight.world.inputs[comm.rank() as usize].tokens;
    let mut tensors = Tensors::empty(comm, tokens, HIDDEN, 3, IndexType::I64)?;
    tensors.fill(&flight.world, comm.rank())?;
    Ok(tensors)
}

/// Every step, looked at on the host; operations on two streams.
fn history(device: Device, plan: &Plan) -> Checked {
    let (steps, flights) = plan.history();
    let checked = device.check(plan.ranks, plan.mode, |comm| {
        let rank = comm.rank();
        let streams = [comm.clone(), beside(&comm)?];
        let mut random = Random::new(plan.seed ^ u64::from(rank) << 32);
        let mut buffer = ElasticBuffer::new(&comm, plan.config())?;
        let (mut handles, mut of_flights, mut checked) = (Vec::new(), Vec::new(), Ok(()));
        // SAFETY: all ranks do it, and wait for each other before the first operation.
        unsafe { buffer.test_count_from(plan.before, plan.before)? };
        buffer.synchronize()?;
        comm.barrier()?;
        for (number, step) in steps.iter().enumerate() {
            buffer.set_stream(&streams[random.below(2) as usize])?;
            let right = match *step {
                Step::Dispatch(flight) => {
                    let flight = &flights[flight];
                    let mine = tensors(buffer.comm(), flight)?;
                    let handle = start(&mut buffer, flight, &mine, &handles)?;
                    let place = Place { row: handle.row_slot(), routing: handle.routing_slot() };
                    handles.push(handle);
                    of_flights.push(mine);
                    if place == flight.place { Ok(()) } else { Err(format!("{place:?}, expected {:?}", flight.place)) }
                }
                Step::Look(flight) => {
                    let received = buffer.received(&handles[flight])?;
                    plan.check_received(&flights[flight], rank, &received)
                }
                Step::Combine(number) => {
                    let (handle, flight) = (&handles[number], &flights[number]);
                    let received = buffer.received(handle)?;
                    buffer.write_expert_outputs(handle, &plan.outputs(flight, rank, &received))?;
                    let y = &mut of_flights[number].y;
                    buffer.combine(handle, CombineInput::new(ExpertOutputs::InPlace, &mut *y))?;
                    buffer.synchronize()?;
                    let right = plan.check_received(flight, rank, &received);
                    right.and(plan.check_sums(flight, rank, &y.to_vec()?))
                }
                Step::Release(flight) => {
                    buffer.release(&handles[flight])?;
                    Ok(())
                }
            };
            checked = checked.and(right.map_err(|why| format!("step {number}, {step:?}: {why}")));
        }
        buffer.close()?;
        Ok(checked)
    });
    checked.map_err(|why| format!("{plan:?}\n{why}\n{steps:?}"))
}

/// Two and three in flight, with as many routings and more, in every layout and format.
#[test]
fn flights_in_any_order_are_bitwise_the_reference() {
    let device = Device::from_env();
    let contiguous = Layout::ExpertContiguous { alignment: 4 };
    for seed in replay::seeds(2) {
        for mode in device.schedules([seed]) {
            for (number, (format, layout, row_slots, routing_slots)) in [
                (WireFormat::Bf16, Layout::Compact, 2, 2),
                (WireFormat::Fp8, Layout::Compact, 3, 4),
                (WireFormat::Bf16, contiguous, 3, 3),
                (WireFormat::Fp8, contiguous, 2, 3),
                (WireFormat::Bf16, Layout::Slab { capacity: 30 }, 2, 2),
                (WireFormat::Fp8, Layout::Slab { capacity: 30 }, 3, 5),
            ]
            .into_iter()
            .enumerate()
            {
                let seed = seed.wrapping_add(number as u64);
                let plan = Plan {
                    ranks: 3,
                    row_slots,
                    routing_slots,
                    steps: 24,
                    tokens: 10,
                    format,
                    layout,
                    seed,
                    mode,
                    before: 0,
                };
                history(device, &plan).unwrap_or_else(|why| {
                    panic!(
                        "{why}\n{}",
                        replay::line(module_path!(), "flights_in_any_order_are_bitwise_the_reference", seed)
                    )
                });
            }
        }
    }
}

/// The numbers of a slot's operations and dispatches go over 2^32 while others' rows are there.
#[test]
fn numbers_go_on_where_half_of_them_begins_anew() {
    let device = Device::from_env();
    for mode in device.schedules([1, 2, 3]) {
        for (layout, seed) in [(Layout::Compact, 5), (Layout::ExpertContiguous { alignment: 4 }, 6)] {
            // The first words of even numbers have the stamp 0, as memory that was never written.
            let (format, before) = (WireFormat::Bf16, (1 << 32) - 2);
            let (ranks, row_slots, routing_slots, steps, tokens) = (3, 2, 2, 48, 6);
            let plan = Plan { ranks, row_slots, routing_slots, steps, tokens, format, layout, seed, mode, before };
            history(device, &plan).unwrap_or_else(|why| panic!("{why}"));
        }
    }
}

/// Nothing on the host between the operations, and every rank late by turns. Received rows are copied in stream order: behind other slots'
/// dispatches and combines, and behind their own combine where they are kept.
fn uneven_rank(comm: &Comm, plan: &Plan, steps: &[Step], flights: &[Flight]) -> Result<Checked> {
    let rank = comm.rank();
    let streams = [comm.clone(), beside(comm)?];
    let copiers = [Quantizer::new(&streams[0])?, Quantizer::new(&streams[1])?];
    let mut random = Random::new(plan.seed ^ u64::from(rank + 1) << 40);
    let mut buffer = ElasticBuffer::new(comm, plan.config())?;
    // Nothing is filled or allocated on the way.
    let (mut made, mut outputs) = (Vec::new(), Vec::new());
    for flight in flights {
        made.push(tensors(comm, flight)?);
        outputs.push(comm.tensor(&plan.predicted_outputs(flight, rank))?);
    }
    let looks = steps.iter().map(|step| match step {
        Step::Look(flight) => Ok(Some((*flight, comm.empty::<bf16>(outputs[*flight].len())?))),
        _ => Ok(None),
    });
    let looks: Vec<Option<(usize, DeviceTensor<bf16>)>> = looks.collect::<Result<_>>()?;
    comm.synchronize()?;
    comm.barrier()?;
    let mut handles: Vec<Dispatched> = Vec::new();
    for (step, look) in steps.iter().zip(&looks) {
        let on = random.below(2) as usize;
        if random.below(3) == 0 {
            streams[on].delay(Duration::from_nanos(1_000 + u64::from(random.below(300_000))))?;
        }
        buffer.set_stream(&streams[on])?;
        match *step {
            Step::Dispatch(flight) => handles.push(start(&mut buffer, &flights[flight], &made[flight], &handles)?),
            Step::Look(flight) => {
                let (x, seen) = (buffer.recv_view(&handles[flight])?.x, &look.as_ref().expect("it has one").1);
                // SAFETY: as many rows as the reference says were received, in a slot that is held; a tensor of as many.
                unsafe { copiers[on].copy_raw(x, seen.address(), 2 * seen.len())? };
            }
            Step::Combine(flight) => {
                let y = &mut made[flight].y;
                buffer.combine(&handles[flight], CombineInput::new(&outputs[flight], y))?;
            }
            Step::Release(flight) => buffer.release(&handles[flight])?,
        }
    }
    buffer.synchronize()?;
    let mut checked = Ok(());
    for (number, (step, look)) in steps.iter().zip(&looks).enumerate() {
        let right = match (step, look) {
            (Step::Combine(flight), _) => {
                let y = made[*flight].y.to_vec()?;
                plan.check_sums(&flights[*flight], rank, &y)
            }
            (_, Some((flight, seen))) => {
                let seen = seen.to_vec()?;
                let want = plan.predicted_rows(&flights[*flight], rank).into_iter();
                want.zip(seen.chunks(HIDDEN as usize)).try_for_each(|(want, seen)| match want {
                    Some(want) => same("received row", seen, &want, HIDDEN as usize),
                    None => Ok(()),
                })
            }
            _ => Ok(()),
        };
        checked = checked.and(right.map_err(|why| format!("step {number}, {step:?}: {why}")));
    }
    comm.barrier()?;
    buffer.close()?;
    Ok(checked)
}

fn uneven(device: Device, plan: &Plan) -> Checked {
    let (steps, flights) = plan.history();
    let checked = device.check(plan.ranks, plan.mode, |comm| uneven_rank(&comm, plan, &steps, &flights));
    checked.map_err(|why| format!("{plan:?}\n{why}\n{steps:?}"))
}

#[test]
fn flights_of_uneven_ranks_are_bitwise_the_reference() {
    let device = Device::from_env();
    for seed in replay::seeds(3) {
        for mode in device.schedules([seed]) {
            for (layout, row_slots) in [(Layout::Compact, 3), (Layout::ExpertContiguous { alignment: 2 }, 2)] {
                let (format, routing_slots) = (WireFormat::Bf16, row_slots + 1);
                let plan = Plan {
                    ranks: 3,
                    row_slots,
                    routing_slots,
                    steps: 40,
                    tokens: 8,
                    format,
                    layout,
                    seed,
                    mode,
                    before: 0,
                };
                uneven(device, &plan).unwrap_or_else(|why| {
                    panic!(
                        "{why}\n{}",
                        replay::line(module_path!(), "flights_of_uneven_ranks_are_bitwise_the_reference", seed)
                    )
                });
            }
        }
    }
}

/// The wait for the rows that a replay copies on matters: some schedule is wrong without it, and none with it.
#[test]
fn without_the_wait_of_a_replay_by_expert_the_uneven_flights_fail() {
    let wrong = |mutation: Option<Mutation>| {
        let of_seed = |seed| {
            let (format, layout) = (WireFormat::Bf16, Layout::ExpertContiguous { alignment: 2 });
            let (ranks, row_slots, routing_slots, steps, tokens, before) = (3, 2, 3, 40, 8, 0);
            let mode = Mode::Seeded { seed };
            let plan = Plan { ranks, row_slots, routing_slots, steps, tokens, format, layout, seed, mode, before };
            let (steps, flights) = plan.history();
            let of_rank = |comm: Comm| uneven_rank(&comm, &plan, &steps, &flights);
            Device::Simulated.check_without(ranks, mode, mutation, of_rank).err()
        };
        (0..6).find_map(of_seed)
    };
    assert_eq!(wrong(None), None);
    let source = include_str!("../gpu-kernels/src/dispatch/again_by_expert.rs");
    let gone = Mutation::of("gpu-kernels/src/dispatch/again_by_expert.rs", source, "a.block_landed.wait(");
    assert!(wrong(Some(gone.expect("the wait is there"))).is_some(), "no seed noticed that the wait is gone");
}

/// Experts on a stream of their own, late, while the other batch's rows travel: rows, outputs and sums of two batches never meet.
#[test]
fn a_batch_travels_while_the_experts_work_on_the_other() {
    const ELEMENTS: usize = 4 * 64;
    let device = Device::from_env();
    for mode in device.schedules([1, 2, 3]) {
        let checked = device.check(2, mode, |comm| {
            let compute = beside(&comm)?;
            let copier = Quantizer::new(&compute)?;
            let config = Config::new(8, 2, 64, 4).with_num_sms(2).with_row_slots(2);
            let mut buffer = ElasticBuffer::new(&comm, config)?;
            let (idx, weights) = (comm.tensor(&[0i64, 5, 1, 6, 2, 7, 3, 4])?, comm.tensor(&[1.0f32; 8])?);
            let mut batches = Vec::new();
            for number in 0..6 {
                let x = bf16::from_f32(number as f32 + 1.0);
                batches.push((comm.tensor(&[x; ELEMENTS])?, comm.empty::<bf16>(ELEMENTS as u64)?));
            }
            comm.barrier()?;
            let mut in_flight: Option<(usize, Dispatched, epoxide::Event)> = None;
            for number in 0..=batches.len() {
                let next = match batches.get(number) {
                    None => None,
                    Some((x, _)) => {
                        let handle = buffer.dispatch(&DispatchInput::new(4, x, &idx, &weights))?;
                        compute.wait(&buffer.record()?)?;
                        compute.delay(Duration::from_micros(200))?;
                        let view = buffer.recv_view(&handle)?;
                        // SAFETY: the rows as they came, to where expert outputs go, of the same size: both there from the dispatch, which is
                        // before this, to the combine, which is behind it.
                        unsafe { copier.copy_raw(view.x, view.expert_outputs, view.max_rows * 128)? };
                        Some((number, handle, compute.record()?))
                    }
                };
                // The batch before, whose experts worked while this one's rows travelled.
                if let Some((before, handle, worked)) = in_flight {
                    buffer.wait(&worked)?;
                    let y = CombineInput::new(ExpertOutputs::InPlace, &mut batches[before].1);
                    buffer.combine(&handle, y)?;
                }
                in_flight = next;
            }
            buffer.synchronize()?;
            let mut checked = Ok(());
            for (number, (_, y)) in batches.iter().enumerate() {
                let want = vec![bf16::from_f32(2.0 * (number as f32 + 1.0)); ELEMENTS];
                checked = checked.and(same(&format!("sums of batch {number}"), &y.to_vec()?, &want, 64));
            }
            buffer.close()?;
            Ok(checked)
        });
        checked.unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}

/// With one slot a dispatch takes it in any case, as ever.
#[test]
fn one_slot_is_taken_by_the_next_dispatch() {
    let device = Device::from_env();
    let checked = device.check(2, device.schedules([])[0], |comm| {
        let mut buffer = support::errors::small(&comm)?;
        let first = support::errors::dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
        let second = support::errors::dispatch(&mut buffer, &comm, 1, &[0i64, 7])?;
        let slots = [&first, &second].map(Dispatched::row_slot);
        let stale = buffer.recv_view(&first).is_err();
        buffer.recv_view(&second)?;
        buffer.close()?;
        Ok(if stale && slots == [0, 0] { Ok(()) } else { Err(format!("{slots:?}, stale: {stale}")) })
    });
    checked.unwrap();
}

/// Each slot takes what the one buffer took of rows, words and counters, from where a region may begin; a routing slot, as ever, what goes with rows.
#[test]
fn bytes_are_those_of_every_slot() {
    for layout in [Layout::Compact, Layout::ExpertContiguous { alignment: 8 }, Layout::Slab { capacity: 77 }] {
        let config = Config::new(16, 5, 48, 10).with_layout(layout).with_returned_weights().with_routing_slots(3);
        let [one, three] =
            [config.clone(), config.with_row_slots(3)].map(|config| bytes_needed(&config, 4, 2).unwrap());
        let of_routing = ["received selections", "received gate weights", "received sources", "received counts"];
        let of_routing =
            [&of_routing[..], &["handle: dispatches", "tokens of each rank", "marked padding of slabs"]].concat();
        let of_buffer = ["abort word", "window addresses", "claim of the fault record"];
        for (one, three) in one.regions.iter().zip(&three.regions) {
            assert_eq!(one.name, three.name);
            let handles = one.name.starts_with("handle") && (one.symmetric || layout == Layout::Compact);
            let once = handles || one.name == "dispatch that did not fit";
            let want = match once || of_routing.contains(&one.name) || of_buffer.contains(&one.name) {
                true => one.bytes,
                false => 3 * one.bytes.next_multiple_of(256),
            };
            assert_eq!(three.bytes, want, "{} in {layout:?}", one.name);
        }
        let end = three.regions.iter().filter(|region| region.symmetric).map(|region| region.offset + region.bytes);
        assert_eq!(end.max().unwrap().next_multiple_of(256), three.window);
    }
}
