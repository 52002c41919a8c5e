//! Rows that come to fixed places and are laid by expert on the receiver, expert-contiguous and in slabs: what is received, and what combines make of the
//! experts' outputs, is bit for bit what the plain reference says of rows by expert, on every schedule; whole and by halves, in graphs, in row slots that are
//! free and that are not. What is dropped is what each source's own tokens say.
use crate::support;

use std::time::Duration;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Config, DispatchInput, Dispatched, ElasticBuffer, ExpertOutputs, IndexType, Layout, Mode, Overflow,
    Packing, Result, WireFormat, bf16,
};
use proptest::prelude::*;
use support::brought::{Brought, Lie};
use support::by_expert::{Padding, check_received, check_round_of, combined, expert_outputs};
use support::exchange::{Indices, Tensors};
use support::reference::{World, owned, round, same};
use support::routing::{Bounds, Case, Choice, Random, alignments, rows};
use support::{Checked, Device, replay};

/// How rows are packed.
#[derive(Clone, Copy, Debug)]
pub enum Packed {
    /// To multiples.
    Contiguous(u32),
    /// In slabs with room for all that can come.
    Whole,
    /// In slabs with room for so many of a source.
    Dropping(u32),
}

impl Packed {
    pub fn config(self, case: &Case) -> Config {
        let alignment = if let Self::Contiguous(alignment) = self { alignment } else { 4 };
        let config = case.config().with_layout(Layout::RankMajor { alignment });
        let slab = |capacity_per_source| Packing::Slab { capacity_per_source };
        match self {
            Self::Contiguous(_) => config.with_packing(Packing::ExpertContiguous),
            Self::Whole => config.with_packing(slab(case.max_tokens())),
            Self::Dropping(capacity) => config.with_packing(slab(capacity)).with_overflow(Overflow::Drop),
        }
    }

    pub fn padding(self, case: &Case) -> Padding {
        match self {
            Self::Contiguous(alignment) => Padding::Multiple(alignment),
            Self::Whole => Padding::Slab(case.ranks * case.max_tokens()),
            Self::Dropping(capacity) => Padding::Slab(case.ranks * capacity),
        }
    }

    /// The world in which nothing was selected that is dropped, and how many selections of each expert that are.
    pub fn kept(self, world: &World) -> (World, Vec<u32>) {
        let (mut kept, mut dropped) = (world.clone(), vec![0; world.experts as usize]);
        let Self::Dropping(capacity) = self else { return (kept, dropped) };
        for input in &mut kept.inputs {
            let mut selections = vec![0; world.experts as usize];
            for selection in &mut input.topk_idx {
                let Ok(expert) = usize::try_from(*selection) else { continue };
                selections[expert] += 1;
                if selections[expert] > capacity {
                    dropped[expert] += 1;
                    *selection = -1;
                }
            }
        }
        (kept, dropped)
    }
}

/// That a dispatch says how many selections of this rank's experts it dropped.
fn check_dropped(
    buffer: &mut ElasticBuffer,
    handle: &Dispatched,
    rank: u32,
    world: &World,
    of: &[u32],
) -> Result<Checked> {
    let counts = buffer.recv_counts(handle)?;
    let mine = owned(world.experts, world.ranks)[rank as usize].clone();
    let want: u32 = mine.map(|expert| of[expert as usize]).sum();
    Ok(same("dropped selections", &[counts.dropped, counts.dropped_in_all], &[want, want], 1))
}

