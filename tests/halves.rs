//! Operations by send and receive halves: several in flight in different row slots, with kernels between the halves, on ranks that divide them and on ones that do
//! not, eager and captured: bit for bit the reference, on every schedule. Without one of their waits some schedule goes wrong.
use crate::support;

use std::time::Duration;

use epoxide::{
    CombineTicket, Comm, DispatchTicket, Dispatched, ElasticBuffer, Error, ExpertOutputs, Graph, Layout, Mode, Result,
    WireFormat, bf16,
};
use epoxide_sim::Mutation;
use support::exchange::{Tensors, check_received, expert_outputs};
use support::graphs::{Layer, config};
use support::halves::send;
use support::reference::{Wire, same};
use support::routing::{Bounds, Case, Random};
use support::{Checked, Device, replay};

/// Micro-batches of one case with other data each, all in flight at once, `rounds` times; what comes and what is summed is the reference.
fn check(device: Device, case: &Case, batches: u32, rounds: u64, mutation: Option<Mutation>) -> Checked {
    let worlds: Vec<_> = (0..rounds * u64::from(batches))
        .map(|number| Case { data: case.data.wrapping_add(number), ..case.clone() }.world())
        .collect();
    let wires: Vec<Vec<Wire>> = worlds.iter().map(|world| world.wires()).collect();
    device.check_without(case.ranks, case.mode, mutation, |comm| {
        let (rank, tokens) = (comm.rank(), case.tokens[comm.rank() as usize]);
        let config = case.config().with_layout(Layout::RankMajor { alignment: 4 }).with_row_slots(batches);
        let mut buffer = ElasticBuffer::new(&comm, config.with_halves())?;
        let mut checked = Ok(());
        let new = |_| Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index);
        let mut tensors = (0..batches).map(new).collect::<Result<Vec<_>>>()?;
        for (worlds, wires) in worlds.chunks(batches as usize).zip(wires.chunks(batches as usize)) {
            for (tensors, world) in tensors.iter_mut().zip(worlds) {
                tensors.fill(world, rank)?;
            }
            comm.barrier()?;
            let sent = tensors
                .iter()
                .map(|tensors| send(&mut buffer, tensors, tokens, (&tensors.x).into()))
                .collect::<Result<Vec<_>>>()?;
            let mut combining = Vec::new();
            for ((ticket, world), wires) in sent.into_iter().zip(worlds).zip(wires) {
                let handle = buffer.dispatch_receive(ticket)?;
                let received = buffer.received(&handle)?;
                checked = checked.and(check_received(world, wires, &world.arrivals(rank), &received));
                buffer.write_expert_outputs(&handle, &expert_outputs(rank, world.hidden, &received))?;
                combining.push(buffer.combine_send(&handle, ExpertOutputs::InPlace)?);
            }
            for (ticket, tensors) in combining.into_iter().zip(&mut tensors) {
                buffer.combine_receive(ticket, &mut tensors.y)?;
            }
            for ((tensors, world), wires) in tensors.iter().zip(worlds).zip(wires) {
                let want = world.combined(rank, &wires[rank as usize]);
                let y = tensors.sums(tokens, world.hidden)?;
                checked = checked.and(same("combined rows", &y, &want, world.hidden as usize));
            }
        }
        buffer.close()?;
        Ok(checked)
    })
}

#[test]
fn random_routings_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=6, experts: 1..=64, top_k: 8, hidden: 320, tokens: 40 };
    let cases = (bounds.cases(device), 1..=3u32);
    replay::law(module_path!(), "random_routings_are_bitwise_the_reference", 8, cases, |case: (Case, u32)| {
        check(device, &case.0, case.1, 2, None)
    });
}

/// Each way in which rows are quantised, and long ones of few tokens.
#[test]
fn every_format_is_bitwise_the_reference() {
    let device = Device::from_env();
    for format in [WireFormat::Bf16, WireFormat::Fp8, WireFormat::Fp8Ue8m0, WireFormat::Mxfp8] {
        let mode = Mode::Fast { workers: 0 };
        let case = Case { num_sms: 3, ..Case::with_rows(2, 2064, format, vec![5, 0], 3, mode) };
        check(device, &case, 2, 2, None).unwrap_or_else(|why| panic!("{format:?}: {why}"));
    }
}

/// What is in flight in a row slot, with the number of its step.
enum Flight {
    Sent(usize, DispatchTicket),
    /// By a whole dispatch.
    Received(usize, Dispatched),
    Combining(usize, CombineTicket),
}

