//! Rows in fixed places: what a dispatch brings, how it is indexed, and what combines make of it, bit for bit as in the compact layout, on every
//! schedule; with slots that are free without a wait, and with ones that are not.
use crate::support;

use std::time::Duration;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, ExpertOutputs, IndexType, Layout, Mode, Result,
    WireFormat,
};
use epoxide_sim::Mutation;
use proptest::prelude::*;
use support::exchange::{Indices, Tensors, check_received, check_round_of};
use support::fixed_places::{check_index, predicted_outputs};
use support::reference::{Wire, World, same};
use support::routing::{Bounds, Case, Choice, Random, alignments, rows};
use support::{Checked, Device, replay, uneven};

fn config(case: &Case, alignment: u32) -> Config {
    case.config().with_layout(Layout::RankMajor { alignment })
}

/// Runs a case on a group of its own, `rounds` times with other data: all but the first find the slot free.
fn check(device: Device, (case, alignment): &(Case, u32), rounds: u64) -> Checked {
    let worlds: Vec<_> =
        (0..rounds).map(|round| Case { data: case.data.wrapping_add(round), ..case.clone() }.world()).collect();
    let wires: Vec<Vec<Wire>> = worlds.iter().map(|world| world.wires()).collect();
    device.check(case.ranks, case.mode, |comm| {
        let mut buffer = ElasticBuffer::new(&comm, config(case, *alignment))?;
        let tokens = case.tokens[comm.rank() as usize];
        let quantizer = Quantizer::new(&comm)?;
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        let mut checked = Ok(());
        for (world, wires) in worlds.iter().zip(&wires) {
            tensors.fill(world, comm.rank())?;
            comm.barrier()?;
            let handle = tensors.dispatch(&mut buffer, tokens)?;
            let received = buffer.received(&handle)?;
            let index = check_index(&comm, &quantizer, &buffer, &handle, &received, *alignment)?;
            let round = check_round_of(&comm, &mut buffer, &handle, &mut tensors, world, wires)?;
            checked = checked.and(index).and(round);
        }
        buffer.close()?;
        Ok(checked)
    })
}

fn aligned(cases: impl Strategy<Value = Case>) -> impl Strategy<Value = (Case, u32)> {
    (cases, alignments())
}

#[test]
fn random_routings_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=8, experts: 1..=64, top_k: 32, hidden: 320, tokens: 40 };
    let cases = aligned(bounds.cases(device));
    replay::law(module_path!(), "random_routings_are_bitwise_the_reference", 10, cases, |case| check(device, &case, 3));
}

#[test]
fn many_experts_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=8, experts: 1..=2048, top_k: 16, hidden: 64, tokens: 70 };
    let cases = aligned(bounds.cases(device)).prop_map(|(case, alignment)| (case, alignment.min(8)));
    replay::law(module_path!(), "many_experts_are_bitwise_the_reference", 4, cases, |case| check(device, &case, 2));
}

#[test]
fn many_ranks_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 9..=64, experts: 1..=300, top_k: 16, hidden: 64, tokens: 12 };
    let bounds = if device == Device::Cuda { Bounds { ranks: 7..=8, ..bounds } } else { bounds };
    let cases = aligned(bounds.cases(device)).prop_map(|(case, alignment)| (Case { num_sms: 1, ..case }, alignment));
    replay::law(module_path!(), "many_ranks_are_bitwise_the_reference", 2, cases, |case| check(device, &case, 2));
}

/// One expert, all tokens; every token the same experts; none at all; top-1; more ranks than experts.
#[test]
fn extremes_are_bitwise_the_reference() {
    let device = Device::from_env();
    for case in Case::extremes() {
        for format in [WireFormat::Bf16, WireFormat::Fp8, WireFormat::Fp8Ue8m0, WireFormat::Mxfp8] {
            let case = (Case { format, ..case.clone() }, 16);
            check(device, &case, 2).unwrap_or_else(|error| panic!("{case:?}: {error}"));
        }
    }
}