/// Runs a case on a group of its own, `rounds` times with other data: all but the first find the slot free. Then new rows by the last routing.
fn check(device: Device, case: &Case, packed: Packed, zeroed: bool, rounds: u64) -> Checked {
    let mut worlds: Vec<_> =
        (0..rounds).map(|round| Case { data: case.data.wrapping_add(round), ..case.clone() }.world()).collect();
    let mut again = worlds[worlds.len() - 1].clone();
    let mut random = Random::new(case.data);
    again.inputs.iter_mut().for_each(|input| input.x = rows(&mut random, input.tokens, again.hidden));
    worlds.push(again);
    let kept: Vec<_> = worlds.iter().map(|world| packed.kept(world)).collect();
    let of_worlds: Vec<_> = worlds.iter().map(World::wires).collect();
    device.check(case.ranks, case.mode, |comm| {
        let (rank, config) = (comm.rank(), packed.config(case));
        let mut buffer = ElasticBuffer::new(&comm, if zeroed { config.with_zero_padding() } else { config })?;
        let tokens = case.tokens[rank as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        let (mut checked, mut last) = (Ok(()), None);
        for (number, world) in worlds.iter().enumerate() {
            tensors.fill(world, rank)?;
            comm.barrier()?;
            let handle = match &last {
                Some(last) if number + 1 == worlds.len() => buffer.dispatch_again(last, &tensors.x)?,
                _ => tensors.dispatch(&mut buffer, tokens)?,
            };
            let ((kept, dropped), wires, padding) = (&kept[number], &of_worlds[number], packed.padding(case));
            let counted = check_dropped(&mut buffer, &handle, rank, world, dropped)?;
            let right = check_round_of(&comm, &mut buffer, &handle, &mut tensors.y, kept, wires, padding)?;
            checked = checked.and(counted).and(right.map_err(|why| format!("round {number}: {why}")));
            last = Some(handle);
        }
        buffer.close()?;
        Ok(checked)
    })
}

/// Ways to pack the rows of a case.
pub fn ways() -> impl Strategy<Value = Packed> {
    let multiple = alignments();
    prop_oneof![multiple.prop_map(Packed::Contiguous), Just(Packed::Whole), (1..=6u32).prop_map(Packed::Dropping)]
}

/// A case keeps what it packs: a source has no room for more than it may send.
pub fn fitting((case, packed, zeroed): (Case, Packed, bool)) -> (Case, Packed, bool) {
    let packed = match packed {
        Packed::Dropping(capacity) => Packed::Dropping(capacity.min(case.max_tokens())),
        other => other,
    };
    (case, packed, zeroed)
}

#[test]
fn random_routings_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=8, experts: 1..=64, top_k: 32, hidden: 320, tokens: 24 };
    let cases = (bounds.cases(device), ways(), any::<bool>()).prop_map(fitting);
    replay::law(module_path!(), "random_routings_are_bitwise_the_reference", 12, cases, |(case, packed, zeroed)| {
        check(device, &case, packed, zeroed, 2)
    });
}

#[test]
fn many_experts_and_ranks_are_bitwise_the_reference() {
    let device = Device::from_env();
    let experts = Bounds { ranks: 1..=8, experts: 1..=2048, top_k: 16, hidden: 64, tokens: 40 };
    let ranks = Bounds { ranks: 9..=40, experts: 1..=200, top_k: 16, hidden: 64, tokens: 8 };
    let ranks = if device == Device::Cuda { Bounds { ranks: 7..=8, ..ranks } } else { ranks };
    for bounds in [experts, ranks] {
        let cases = (bounds.cases(device), ways(), Just(false)).prop_map(|(case, packed, zeroed)| {
            let packed =
                if let Packed::Contiguous(alignment) = packed { Packed::Contiguous(alignment.min(8)) } else { packed };
            fitting((Case { num_sms: 1, ..case }, packed, zeroed))
        });
        let test = "many_experts_and_ranks_are_bitwise_the_reference";
        replay::law(module_path!(), test, 2, cases, |(case, packed, zeroed)| check(device, &case, packed, zeroed, 1));
    }
}

/// One expert, all tokens; every token the same experts; none at all; top-1; more ranks than experts; all formats.
#[test]
fn extremes_are_bitwise_the_reference() {
    let device = Device::from_env();
    let formats = [WireFormat::Bf16, WireFormat::Fp8, WireFormat::Fp8Ue8m0, WireFormat::Mxfp8];
    for (number, case) in Case::extremes().into_iter().enumerate() {
        // In turn: on a GPU a group takes longer to make than to check.
        let ways = [Packed::Contiguous(16), Packed::Whole, Packed::Dropping(3.min(case.max_tokens()))];
        for (format, packed) in formats.into_iter().zip(ways.into_iter().cycle().skip(number % 3)) {
            let case = Case { format, ..case.clone() };
            check(device, &case, packed, true, 1).unwrap_or_else(|error| panic!("{case:?}, {packed:?}: {error}"));
        }
    }
}

/// Few long rows, which many warps lay in parts, on many blocks and on one; and rows that were quantised before.
#[test]
fn long_and_brought_rows_are_bitwise_the_reference() {
    let device = Device::from_env();
    for (hidden, tokens, num_sms) in [(7168, 1, 6), (4112, 3, 1), (2064, 20, 2)] {
        for (format, brought) in [(WireFormat::Bf16, false), (WireFormat::Fp8, false), (WireFormat::Fp8, true)] {
            let mode = Mode::Fast { workers: 0 };
            let case = Case { num_sms, ..Case::with_rows(2, hidden, format, vec![tokens, tokens - 1], 5, mode) };
            let world = case.world();
            let wires = world.wires();
            let checked = device.check(2, mode, |comm| {
                let (rank, packed) = (comm.rank(), Packed::Contiguous(2));
                let mut buffer = ElasticBuffer::new(&comm, packed.config(&case))?;
                let tokens = case.tokens[rank as usize];
                let mut tensors = Tensors::empty(&comm, tokens, hidden, case.top_k, case.index)?;
                tensors.fill(&world, rank)?;
                let own = Brought::new(&comm, &wires[rank as usize], hidden.div_ceil(128), Lie::default());
                let rows = match brought {
                    true => own.as_ref().map_err(Clone::clone)?.rows()?,
                    false => (&tensors.x).into(),
                };
                let handle = tensors.dispatch_rows(&mut buffer, tokens, rows)?;
                let (y, padding) = (&mut tensors.y, packed.padding(&case));
                let checked = check_round_of(&comm, &mut buffer, &handle, y, &world, &wires, padding)?;
                buffer.close()?;
                Ok(checked)
            });
            checked.unwrap_or_else(|error| panic!("{case:?}: {error}"));
        }
    }
}