/// Micro-batches that go through the row slots in turn, enqueued with nothing on the host between: a slot's combine is received when the next one is to be sent there,
/// and others are in flight meanwhile. Experts are a kernel, and a random delay comes before each half. Each rank calls halves, or whole operations, as it likes.
struct Flow {
    ranks: u32,
    slots: u32,
    steps: usize,
    seed: u64,
}

impl Flow {
    fn of(device: Device, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (ranks, slots) = ([2, 4][random.below(2) as usize], 1 + random.below(3));
        let on_gpus = device == Device::Cuda;
        Self { ranks, slots, steps: if on_gpus { 200 } else { 12 }, seed }
    }

    fn run_rank(&self, comm: &Comm) -> Result<Checked> {
        const TOKENS: u32 = 12;
        let &Self { ranks, slots, steps, seed } = self;
        let mut of_all = Random::new(seed ^ 1 << 40);
        let mut own = Random::new(seed ^ (u64::from(comm.rank()) + 1) << 48);
        let layout = Layout::RankMajor { alignment: 1 };
        let config = config(TOKENS).with_num_sms(1 + of_all.below(3)).with_layout(layout).with_row_slots(slots);
        let mut buffer = ElasticBuffer::new(comm, config.with_halves().with_timeout(Duration::from_secs(20)))?;
        let mut layers = Vec::new();
        for number in 0..steps {
            // The rank without a token takes turns.
            let none = comm.rank() == number as u32 % ranks;
            let mut layer = Layer::new(comm, if none { 0 } else { 1 + own.below(TOKENS) })?;
            layer.fill(own.draw())?;
            layers.push(layer);
        }
        // Of a step that is given up the experts have read the rows.
        let given_up: Vec<bool> = (0..steps).map(|_| of_all.below(4) == 0).collect();
        comm.barrier()?;
        let mut flights: Vec<Option<Flight>> = (0..slots).map(|_| None).collect();
        for number in 0..steps + slots as usize {
            let slot = number % slots as usize;
            self.delay(comm, &mut own)?;
            if let Some(Flight::Combining(step, ticket)) = flights[slot].take_if(|of| of.is_combining()) {
                buffer.combine_receive(ticket, &mut layers[step].y)?;
            }
            self.delay(comm, &mut own)?;
            if number < steps {
                let whole = own.below(4) == 0;
                flights[slot] = Some(match whole {
                    true => Flight::Received(number, layers[number].dispatch_into(&mut buffer, slot as u32)?),
                    false => Flight::Sent(number, layers[number].send(&mut buffer, slot as u32)?),
                });
            }
            // The one that was sent first of those in flight.
            let first = (slot + 1) % slots as usize;
            self.delay(comm, &mut own)?;
            let (step, handle) = match flights[first].take() {
                Some(Flight::Sent(step, ticket)) => (step, buffer.dispatch_receive(ticket)?),
                Some(Flight::Received(step, handle)) => (step, handle),
                other => {
                    flights[first] = other;
                    continue;
                }
            };
            if given_up[step] {
                layers[step].experts(&mut buffer, &handle)?;
                buffer.release(&handle)?;
            } else if own.below(4) == 0 {
                layers[step].finish(&mut buffer, &handle)?;
            } else {
                flights[first] = Some(Flight::Combining(step, layers[step].give_back(&mut buffer, &handle)?));
            }
        }
        for flight in flights.into_iter().flatten() {
            let Flight::Combining(step, ticket) = flight else { panic!("all that was sent is received by now") };
            buffer.combine_receive(ticket, &mut layers[step].y)?;
        }
        buffer.synchronize()?;
        let mut checked = Ok(());
        for (step, layer) in layers.iter().enumerate().filter(|(step, _)| !given_up[*step]) {
            checked = checked.and(layer.check(false)?.map_err(|why| format!("step {step}: {why}")));
        }
        buffer.close()?;
        Ok(checked)
    }

    fn delay(&self, comm: &Comm, random: &mut Random) -> Result<()> {
        match random.below(8) {
            0..5 => Ok(()),
            5 | 6 => comm.delay(Duration::from_nanos(2_000 + u64::from(random.below(20_000)))),
            _ => comm.delay(Duration::from_nanos(2_000 + u64::from(random.below(200_000)))),
        }
    }

    fn run(&self, device: Device, mode: Mode, mutation: Option<Mutation>) -> Checked {
        device.check_without(self.ranks, mode, mutation, |comm| self.run_rank(&comm))
    }
}