/// Few tokens of long rows, which several warps make: quantised ones always, others where blocks have more than one.
#[test]
fn rows_in_pieces_are_bitwise_the_reference() {
    let device = Device::from_env();
    for (hidden, tokens, num_sms) in [(2048, 3, 2), (2064, 5, 4), (7168, 1, 3), (4112, 40, 2)] {
        for format in [WireFormat::Fp8, WireFormat::Fp8Ue8m0, WireFormat::Mxfp8, WireFormat::Bf16] {
            let case = Case {
                ranks: 2,
                experts: 9,
                top_k: 3,
                hidden,
                format,
                num_sms,
                tokens: vec![tokens, tokens - 1],
                index: IndexType::I32,
                choice: Choice::Uniform,
                holes: 1,
                data: u64::from(hidden),
                mode: Mode::Fast { workers: 0 },
            };
            let case = (case, 1);
            check(device, &case, 2).unwrap_or_else(|error| panic!("{case:?}: {error}"));
        }
    }
}

/// What is done in a row slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A dispatch that is combined: behind it the slot is free.
    Round,
    /// One that is given up by the next.
    Dispatch,
    /// One whose rows stay behind its combine, and are read there; then they are released.
    Kept,
    /// New rows by the last routing, combined.
    Again,
}

/// Histories in which slots are free and are not, in one or two row slots in turn, with random delays; rows are read as they are combined.
fn history(device: Device, seed: u64, mode: Mode, mutation: Option<Mutation>) -> Checked {
    let mut random = Random::new(seed);
    let ranks = 2 + random.below(2);
    let slots = 1 + random.below(2);
    let format = [WireFormat::Bf16, WireFormat::Fp8][random.below(2) as usize];
    let num_sms = 1 + random.below(3);
    let case = |random: &mut Random| Case {
        ranks,
        experts: 7,
        top_k: 3,
        hidden: 64,
        format,
        num_sms,
        tokens: (0..ranks).map(|_| random.below(20)).collect(),
        index: IndexType::I64,
        choice: [Choice::Uniform, Choice::Skewed, Choice::Same][random.below(3) as usize],
        holes: random.below(4),
        data: random.draw(),
        mode,
    };
    let mut steps: Vec<(Step, u32, World)> = Vec::new();
    for number in 0..16u32 {
        let slot = number % slots;
        let before = steps.iter().rfind(|(_, of, _)| *of == slot);
        let step = match random.below(8) {
            0..4 => Step::Round,
            4 | 5 => Step::Dispatch,
            6 => Step::Kept,
            _ if before.is_some() => Step::Again,
            _ => Step::Round,
        };
        // With several slots a dispatch that waits for its combine holds its own.
        let step = if slots > 1 && step == Step::Dispatch { Step::Round } else { step };
        let mut world = case(&mut random).world();
        if let (Step::Again, Some((_, _, old))) = (step, before) {
            world = old.clone();
            world.inputs.iter_mut().for_each(|input| input.x = rows(&mut random, input.tokens, world.hidden));
        }
        steps.push((step, slot, world));
    }
    let wires: Vec<Vec<Wire>> = steps.iter().map(|(_, _, world)| world.wires()).collect();
    let of_rank = |comm: Comm| -> Result<Checked> {
        let rank = comm.rank();
        let mut random = Random::new(seed ^ (u64::from(rank) + 1) << 40);
        let config = Config::new(7, 3, 64, 20).with_format(format).with_num_sms(num_sms).with_row_slots(slots);
        let config = config.with_routing_slots(slots).with_layout(Layout::RankMajor { alignment: 1 });
        let mut buffer = ElasticBuffer::new(&comm, config.with_timeout(Duration::from_secs(20)))?;
        let mut tensors = Vec::new();
        for (_, _, world) in &steps {
            let mut mine = Tensors::empty(&comm, world.inputs[rank as usize].tokens, 64, 3, IndexType::I64)?;
            mine.fill(world, rank)?;
            tensors.push(mine);
        }
        comm.barrier()?;
        let (mut checked, mut last) = (Ok(()), vec![None; slots as usize]);
        for (number, ((step, slot, world), tensors)) in steps.iter().zip(&mut tensors).enumerate() {
            if random.below(2) == 0 {
                comm.delay(Duration::from_nanos(1_000 + u64::from(random.below(100_000))))?;
            }
            let tokens = world.inputs[rank as usize].tokens;
            let handle = match (step, &last[*slot as usize], &tensors.topk_idx) {
                (Step::Again, Some(old), _) => buffer.dispatch_again(old, &tensors.x)?,
                (_, _, Indices::I64(idx)) => {
                    let input = DispatchInput::new(tokens, &tensors.x, idx, &tensors.topk_weights).in_row_slot(*slot);
                    buffer.dispatch(&if *step == Step::Kept { input.keeping_rows() } else { input })?
                }
                _ => unreachable!("selections are 64 bits wide"),
            };
            let here = match step {
                Step::Dispatch if random.below(2) == 0 => Ok(()),
                Step::Dispatch => {
                    let received = buffer.received(&handle)?;
                    check_received(world, &wires[number], &world.arrivals(rank), &received)
                }
                _ => check_round_of(&comm, &mut buffer, &handle, tensors, world, &wires[number])?,
            };
            checked = checked.and(here.map_err(|why| format!("step {number}, {step:?}: {why}")));
            if *step == Step::Kept {
                let received = buffer.received(&handle)?;
                let kept = check_received(world, &wires[number], &world.arrivals(rank), &received);
                checked = checked.and(kept.map_err(|why| format!("step {number}, kept: {why}")));
                buffer.release(&handle)?;
            }
            last[*slot as usize] = Some(handle);
        }
        buffer.close()?;
        Ok(checked)
    };
    device.check_without(ranks, mode, mutation, of_rank)
}