/// What is done in a row slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A dispatch that is combined: behind it the slot is free.
    Round,
    /// The same by halves.
    Halves,
    /// One that is given up by the next.
    Dispatch,
    /// One whose rows stay behind its combine, and are read there; then they are released.
    Kept,
    /// New rows by the last routing, combined.
    Again,
}

/// Histories in which slots are free and are not, in one or two row slots in turn, with random delays.
fn history(device: Device, seed: u64, mode: Mode) -> Checked {
    let mut random = Random::new(seed);
    let (ranks, slots) = (2 + random.below(2), 1 + random.below(2));
    let packed = [Packed::Contiguous(4), Packed::Whole, Packed::Dropping(2)][random.below(3) as usize];
    let base = Case {
        ranks,
        experts: 7,
        top_k: 3,
        hidden: 64,
        format: [WireFormat::Bf16, WireFormat::Fp8][random.below(2) as usize],
        num_sms: 1 + random.below(3),
        tokens: vec![20; ranks as usize],
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 0,
        data: 0,
        mode,
    };
    let mut steps: Vec<(Step, u32, World)> = Vec::new();
    for number in 0..14u32 {
        let slot = number % slots;
        let before = steps.iter().rfind(|(_, of, _)| *of == slot);
        let step = match random.below(9) {
            0..3 => Step::Round,
            3 | 4 => Step::Halves,
            5 if slots == 1 => Step::Dispatch,
            6 => Step::Kept,
            7 | 8 if before.is_some() => Step::Again,
            _ => Step::Round,
        };
        let tokens = (0..ranks).map(|_| random.below(20)).collect();
        let choice = [Choice::Uniform, Choice::Skewed, Choice::Same][random.below(3) as usize];
        let mut world = Case { tokens, choice, holes: random.below(4), data: random.draw(), ..base.clone() }.world();
        if let (Step::Again, Some((_, _, old))) = (step, before) {
            world = old.clone();
            world.inputs.iter_mut().for_each(|input| input.x = rows(&mut random, input.tokens, world.hidden));
        }
        steps.push((step, slot, world));
    }
    let kept: Vec<_> = steps.iter().map(|(_, _, world)| packed.kept(world).0).collect();
    let of_steps: Vec<_> = steps.iter().map(|(_, _, world)| world.wires()).collect();
    device.check(ranks, mode, |comm| {
        let rank = comm.rank();
        let mut random = Random::new(seed ^ (u64::from(rank) + 1) << 40);
        let config = packed.config(&base).with_row_slots(slots).with_halves();
        let mut buffer = ElasticBuffer::new(&comm, config.with_timeout(Duration::from_secs(20)))?;
        let mut tensors = Vec::new();
        for (_, _, world) in &steps {
            let mut mine = Tensors::empty(&comm, world.inputs[rank as usize].tokens, 64, 3, IndexType::I64)?;
            mine.fill(world, rank)?;
            tensors.push(mine);
        }
        comm.barrier()?;
        let (mut checked, mut last) = (Ok(()), vec![None; slots as usize]);
        for (number, ((step, slot, _), tensors)) in steps.iter().zip(&mut tensors).enumerate() {
            if random.below(2) == 0 {
                comm.delay(Duration::from_nanos(1_000 + u64::from(random.below(100_000))))?;
            }
            let (world, wires, padding) = (&kept[number], &of_steps[number], packed.padding(&base));
            let tokens = world.inputs[rank as usize].tokens;
            let Indices::I64(idx) = &tensors.topk_idx else { unreachable!("selections are 64 bits wide") };
            let input = DispatchInput::new(tokens, &tensors.x, idx, &tensors.topk_weights).in_row_slot(*slot);
            let handle = match (step, &last[*slot as usize]) {
                (Step::Again, Some(old)) => buffer.dispatch_again(old, &tensors.x)?,
                (Step::Kept, _) => buffer.dispatch(&input.keeping_rows())?,
                (Step::Halves, _) => {
                    let ticket = buffer.dispatch_send(&input)?;
                    buffer.dispatch_receive(ticket)?
                }
                _ => buffer.dispatch(&input)?,
            };
            let here = match step {
                Step::Dispatch if random.below(2) == 0 => Ok(()),
                Step::Dispatch => {
                    let received = buffer.received(&handle)?;
                    check_received(world, wires, rank, padding, false, &received)
                }
                Step::Halves => {
                    let received = buffer.received(&handle)?;
                    buffer.write_expert_outputs(&handle, &expert_outputs(world, rank, &received))?;
                    let sent = buffer.combine_send(&handle, ExpertOutputs::InPlace)?;
                    buffer.combine_receive(sent, &mut tensors.y)?;
                    let (y, want) = (tensors.sums(tokens, 64)?, combined(world, rank, &wires[rank as usize]));
                    let came = check_received(world, wires, rank, padding, false, &received);
                    came.and(same("combined rows", &y, &want, 64))
                }
                _ => check_round_of(&comm, &mut buffer, &handle, &mut tensors.y, world, wires, padding)?,
            };
            checked = checked.and(here.map_err(|why| format!("step {number}, {step:?}: {why}")));
            if *step == Step::Kept {
                let received = buffer.received(&handle)?;
                let stayed = check_received(world, wires, rank, padding, false, &received);
                checked = checked.and(stayed.map_err(|why| format!("step {number}, kept: {why}")));
                buffer.release(&handle)?;
            }
            last[*slot as usize] = Some(handle);
        }
        buffer.close()?;
        Ok(checked)
    })
}

