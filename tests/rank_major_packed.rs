//! Rows that come to fixed places and are laid by expert on the receiver, expert-contiguous and in slabs: what is received, and what combines make of the
//! experts' outputs, is bit for bit what the plain reference says of rows by expert, on every schedule; whole and by halves, in graphs, in row slots that are
//! free and that are not. What is dropped is what each source's own tokens say.
use crate::support;

use std::time::Duration;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Config, DispatchInput, Dispatched, ElasticBuffer, Error, ExpertOutputs, IndexType, Layout,
    LocalGroup, Mode, Overflow, Packing, Result, WireFormat, bf16,
};
use proptest::prelude::*;
use support::brought::{Brought, Lie};
use support::by_expert::{Padding, check_received, check_round, check_round_of, combined, expert_outputs};
use support::combine_options::{self, Agreed, Extra, Own};
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
fn ways() -> impl Strategy<Value = Packed> {
    let multiple = alignments();
    prop_oneof![multiple.prop_map(Packed::Contiguous), Just(Packed::Whole), (1..=6u32).prop_map(Packed::Dropping)]
}

/// A case keeps what it packs: a source has no room for more than it may send.
fn fitting((case, packed, zeroed): (Case, Packed, bool)) -> (Case, Packed, bool) {
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

/// Sums of packed rows with gate weights, or with a bias.
fn summed_with(device: Device, case: &Case, packed: Packed, gated: bool) -> Checked {
    let world = packed.kept(&case.world()).0;
    let wires = world.wires();
    let (agreed, own) = (Agreed { gated, ..Agreed::default() }, Own { biases: usize::from(!gated), ..Own::default() });
    device.check(case.ranks, case.mode, |comm| {
        let (rank, asked) = (comm.rank(), case.world());
        let tokens = case.tokens[rank as usize];
        let mut buffer = ElasticBuffer::new(&comm, packed.config(case).with_combine_options())?;
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        let extra = Extra::new((tokens * case.hidden) as usize, case.data);
        let bias = comm.tensor(&extra.biases[0])?;
        let layout = Layout::ExpertContiguous { alignment: 1 };
        let want = combine_options::combined(&world, rank, &wires[rank as usize], layout, agreed, own, &extra);
        let want: Vec<bf16> = want.into_iter().map(round).collect();
        let mut checked = Ok(());
        for _ in 0..2 {
            tensors.fill(&asked, rank)?;
            comm.barrier()?;
            let handle = tensors.dispatch(&mut buffer, tokens)?;
            let received = buffer.received(&handle)?;
            buffer.write_expert_outputs(&handle, &expert_outputs(&world, rank, &received))?;
            let input = CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y);
            buffer.combine(&handle, if gated { input.gate_weighted() } else { input.with_bias(&bias) })?;
            let y = tensors.sums(tokens, case.hidden)?;
            checked = checked.and(same("combined rows", &y, &want, case.hidden as usize));
        }
        buffer.close()?;
        Ok(checked)
    })
}

/// Whoever hands over the rows there are hands over enough, though more came than an expert has room for.
#[test]
fn rows_of_which_selections_were_dropped_are_enough() {
    let device = Device::from_env();
    let case = Case {
        ranks: 3,
        experts: 1,
        top_k: 1,
        hidden: 8,
        format: WireFormat::Bf16,
        num_sms: 1,
        tokens: vec![3, 16, 0],
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 0,
        data: 1,
        mode: Mode::Fast { workers: 0 },
    };
    for gated in [false, true] {
        summed_with(device, &case, Packed::Dropping(2), gated).unwrap();
    }
}

/// Gate weights, and options beside them that are added behind the sum of ranks.
#[test]
fn gate_weighted_and_biased_sums_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=4, experts: 1..=24, top_k: 12, hidden: 320, tokens: 16 };
    let cases = (bounds.cases(device), ways(), any::<bool>()).prop_map(fitting);
    let test = "gate_weighted_and_biased_sums_are_bitwise_the_reference";
    replay::law(module_path!(), test, 6, cases, |(case, packed, gated)| summed_with(device, &case, packed, gated));
}

/// Ranks of which one weighs its outputs and the other does not find that.
#[test]
fn ranks_that_differ_in_gate_weights_are_out_of_step() {
    let device = Device::from_env();
    let case = Case::with_rows(2, 64, WireFormat::Bf16, vec![3, 3], 4, Mode::Fast { workers: 0 });
    let results = device.run_all(2, case.mode, |comm| {
        let mut buffer = ElasticBuffer::new(&comm, Packed::Whole.config(&case).with_combine_options())?;
        let mut tensors = Tensors::empty(&comm, 3, 64, case.top_k, case.index)?;
        tensors.fill(&case.world(), comm.rank())?;
        let handle = tensors.dispatch(&mut buffer, 3)?;
        let input = CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y);
        buffer.combine(&handle, if comm.rank() == 0 { input.gate_weighted() } else { input })?;
        let found = buffer.synchronize();
        drop(buffer);
        Ok(found)
    });
    for found in results {
        let found = found.unwrap();
        assert!(matches!(found, Err(Error::OutOfStep { .. })), "{found:?}");
    }
}