impl Flight {
    fn is_combining(&self) -> bool {
        matches!(self, Self::Combining(..))
    }
}

#[test]
fn micro_batches_overlap_with_kernels_between() {
    let device = Device::from_env();
    for seed in replay::seeds(8) {
        for mode in device.schedules([seed]) {
            if let Err(why) = Flow::of(device, seed).run(device, mode, None) {
                let line = replay::line(module_path!(), "micro_batches_overlap_with_kernels_between", seed);
                panic!("seed {seed}: {why}\nreplay: {line}");
            }
        }
    }
}

/// What the tests above would miss if they could not fail: without any one of these waits some seed is wrong. (A receive half's wait for entry words shows where
/// ranks are out of step, which `halves_refused` has.)
#[test]
fn without_a_wait_some_history_fails() {
    const SEND: &str = include_str!("../gpu-kernels/src/rank_major/send.rs");
    const RECEIVE: &str = include_str!("../gpu-kernels/src/rank_major/receive.rs");
    const COMBINE: &str = include_str!("../gpu-kernels/src/rank_major/combine.rs");
    for (file, source, wait) in [
        ("gpu-kernels/src/rank_major/send.rs", SEND, "a.op.entry.meet(a.op.window()"),
        ("gpu-kernels/src/rank_major/receive.rs", RECEIVE, "a.landings.wait("),
        ("gpu-kernels/src/rank_major/receive.rs", RECEIVE, "a.selections.wait("),
        ("gpu-kernels/src/rank_major/receive.rs", RECEIVE, "a.selections.wait_tokens("),
        ("gpu-kernels/src/rank_major/combine.rs", COMBINE, "entry.meet(window, watch, kind)"),
    ] {
        let mutation = Mutation::of(file, source, wait).expect("the wait is there");
        let goes_wrong = |seed, mutation| {
            let mode = Mode::Seeded { seed };
            let case = Case::with_rows(2, 64, WireFormat::Bf16, vec![5, 0], seed, mode);
            Flow::of(Device::Simulated, seed).run(Device::Simulated, mode, mutation).is_err()
                || check(Device::Simulated, &case, 2, 1, mutation).is_err()
        };
        let seed = (0..40).find(|seed| goes_wrong(*seed, Some(mutation)));
        let seed = seed.unwrap_or_else(|| panic!("{file}: no seed misses {wait}"));
        assert!(!goes_wrong(seed, None), "seed {seed} goes wrong as it is");
    }
}

/// Two micro-batches, each of whose halves has some of the other's behind it.
fn overlapped(buffer: &mut ElasticBuffer, [a, b]: &mut [Layer; 2]) -> Result<()> {
    let (of_a, of_b) = (a.send(buffer, 0)?, b.send(buffer, 1)?);
    let handle = buffer.dispatch_receive(of_a)?;
    let of_a = a.give_back(buffer, &handle)?;
    let handle = buffer.dispatch_receive(of_b)?;
    let of_b = b.give_back(buffer, &handle)?;
    buffer.combine_receive(of_a, &mut a.y)?;
    Ok(buffer.combine_receive(of_b, &mut b.y)?)
}

fn two_slots(comm: &Comm) -> Result<(ElasticBuffer, [Layer; 2])> {
    let config = config(7).with_layout(Layout::RankMajor { alignment: 1 }).with_row_slots(2).with_halves();
    Ok((ElasticBuffer::new(comm, config)?, [Layer::new(comm, 5)?, Layer::new(comm, 7)?]))
}