#[test]
fn histories_are_bitwise_the_reference() {
    let device = Device::from_env();
    for seed in replay::seeds(12) {
        for mode in device.schedules([seed]) {
            if let Err(why) = history(device, seed, mode, None) {
                let line = replay::line(module_path!(), "histories_are_bitwise_the_reference", seed);
                panic!("seed {seed}: {why}\nreplay: {line}");
            }
        }
    }
}

/// Rounds that are enqueued one after another, with nothing on the host between them: outputs are known before and lie in tensors.
struct Skew {
    worlds: Vec<World>,
    wires: Vec<Vec<Wire>>,
    case: Case,
    seed: u64,
}

impl Skew {
    fn new(case: Case, rounds: u32, seed: u64) -> Self {
        let worlds = uneven::worlds(&case, seed, rounds);
        let wires = worlds.iter().map(|world| world.wires()).collect();
        Self { worlds, wires, case, seed }
    }

    fn run_rank(&self, comm: &Comm) -> Result<Checked> {
        let rank = comm.rank();
        let mut random = Random::new(self.seed ^ (u64::from(rank) + 1) << 48);
        let (case, hidden) = (&self.case, self.case.hidden);
        let mut buffer = ElasticBuffer::new(comm, config(case, 1).with_timeout(Duration::from_secs(30)))?;
        let (mut tensors, mut outputs) = (Vec::new(), Vec::new());
        for (round, world) in self.worlds.iter().enumerate() {
            let tokens = world.inputs[rank as usize].tokens;
            let mut mine = Tensors::empty(comm, tokens, hidden, case.top_k, IndexType::I64)?;
            mine.fill(world, rank)?;
            tensors.push(mine);
            let places = predicted_outputs(world, rank, &self.wires[round], case.max_tokens());
            outputs.push(comm.tensor(&places)?);
        }
        comm.barrier()?;
        for (number, world) in self.worlds.iter().enumerate() {
            uneven::be_late(comm, &mut random)?;
            let handle = tensors[number].dispatch(&mut buffer, world.inputs[rank as usize].tokens)?;
            uneven::be_late(comm, &mut random)?;
            let from = ExpertOutputs::from(&outputs[number]);
            buffer.combine(&handle, CombineInput::new(from, &mut tensors[number].y))?;
        }
        buffer.synchronize()?;
        let mut checked = Ok(());
        for (number, world) in self.worlds.iter().enumerate() {
            let y = tensors[number].sums(world.inputs[rank as usize].tokens, hidden)?;
            let want = world.combined(rank, &self.wires[number][rank as usize]);
            let right = same("combined rows", &y, &want, hidden as usize);
            checked = checked.and(right.map_err(|why| format!("round {number}: {why}")));
        }
        buffer.close()?;
        Ok(checked)
    }

    fn run(&self, device: Device, mutation: Option<Mutation>) -> Checked {
        device.check_without(self.case.ranks, self.case.mode, mutation, |comm| self.run_rank(&comm))
    }
}

fn skewed(device: Device, seed: u64, mode: Mode, rounds: u32) -> Skew {
    Skew::new(uneven::case(device, seed, mode), rounds, seed)
}

#[test]
fn uneven_rounds() {
    let device = Device::from_env();
    for seed in replay::seeds(2) {
        for mode in device.schedules([seed]) {
            if let Err(why) = skewed(device, seed, mode, 100).run(device, None) {
                panic!("{why}\nreplay: {}", replay::line(module_path!(), "uneven_rounds", seed));
            }
        }
    }
}

