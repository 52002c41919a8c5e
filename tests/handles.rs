//! Handles that replay a routing: new rows go where a dispatch's rows went, bitwise, with several routings alive, between other operations,
//! late and early ranks, and on every schedule.
use crate::support;

use std::time::Duration;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Comm, DeviceTensor, Dispatched, ElasticBuffer, ExpertOutputs, IndexType, Mode, Result, WireFormat,
    WireRows, bf16,
};
use support::brought::{Brought, Lie};
use support::exchange::{Tensors, check_received, check_round_of};
use support::reference::{Wire, World, same};
use support::routing::{Case, Choice, Random, rows};
use support::{Checked, Device, replay};

/// What a rank does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A dispatch, into the next routing slot in turn or the one that is named.
    Fresh(Option<u32>),
    /// A dispatch by the routing of an earlier step.
    Again(usize),
}

/// A dispatch of one kind or the other, the same on all ranks.
struct Step {
    what: What,
    /// Whether its rows are combined.
    combined: bool,
    /// What is sent: of a replay, new rows with the selections of the old.
    world: World,
    wires: Vec<Wire>,
}

/// A history of dispatches and replays.
#[derive(Clone, Copy, Debug)]
struct History {
    ranks: u32,
    slots: u32,
    steps: usize,
    tokens: u32,
    format: WireFormat,
    seed: u64,
    mode: Mode,
}

impl History {
    fn case(&self, random: &mut Random) -> Case {
        Case {
            ranks: self.ranks,
            experts: 9,
            top_k: 3,
            hidden: 48,
            format: self.format,
            num_sms: 1 + self.seed as u32 % 2,
            tokens: (0..self.ranks).map(|_| random.below(self.tokens + 1)).collect(),
            index: IndexType::I64,
            choice: [Choice::Uniform, Choice::Skewed][random.below(2) as usize],
            holes: random.below(4),
            data: random.draw(),
            mode: self.mode,
        }
    }

    /// The steps: as many routings as there are slots are alive, and any of them is replayed at any time.
    fn steps(&self) -> Vec<Step> {
        let mut random = Random::new(self.seed);
        let mut steps: Vec<Step> = Vec::new();
        // Which step's routing each slot has; the slot that waits for a combine; the next in turn.
        let mut alive: Vec<Option<usize>> = vec![None; self.slots as usize];
        let (mut busy, mut turn) = (None, 0);
        for number in 0..self.steps {
            let named = (random.below(4) == 0).then(|| random.below(self.slots) as usize);
            let slot = named.unwrap_or(turn);
            let old: Vec<usize> = alive.iter().copied().flatten().collect();
            let fresh = old.is_empty() || (random.below(3) == 0 && (busy != Some(slot) || self.slots == 1));
            let (what, slot, world) = if fresh {
                alive[slot] = Some(number);
                if named.is_none() {
                    turn = (turn + 1) % alive.len();
                }
                (What::Fresh(named.map(|slot| slot as u32)), slot, self.case(&mut random).world())
            } else {
                let of = old[random.below(old.len() as u32) as usize];
                let mut world = steps[of].world.clone();
                world.inputs.iter_mut().for_each(|input| input.x = rows(&mut random, input.tokens, world.hidden));
                let slot = alive.iter().position(|step| *step == Some(of)).expect("it is alive");
                (What::Again(of), slot, world)
            };
            let combined = random.below(4) > 0;
            busy = (!combined).then_some(slot);
            let wires = world.wires();
            steps.push(Step { what, combined, world, wires });
        }
        steps
    }

    fn buffer(&self, comm: &Comm) -> Result<ElasticBuffer> {
        let case = Case { tokens: vec![self.tokens], ..self.case(&mut Random::new(self.seed)) };
        ElasticBuffer::new(comm, case.config().with_routing_slots(self.slots))
    }

    /// Whether `rank` brings its rows in a step.
    fn brings(&self, rank: u32, step: usize) -> bool {
        match self.format {
            WireFormat::Bf16 => false,
            WireFormat::Fp8 | WireFormat::Fp8Ue8m0 | WireFormat::Mxfp8 => {
                (u64::from(rank) + step as u64 + self.seed).is_multiple_of(2)
            }
            _ => true,
        }
    }