#[test]
fn histories_are_bitwise_the_reference() {
    let device = Device::from_env();
    for seed in replay::seeds(8) {
        for mode in device.schedules([seed]) {
            if let Err(why) = history(device, seed, mode) {
                let line = replay::line(module_path!(), "histories_are_bitwise_the_reference", seed);
                panic!("seed {seed}: {why}\nreplay: {line}");
            }
        }
    }
}

/// One graph, replayed with other rows and routings in place; experts give every row back as it is.
#[test]
fn a_graph_is_replayed_with_changing_routings() {
    let device = Device::from_env();
    let mode = Mode::Fast { workers: 0 };
    for packed in [Packed::Contiguous(4), Packed::Whole, Packed::Dropping(2)] {
        let case = Case { num_sms: 2, ..Case::with_rows(2, 64, WireFormat::Bf16, vec![9, 6], 4, mode) };
        let checked = device.check(2, mode, |comm| {
            let (rank, tokens) = (comm.rank(), case.tokens[comm.rank() as usize]);
            let mut buffer = ElasticBuffer::new(&comm, packed.config(&case))?;
            let copier = Quantizer::new(&comm)?;
            let mut tensors = Tensors::empty(&comm, tokens, 64, case.top_k, case.index)?;
            tensors.fill(&case.world(), rank)?;
            let graph = comm.capture(|_| {
                let handle = tensors.dispatch(&mut buffer, tokens)?;
                let view = buffer.recv_view(&handle)?;
                // SAFETY: all rows that there is room for, to as many outputs, behind the dispatch and before the combine.
                unsafe { copier.copy_raw(view.x, view.expert_outputs, view.max_rows * 64 * 2)? };
                buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))
            })?;
            comm.barrier()?;
            let mut checked = Ok(());
            for round in 0..6 {
                let world = Case { data: round, ..case.clone() }.world();
                tensors.fill(&world, rank)?;
                comm.barrier()?;
                // SAFETY: the tensors live until the stream has passed the graph.
                unsafe { graph.launch(&comm)? };
                let y = tensors.sums(tokens, 64)?;
                let right = same("combined rows", &y, &given_back(&packed.kept(&world).0, rank), 64);
                checked = checked.and(right.map_err(|why| format!("replay {round}: {why}")));
            }
            drop(graph);
            buffer.close()?;
            Ok(checked)
        });
        checked.unwrap_or_else(|why| panic!("{packed:?}: {why}"));
    }
}

/// The sums of a rank's tokens if each expert gives back what it got.
fn given_back(world: &World, rank: u32) -> Vec<bf16> {
    let owners = world.owners();
    let mut y = Vec::new();
    for token in 0..world.inputs[rank as usize].tokens {
        let mut of_ranks = vec![0; world.ranks as usize];
        let mut order = Vec::new();
        for owner in world.selections(rank, token).iter().filter_map(|&e| usize::try_from(e).ok()).map(|e| owners[e]) {
            if of_ranks[owner as usize] == 0 {
                order.push(owner as usize);
            }
            of_ranks[owner as usize] += 1;
        }
        let sum_of = |times: u32, x: bf16| (0..times).fold(0.0, |sum, _| sum + f32::from(x));
        y.extend(
            world.row(rank, token).iter().map(|x| {
                round(order.iter().fold(0.0, |sum, owner| sum + f32::from(round(sum_of(of_ranks[*owner], *x)))))
            }),
        );
    }
    y
}