/// A dispatch whose ranks find a bad selection brings nothing that is packed, and counts nothing.
#[test]
fn behind_a_dispatch_that_failed_nothing_is_packed() {
    let device = Device::from_env();
    let case = Case::with_rows(2, 64, WireFormat::Bf16, vec![3, 3], 4, Mode::Fast { workers: 0 });
    let (good, padding) = (case.world(), Packed::Whole.padding(&case));
    let mut bad = case.world();
    bad.inputs[1].topk_idx[0] = 1000;
    let results = device.run_all(2, case.mode, |comm| {
        let (rank, wires) = (comm.rank(), good.wires());
        let (mut buffer, copier) = (ElasticBuffer::new(&comm, Packed::Whole.config(&case))?, Quantizer::new(&comm)?);
        let mut tensors = Tensors::empty(&comm, 3, 64, case.top_k, case.index)?;
        tensors.fill(&good, rank)?;
        let before = check_round(&comm, &mut buffer, &mut tensors, &good, &wires, padding)?;
        tensors.fill(&bad, rank)?;
        let handle = tensors.dispatch(&mut buffer, 3)?;
        let view = buffer.recv_view(&handle)?;
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
        let (found, counts) = (buffer.synchronize(), comm.empty::<u32>(4)?);
        // SAFETY: words of the buffer's own, of which there are more, that nobody writes any more.
        unsafe { copier.copy_raw(view.counts, counts.address(), 16)? };
        let counts = counts.to_vec()?;
        buffer.reset()?;
        tensors.fill(&good, rank)?;
        let behind = check_round(&comm, &mut buffer, &mut tensors, &good, &wires, padding)?;
        buffer.close()?;
        Ok((before, found, counts[0], behind))
    });
    for result in results {
        let (before, found, rows, behind) = result.unwrap();
        assert_eq!((before, rows, behind), (Ok(()), 0, Ok(())));
        assert!(matches!(found, Err(Error::IndexOutOfRange { .. })), "{found:?}");
    }
}

/// What does not go together is refused by name, with the rule.
#[test]
fn what_cannot_be_packed_is_refused() {
    let said = |config: Config| epoxide::bytes_needed(&config, 2, 4).map(|_| ()).unwrap_err().to_string();
    let new = || Config::new(8, 2, 64, 16);
    let fixed = || new().with_layout(Layout::RankMajor { alignment: 1 });
    let slab = |capacity_per_source| Packing::Slab { capacity_per_source };
    epoxide::bytes_needed(&fixed().with_packing(Packing::ExpertContiguous), 2, 4).unwrap();
    epoxide::bytes_needed(&fixed().with_packing(slab(16)), 2, 4).unwrap();
    epoxide::bytes_needed(&fixed().with_packing(slab(3)).with_overflow(Overflow::Drop), 2, 4).unwrap();
    for (config, rule) in [
        (
            new().with_packing(slab(16)),
            "packing = Slab { capacity_per_source: 16 }: rows that came to fixed places are packed",
        ),
        (
            new().with_layout(Layout::Slab { capacity: 4 }).with_packing(Packing::ExpertContiguous),
            "packing = ExpertContiguous: rows that came to fixed places are packed",
        ),
        (
            fixed().with_packing(slab(15)),
            "capacity_per_source = 15: max_tokens_per_rank = 16, or selections are dropped",
        ),
        (
            fixed().with_packing(slab(0)).with_overflow(Overflow::Drop),
            "capacity_per_source = 0: of a source rank's rows",
        ),
        (fixed().with_packing(slab(17)), "capacity_per_source = 17: of a source rank's rows"),
        (fixed().with_packing(slab(16)).with_returned_weights(), "not where weights travel back"),
        (
            fixed().with_packing(Packing::ExpertContiguous).with_overflow(Overflow::Drop),
            "overflow = Drop: selections are dropped",
        ),
        (fixed().with_overflow(Overflow::Drop), "overflow = Drop: selections are dropped"),
    ] {
        let said = said(config);
        assert!(said.contains(rule), "{said}");
    }
    let refused = LocalGroup::simulated(1, Mode::Fast { workers: 0 }).unwrap().run(|comm| {
        let mut buffer = ElasticBuffer::new(&comm, fixed().with_packing(slab(16)).with_combine_options())?;
        let (x, idx) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[0i64, 1])?);
        let handle = buffer.dispatch(&DispatchInput::new(1, &x, &idx, &comm.tensor(&[1.0f32; 2])?))?;
        let mut y = comm.empty::<bf16>(64)?;
        let mut refused = Vec::new();
        // Of so many rows nobody knows yet whether they are enough.
        let few = comm.tensor(&[bf16::ONE; 64])?;
        refused.push(buffer.combine(&handle, CombineInput::new(&few, &mut y)).unwrap_err().to_string());
        let both = CombineInput::new(ExpertOutputs::InPlace, &mut y).gate_weighted().with_bias(&x);
        refused.push(buffer.combine(&handle, both).unwrap_err().to_string());
        refused.push(buffer.lend_expert_outputs().unwrap_err().to_string());
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
        buffer.close()?;
        Ok(refused)
    });
    let refused = refused.unwrap().remove(0);
    for (said, rule) in refused.iter().zip([
        "expert outputs = 1 rows: one row for each of the 128 that there is room for",
        "bias = 1: not beside gate weights, where rows of fixed places are packed",
        "RankMajor",
    ]) {
        assert!(said.contains(rule), "{said}");
    }
}

/// The memory is that of rows by expert, beside that of rows in fixed places.
#[test]
fn packed_rows_are_in_what_a_buffer_needs() {
    let fixed = Config::new(256, 8, 7168, 128).with_layout(Layout::RankMajor { alignment: 128 });
    let needed = |config: &Config| epoxide::bytes_needed(config, 2, 16).unwrap();
    let packed = fixed.clone().with_packing(Packing::ExpertContiguous);
    let more = needed(&packed).private - needed(&fixed).private;
    let rows = 2 * 128 * 8 + 128 * 127;
    // The rows, their outputs, and 16 bytes for each beside them.
    assert_eq!(more / rows, 2 * 14336 + 16);
    assert_eq!(needed(&packed).window, needed(&fixed).window);
    assert!(needed(&packed).regions.iter().any(|region| region.name == "packed expert outputs"));
}