    /// Every step, looked at on the host.
    fn check(&self, device: Device) -> Checked {
        let steps = self.steps();
        let checked = device.check(self.ranks, self.mode, |comm| {
            let rank = comm.rank();
            let mut buffer = self.buffer(&comm)?;
            let mut tensors = Tensors::empty(&comm, self.tokens, 48, 3, IndexType::I64)?;
            let brought = steps.iter().map(|step| {
                let lie = Lie { gap: self.seed as u32 % 3, before: 1 };
                Brought::new(&comm, &step.wires[rank as usize], step.world.scale_words(), lie)
            });
            let brought = brought.collect::<Result<Vec<_>>>()?;
            let mut handles: Vec<Dispatched> = Vec::new();
            let mut checked = Ok(());
            comm.barrier()?;
            for (number, step) in steps.iter().enumerate() {
                let tokens = step.world.inputs[rank as usize].tokens;
                tensors.fill(&step.world, rank)?;
                let rows = match self.brings(rank, number) {
                    true => brought[number].rows()?,
                    false => (&tensors.x).into(),
                };
                let handle = match step.what {
                    What::Fresh(slot) => tensors.dispatch_into(&mut buffer, tokens, rows, slot)?,
                    What::Again(of) => buffer.dispatch_again(&handles[of], rows)?,
                };
                let right = if step.combined {
                    check_round_of(&comm, &mut buffer, &handle, &mut tensors, &step.world, &step.wires)?
                } else {
                    let received = buffer.received(&handle)?;
                    check_received(&step.world, &step.wires, &step.world.arrivals(rank), &received)
                };
                checked = checked.and(right.map_err(|e| format!("step {number}, {:?}: {e}", step.what)));
                handles.push(handle);
            }
            buffer.close()?;
            Ok(checked)
        });
        checked.map_err(|e| format!("{:?}: {e}", steps.iter().map(|s| (s.what, s.combined)).collect::<Vec<_>>()))
    }
}

/// Three routings alive, replays before and after combines, dispatches between, slots in turn and named; in every format, with ranks that
/// bring their rows and ranks whose rows are quantised in the same replay.
#[test]
fn replays_are_bitwise_the_reference() {
    let device = Device::from_env();
    for seed in replay::seeds(1) {
        for mode in device.schedules([seed]) {
            let opaque = WireFormat::Opaque { row_bytes: 80, scale_words: 5 };
            let many = device.max_ranks().min(17);
            for (format, ranks, slots) in [
                (WireFormat::Bf16, 3, 3),
                (WireFormat::Fp8, 3, 3),
                (opaque, 3, 2),
                (WireFormat::Bf16, many, 1),
                (WireFormat::Fp8, 2, 256),
                (WireFormat::Fp8Ue8m0, 2, 2),
                (WireFormat::Mxfp8, 2, 2),
            ] {
                let history = History { ranks, slots, steps: 14, tokens: 12, format, seed, mode };
                history.check(device).unwrap_or_else(|why| {
                    let line = replay::line(module_path!(), "replays_are_bitwise_the_reference", seed);
                    panic!("{history:?}\n{why}\nreplay: {line}")
                });
            }
        }
    }
}

/// Nothing on the host between the operations, and every rank late by turns: what a late rank has not looked at yet is not overwritten, and
/// what it looks at is there. Received rows are copied in stream order, some time after they came.
fn uneven(device: Device, history: &History) -> Checked {
    let steps = history.steps();
    device.check(history.ranks, history.mode, |comm| {
        let rank = comm.rank();
        let mut random = Random::new(history.seed ^ u64::from(rank + 1) << 40);
        let mut buffer = history.buffer(&comm)?;
        let copier = Quantizer::new(&comm)?;
        // For every step its own tensors: nothing is filled or allocated on the way.
        let mut tensors = Vec::new();
        for step in &steps {
            let mut mine = Tensors::empty(&comm, step.world.inputs[rank as usize].tokens, 48, 3, IndexType::I64)?;
            mine.fill(&step.world, rank)?;
            let outputs = comm.tensor(&step.world.expert_outputs(rank, &step.wires))?;
            let seen: DeviceTensor<bf16> = comm.empty(outputs.len())?;
            tensors.push((mine, outputs, seen));
        }
        comm.synchronize()?;
        comm.barrier()?;
        let mut handles: Vec<Dispatched> = Vec::new();
        let mut late = |longest: u32| -> Result<()> {
            match random.below(3) {
                0 => comm.delay(Duration::from_nanos(1_000 + u64::from(random.below(longest)))),
                _ => Ok(()),
            }
        };
        for (step, (mine, outputs, seen)) in steps.iter().zip(&mut tensors) {
            late(400_000)?;
            let tokens = step.world.inputs[rank as usize].tokens;
            let handle = match step.what {
                What::Fresh(slot) => mine.dispatch_into(&mut buffer, tokens, (&mine.x).into(), slot)?,
                What::Again(of) => buffer.dispatch_again(&handles[of], &mine.x)?,
            };
            late(100_000)?;
            let x = buffer.recv_view(&handle)?.x;
            // SAFETY: as many rows as the reference says were received, which nobody writes before the next dispatch, behind this on the
            // stream; a tensor of as many.
            unsafe { copier.copy_raw(x, seen.address(), 2 * seen.len())? };
            if step.combined {
                late(100_000)?;
                buffer.combine(&handle, CombineInput::new(&*outputs, &mut mine.y))?;
            }
            handles.push(handle);
        }
        buffer.synchronize()?;
        let mut checked = Ok(());
        for (number, (step, (mine, _, seen))) in steps.iter().zip(&tensors).enumerate() {
            let want: Vec<bf16> = step
                .world
                .arrivals(rank)
                .sources
                .iter()
                .flat_map(|&(source, token)| step.world.row(source, token).to_vec())
                .collect();
            let right = same("received rows", &seen.to_vec()?, &want, 48);
            let right = right.and_then(|()| match step.combined {
                true => {
                    let sums = step.world.combined(rank, &step.wires[rank as usize]);
                    mine.y.to_vec().map_err(|e| e.to_string()).and_then(|y| same("combined rows", &y, &sums, 48))
                }
                false => Ok(()),
            });
            checked = checked.and(right.map_err(|e| format!("step {number}, {:?}: {e}", step.what)));
        }
        comm.barrier()?;
        buffer.close()?;
        Ok(checked)
    })
}