/// What the tests above would miss if they could not fail: without any one of these waits some seed is wrong.
#[test]
fn without_a_wait_some_history_fails() {
    const SOURCES: [(&str, &str, &str); 6] = [
        (
            "gpu-kernels/src/rank_major/combine.rs",
            include_str!("../gpu-kernels/src/rank_major/combine.rs"),
            "entry.meet(",
        ),
        ("gpu-kernels/src/rank_major/send.rs", include_str!("../gpu-kernels/src/rank_major/send.rs"), "bulk::land()"),
        (
            "gpu-kernels/src/rank_major/send.rs",
            include_str!("../gpu-kernels/src/rank_major/send.rs"),
            "a.op.entry.meet(a.op.window()",
        ),
        (
            "gpu-kernels/src/rank_major/receive.rs",
            include_str!("../gpu-kernels/src/rank_major/receive.rs"),
            "a.landings.wait(",
        ),
        (
            "gpu-kernels/src/rank_major/receive.rs",
            include_str!("../gpu-kernels/src/rank_major/receive.rs"),
            "a.selections.wait(",
        ),
        (
            "gpu-kernels/src/rank_major/receive.rs",
            include_str!("../gpu-kernels/src/rank_major/receive.rs"),
            "a.selections.wait_tokens(",
        ),
    ];
    for (file, source, wait) in SOURCES {
        let mutation = Mutation::of(file, source, wait).expect("the wait is there");
        let fails =
            (0..24).any(|seed| history(Device::Simulated, seed, Mode::Seeded { seed }, Some(mutation)).is_err());
        assert!(fails, "{file}: no seed misses {wait}");
    }
}

/// Where an expert has many words of bits, a warp writes its part of the index.
#[test]
fn large_indices_are_those_of_what_came() {
    let device = Device::from_env();
    for (ranks, tokens, experts) in [(3, 500, 5), (2, 600, 70), (8, 160, 9)] {
        let case = Case {
            ranks,
            experts,
            top_k: 3,
            hidden: 16,
            format: WireFormat::Bf16,
            num_sms: 2,
            tokens: vec![tokens; ranks as usize],
            index: IndexType::I64,
            choice: Choice::Uniform,
            holes: 3,
            data: 5,
            mode: Mode::Fast { workers: 0 },
        };
        check(device, &(case, 8), 2).unwrap_or_else(|why| panic!("{ranks} ranks, {tokens} tokens: {why}"));
    }
}

/// Words that carry half of a number, or 48 bits: across 2^32 operations, and where landing counters wrap.
#[test]
fn numbers_go_on_across_what_words_hold() {
    let device = Device::from_env();
    for (operations, dispatches) in [
        ((1 << 32) - 3, (1 << 31) - 2),
        ((1 << 33) - 4, (1 << 32) - 2),
        // Landing counters begin anew.
        ((1 << 45) - 4, (1 << 44) - 2),
        ((1 << 47) + 5, (1 << 46) + 3),
    ] {
        let case = Case {
            tokens: vec![5, 9, 0],
            ..Case::with_rows(3, 64, WireFormat::Bf16, vec![], 3, Mode::Fast { workers: 0 })
        };
        let worlds: Vec<World> = (0..5).map(|data| Case { data, ..case.clone() }.world()).collect();
        let wires: Vec<Vec<Wire>> = worlds.iter().map(|world| world.wires()).collect();
        device
            .check(3, case.mode, |comm| {
                let tokens = case.tokens[comm.rank() as usize];
                let mut buffer = ElasticBuffer::new(&comm, config(&case, 1))?;
                let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
                let mut checked = Ok(());
                for (number, (world, wires)) in worlds.iter().zip(&wires).enumerate() {
                    if number == 1 {
                        buffer.synchronize()?;
                        comm.barrier()?;
                        // SAFETY: all ranks are here, and none is in an operation.
                        unsafe { buffer.test_count_from(operations, dispatches)? };
                    }
                    tensors.fill(world, comm.rank())?;
                    comm.barrier()?;
                    let handle = tensors.dispatch(&mut buffer, tokens)?;
                    let round = check_round_of(&comm, &mut buffer, &handle, &mut tensors, world, wires)?;
                    checked = checked.and(round.map_err(|why| format!("round {number}: {why}")));
                }
                buffer.close()?;
                Ok(checked)
            })
            .unwrap_or_else(|why| panic!("{operations}, {dispatches}: {why}"));
    }
}