/// Captured on one rank and called on the other, then captured on both, with another routing each time; a reset comes between.
#[test]
fn halves_are_captured() {
    let device = Device::from_env();
    for mode in device.schedules([1, 2]) {
        let checked = device.check(2, mode, |comm| {
            let (mut buffer, mut layers) = two_slots(&comm)?;
            let capture = |buffer: &mut ElasticBuffer, layers: &mut [Layer; 2]| -> Result<Graph> {
                comm.capture(|_| overlapped(buffer, layers))
            };
            let mut graph = if comm.rank() == 0 { Some(capture(&mut buffer, &mut layers)?) } else { None };
            let mut checked = Ok(());
            let rounds = if device == Device::Cuda { 60 } else { 8 };
            for round in 0..rounds {
                for (number, layer) in (0..).zip(&mut layers) {
                    layer.fill(100 * round + 10 * number + u64::from(comm.rank()))?;
                }
                if round == rounds / 2 {
                    graph = Some(capture(&mut buffer, &mut layers)?);
                    buffer.reset()?;
                }
                comm.barrier()?;
                match &graph {
                    // SAFETY: the layers' tensors are there, and are looked at when the stream has come by.
                    Some(graph) => unsafe { graph.launch(&comm)? },
                    None => overlapped(&mut buffer, &mut layers)?,
                }
                for layer in &layers {
                    checked = checked.and(layer.check(false)?.map_err(|why| format!("round {round}: {why}")));
                }
            }
            buffer.close()?;
            Ok(checked)
        });
        checked.unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}

/// Words that carry half of a number, or 48 bits: across 2^32 operations, and where landing counters wrap.
#[test]
fn numbers_go_on_across_what_words_hold() {
    let device = Device::from_env();
    for (operations, dispatches) in [((1 << 32) - 4, (1 << 31) - 2), ((1 << 47) + 6, (1 << 46) + 3)] {
        let checked = device.check(2, Mode::Fast { workers: 0 }, |comm| {
            let (mut buffer, mut layers) = two_slots(&comm)?;
            let mut checked = Ok(());
            for round in 0..5 {
                if round == 1 {
                    buffer.synchronize()?;
                    comm.barrier()?;
                    // SAFETY: all ranks are here, and none is in an operation.
                    unsafe { buffer.test_count_from(operations, dispatches)? };
                }
                for (number, layer) in (0..).zip(&mut layers) {
                    layer.fill(100 * round + 10 * number + u64::from(comm.rank()))?;
                }
                comm.barrier()?;
                overlapped(&mut buffer, &mut layers)?;
                for layer in &layers {
                    checked = checked.and(layer.check(false)?.map_err(|why| format!("round {round}: {why}")));
                }
            }
            buffer.close()?;
            Ok(checked)
        });
        checked.unwrap_or_else(|why| panic!("{operations}, {dispatches}: {why}"));
    }
}

/// A bad selection is told to all, of the receive half; behind a reset the buffer is as new.
#[test]
fn bad_selections_are_found_by_every_receive_half() {
    let device = Device::from_env();
    for mode in device.schedules([1, 2, 3]) {
        let checked = device.check(2, mode, |comm| {
            let (mut buffer, mut layers) = two_slots(&comm)?;
            layers.iter_mut().try_for_each(|layer| layer.fill(3))?;
            if comm.rank() == 1 {
                layers[1].spoil()?;
            }
            comm.barrier()?;
            let said = overlapped(&mut buffer, &mut layers).and_then(|()| buffer.synchronize());
            let right = matches!(
                said,
                Err(Error::IndexOutOfRange { source_rank: 1, token: 0, index: 1000, row_slot: Some(1), .. })
            );
            buffer.reset()?;
            layers.iter_mut().try_for_each(|layer| layer.fill(4))?;
            comm.barrier()?;
            overlapped(&mut buffer, &mut layers)?;
            let again = layers[0].check(false)?.and(layers[1].check(false)?);
            buffer.close()?;
            Ok(if right { again } else { Err(format!("{said:?}")) })
        });
        checked.unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}

/// A part of a row that is brought by address is received as any other is.
#[test]
fn halves_take_addresses() {
    let device = Device::from_env();
    let checked = device.check(2, Mode::Fast { workers: 0 }, |comm| {
        let config = config(4).with_layout(Layout::RankMajor { alignment: 1 }).with_halves();
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        let (x, idx) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[0i64, 7, -1])?);
        let (weights, mut y) = (comm.tensor(&[1.0f32; 3])?, comm.empty::<bf16>(64)?);
        let outputs = comm.tensor(&[bf16::ONE; 2 * 4 * 64])?;
        comm.barrier()?;
        let index = epoxide::IndexType::I64;
        let input = epoxide::RawDispatchInput::new(1, x.address(), idx.address(), index, weights.address());
        // SAFETY: the tensors are there until the stream has passed, and nothing else uses them.
        let ticket = unsafe { buffer.dispatch_send_raw(&input)? };
        let handle = buffer.dispatch_receive(ticket)?;
        let ticket = buffer.combine_send(&handle, &outputs)?;
        // SAFETY: as above.
        unsafe { buffer.combine_receive_raw(ticket, y.address())? };
        buffer.synchronize()?;
        let got = y.to_vec()?;
        y.copy_from_host(&got)?;
        buffer.close()?;
        Ok(same("sums", &got, &[bf16::from_f32(2.0); 64], 64))
    });
    checked.unwrap();
}