#[test]
fn replays_of_uneven_ranks_are_bitwise_the_reference() {
    let device = Device::from_env();
    for seed in replay::seeds(2) {
        for mode in device.schedules([seed]) {
            let history = History { ranks: 4, slots: 3, steps: 24, tokens: 10, format: WireFormat::Bf16, seed, mode };
            uneven(device, &history).unwrap_or_else(|why| {
                let line = replay::line(module_path!(), "replays_of_uneven_ranks_are_bitwise_the_reference", seed);
                panic!("{history:?}\n{why}\nreplay: {line}")
            });
        }
    }
}

/// The backward pass of a combine: every row that was summed gets its token's gradient, in the place of the row, and the gradients of the rows
/// are summed for the tokens as the rows' outputs were.
#[test]
fn the_gradient_of_a_combine_reaches_the_rows_that_were_summed() {
    let device = Device::from_env();
    for mode in device.schedules([3]) {
        let history = History { ranks: 3, slots: 1, steps: 1, tokens: 9, format: WireFormat::Bf16, seed: 11, mode };
        let Step { world, .. } = history.steps().remove(0);
        // Each gradient is its token's number, the elements' place and the rank's: no two rows are alike.
        let gradient = |rank: u32, token: u32, column: u32| {
            bf16::from_f32((rank * 16 + token) as f32 + if column.is_multiple_of(2) { 0.5 } else { 0.0 })
        };
        let dy = |rank: u32, tokens: u32| -> Vec<bf16> {
            (0..tokens).flat_map(|token| (0..48).map(move |column| gradient(rank, token, column))).collect()
        };
        let checked = device.check(3, mode, |comm| {
            let rank = comm.rank();
            let tokens = world.inputs[rank as usize].tokens;
            let mut buffer = history.buffer(&comm)?;
            let mut tensors = Tensors::empty(&comm, tokens, 48, 3, IndexType::I64)?;
            tensors.fill(&world, rank)?;
            let dy = comm.tensor(&dy(rank, tokens))?;
            let mut dx = comm.empty::<bf16>(dy.len())?;
            comm.barrier()?;
            let handle = tensors.dispatch(&mut buffer, tokens)?;
            let forward = buffer.received(&handle)?;
            let outputs = comm.empty::<bf16>(u64::from(forward.counts.rows) * 48)?;
            buffer.combine(&handle, CombineInput::new(&outputs, &mut tensors.y))?;
            let again = buffer.dispatch_again(&handle, &dy)?;
            let backward = buffer.received(&again)?;
            let WireRows::Bf16(gradients) = &backward.x else { return Ok(Err("no BF16".to_owned())) };
            let want: Vec<bf16> = forward
                .sources
                .iter()
                .flat_map(|&(source, token)| (0..48).map(move |column| gradient(source, token, column)))
                .collect();
            let mut checked = same("gradients", gradients, &want, 48);
            if (&backward.sources, &backward.topk_idx, &backward.topk_weights, &backward.counts)
                != (&forward.sources, &forward.topk_idx, &forward.topk_weights, &forward.counts)
            {
                checked = checked.and(Err("what goes with the rows is another".to_owned()));
            }
            // Experts that hand the gradient on: a token's is counted once for every rank that had it.
            buffer.write_expert_outputs(&again, gradients)?;
            buffer.combine(&again, CombineInput::new(ExpertOutputs::InPlace, &mut dx))?;
            buffer.synchronize()?;
            let dx = dx.to_vec()?;
            buffer.close()?;
            let owners = world.owners();
            let want: Vec<bf16> = (0..tokens)
                .flat_map(|token| {
                    let chosen = world.selections(rank, token).iter().filter_map(|&e| usize::try_from(e).ok());
                    let ranks: std::collections::BTreeSet<u32> = chosen.map(|e| owners[e]).collect();
                    let copies = ranks.len() as f32;
                    (0..48).map(move |column| bf16::from_f32(copies * f32::from(gradient(rank, token, column))))
                })
                .collect();
            Ok(checked.and(same("gradients of the tokens", &dx, &want, 48)))
        });
        checked.unwrap();
    }
}
