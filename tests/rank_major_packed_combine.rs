//! Combines of packed rows: one that sums their outputs by itself is bit for bit one by halves, in front of which a kernel does, and they meet each other;
//! without one of its two waits sums are not there; a rank that is somewhere else is found, and one that does not come is waited for.
use crate::rank_major_packed::Packed;
use crate::rank_major_packed_rounds::{Prepared, Rounds};
use crate::support;

use std::time::Duration;

use epoxide::{
    CombineInput, Comm, Config, DeviceTensor, DispatchInput, Dispatched, ElasticBuffer, Error, ExpertOutputs,
    IndexType, Layout, Mode, Overflow, Packing, Result, WireFormat, bf16,
};
use epoxide_sim::Mutation;
use support::by_expert::{check_round, combined, expert_outputs};
use support::exchange::Tensors;
use support::reference::{World, same};
use support::routing::{Case, Choice, Random};
use support::{Checked, Device, replay};

/// A combine of outputs in place, `whole` or by halves.
fn combine(buffer: &mut ElasticBuffer, handle: &Dispatched, y: &mut DeviceTensor<bf16>, whole: bool) -> Result<()> {
    if whole {
        return buffer.combine(handle, CombineInput::new(ExpertOutputs::InPlace, y));
    }
    let sent = buffer.combine_send(handle, ExpertOutputs::InPlace)?;
    Ok(buffer.combine_receive(sent, y)?)
}

/// A round with the experts on the host: what came of it.
fn sums(
    comm: &Comm,
    buffer: &mut ElasticBuffer,
    tensors: &mut Tensors,
    kept: &World,
    whole: bool,
) -> Result<Vec<bf16>> {
    let (rank, hidden) = (comm.rank(), kept.hidden);
    let tokens = kept.inputs[rank as usize].tokens;
    let handle = tensors.dispatch(buffer, tokens)?;
    let received = buffer.received(&handle)?;
    buffer.write_expert_outputs(&handle, &expert_outputs(kept, rank, &received))?;
    combine(buffer, &handle, &mut tensors.y, whole)?;
    tensors.sums(tokens, hidden)
}

/// Few long rows, which many warps sum in parts, and more than there are warps; on one block and on many; by ranks that do not do the same.
#[test]
fn whole_and_by_halves_are_the_same_bits() {
    let device = Device::from_env();
    for (hidden, tokens, num_sms, packed) in [
        (7168, 1, 6, Packed::Contiguous(4)),
        (2064, 20, 2, Packed::Whole),
        (520, 37, 1, Packed::Dropping(3)),
        (4112, 5, 3, Packed::Dropping(1)),
    ] {
        let mode = Mode::Fast { workers: 0 };
        let tokens = vec![tokens, tokens - 1, tokens / 2];
        let case = Case { num_sms, ..Case::with_rows(3, hidden, WireFormat::Bf16, tokens, 5, mode) };
        let (world, kept) = (case.world(), packed.kept(&case.world()).0);
        let wires = kept.wires();
        let checked = device.check(3, mode, |comm| {
            let rank = comm.rank();
            let mut buffer = ElasticBuffer::new(&comm, packed.config(&case).with_halves())?;
            let mut tensors = Tensors::empty(&comm, case.tokens[rank as usize], hidden, case.top_k, case.index)?;
            tensors.fill(&world, rank)?;
            comm.barrier()?;
            let want = combined(&kept, rank, &wires[rank as usize]);
            let mut checked = Ok(());
            // All whole, all by halves, and some of each.
            for whole in [0b111, 0, 0b001, 0b110] {
                let y = sums(&comm, &mut buffer, &mut tensors, &kept, whole >> rank & 1 == 1)?;
                let right = same("combined rows", &y, &want, hidden as usize);
                checked = checked.and(right.map_err(|why| format!("whole: {whole:b}: {why}")));
            }
            buffer.close()?;
            Ok(checked)
        });
        checked.unwrap_or_else(|why| panic!("{case:?}, {packed:?}: {why}"));
    }
}

/// A rank's turn in the sum over ranks is that of its first selection, also where that was dropped and the own rank's is a later one.
#[test]
fn a_rank_has_the_turn_of_a_selection_that_was_dropped() {
    let device = Device::from_env();
    let tiny = bf16::from_f32(2f32.powi(-25));
    let packing = Packing::Slab { capacity_per_source: 1 };
    let checked = device.check(3, Mode::Fast { workers: 0 }, |comm| {
        let config = Config::new(6, 4, 64, 2).with_num_sms(2).with_layout(Layout::RankMajor { alignment: 1 });
        let config = config.with_packing(packing).with_overflow(Overflow::Drop).with_halves();
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        // Rank 0's second token selects its first expert again, those of two others, and its own second one.
        let tokens = if comm.rank() == 0 { 2 } else { 0 };
        let idx: &[i64] = if comm.rank() == 0 { &[0, -1, -1, -1, 0, 2, 4, 1] } else { &[] };
        let (idx, x) = (comm.tensor(idx)?, comm.tensor(&vec![bf16::ONE; tokens * 64])?);
        let (weights, mut y) = (comm.tensor(&vec![1f32; tokens * 4])?, comm.empty::<bf16>(2 * 64)?);
        let mut checked = Ok(());
        for whole in [true, false] {
            let handle = buffer.dispatch(&DispatchInput::new(tokens as u32, &x, &idx, &weights))?;
            let rows = buffer.recv_counts(&handle)?.rows as usize;
            let of_rank = [tiny, bf16::ONE, -bf16::ONE][comm.rank() as usize];
            buffer.write_expert_outputs(&handle, &vec![of_rank; rows * 64])?;
            combine(&mut buffer, &handle, &mut y, whole)?;
            // Last it would not be lost beside the others' one and minus one.
            let want = [vec![tiny; 64], vec![bf16::ZERO; 64]].concat();
            let right = same("combined rows", &y.to_vec()?[..tokens * 64], &want[..tokens * 64], 64);
            checked = checked.and(right.map_err(|why| format!("whole: {whole}: {why}")));
        }
        buffer.close()?;
        Ok(checked)
    });
    checked.unwrap();
}

/// Rounds that follow from a seed.
fn rounds(seed: u64) -> Rounds {
    let case = Case {
        ranks: 3,
        experts: 10,
        top_k: 4,
        hidden: 64,
        format: WireFormat::Bf16,
        num_sms: 3,
        tokens: vec![20; 3],
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 0,
        data: seed,
        mode: Mode::Seeded { seed },
    };
    let packed = [Packed::Contiguous(8), Packed::Whole, Packed::Dropping(3)][seed as usize % 3];
    let mut random = Random::new(seed);
    let worlds = (0..6).map(|_| Case { data: random.draw(), ..case.clone() }.world()).collect();
    Rounds::new(case, packed, worlds)
}

/// A rank's part in them: one right behind the other.
fn of_rank(comm: &Comm, rounds: &Rounds) -> Result<Checked> {
    let config = rounds.packed.config(&rounds.case).with_timeout(Duration::from_secs(20));
    let mut buffer = ElasticBuffer::new(comm, config)?;
    let Prepared { mut tensors, outputs } = rounds.prepare(comm, &buffer)?;
    comm.barrier()?;
    for (round, (mine, outputs)) in tensors.iter_mut().zip(&outputs).enumerate() {
        let handle = mine.dispatch(&mut buffer, rounds.tokens(round, comm.rank()))?;
        buffer.combine(&handle, CombineInput::new(outputs, &mut mine.y))?;
    }
    buffer.synchronize()?;
    let checked = rounds.check(comm.rank(), &tensors)?;
    buffer.close()?;
    Ok(checked)
}

/// The rounds of a seed, without a wait or with all.
fn run(seed: u64, mutation: Option<Mutation>) -> Checked {
    let rounds = rounds(seed);
    Device::Simulated.check_without(rounds.case.ranks, rounds.case.mode, mutation, |comm| of_rank(&comm, &rounds))
}

/// Sums that a peer pulls are there when all blocks of their rank have come, and when it has met that rank: without the one or the other some are of before.
#[test]
fn without_a_wait_some_sums_are_not_there() {
    const SOURCES: [(&str, &str, &str); 2] = [
        (
            "gpu-kernels/src/rank_major/packed.rs",
            include_str!("../gpu-kernels/src/rank_major/packed.rs"),
            "op.grid.is_last_to_come()",
        ),
        (
            "gpu-kernels/src/rank_major/combine.rs",
            include_str!("../gpu-kernels/src/rank_major/combine.rs"),
            "entry.meet(",
        ),
    ];
    for seed in 0..6 {
        run(seed, None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    for (file, source, wait) in SOURCES {
        let mutation = Mutation::of(file, source, wait).expect("the wait is there");
        // Where a rank goes on too early another may wait in vain, in some seeds.
        let mut wrong = (0..24).filter_map(|seed| run(seed, Some(mutation)).err());
        assert!(wrong.any(|why| why.contains("combined rows")), "{file}: no seed sums too early without {wait}");
    }
}

/// Rounds, one in which rank 0 does something else than the others, and, behind a reset, another one.
fn out_of_step(device: Device, num_sms: u32, other: fn(&mut ElasticBuffer, &mut Tensors) -> Result<()>) {
    let mode = Mode::Fast { workers: 0 };
    let case = Case { num_sms, ..Case::with_rows(3, 64, WireFormat::Bf16, vec![9; 3], 4, mode) };
    let (world, packed) = (case.world(), Packed::Whole);
    let (wires, padding) = (world.wires(), packed.padding(&case));
    let checked = device.check(3, mode, |comm| {
        let config = packed.config(&case).with_combine_options().with_timeout(Duration::from_millis(200));
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        let mut tensors = Tensors::empty(&comm, 9, 64, case.top_k, case.index)?;
        tensors.fill(&world, comm.rank())?;
        comm.barrier()?;
        let before = check_round(&comm, &mut buffer, &mut tensors, &world, &wires, padding)?;
        let handle = tensors.dispatch(&mut buffer, 9)?;
        buffer.synchronize()?;
        comm.barrier()?;
        if comm.rank() == 0 {
            other(&mut buffer, &mut tensors)?;
        } else {
            buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
        }
        let said = match buffer.synchronize() {
            Err(Error::OutOfStep { .. } | Error::PeerTimeout { .. } | Error::PeerAborted { .. }) => Ok(()),
            // Who did nothing has not been told yet.
            Ok(()) if comm.rank() == 0 => Ok(()),
            other => Err(format!("{num_sms} SMs: {other:?}")),
        };
        comm.barrier()?;
        buffer.reset()?;
        let behind = check_round(&comm, &mut buffer, &mut tensors, &world, &wires, padding)?;
        buffer.close()?;
        Ok(before.and(said).and(behind))
    });
    checked.unwrap();
}

#[test]
fn a_rank_that_is_somewhere_else_is_found() {
    let device = Device::from_env();
    for num_sms in [1, 3] {
        out_of_step(device, num_sms, |buffer, tensors| tensors.dispatch(buffer, 9).map(|_| ()));
    }
}

#[test]
fn a_rank_that_does_not_come_is_waited_for() {
    let device = Device::from_env();
    for num_sms in [1, 3] {
        out_of_step(device, num_sms, |_, _| Ok(()));
    }
}

/// The same rounds on schedules in which nothing is left out, with every access checked.
#[test]
fn rounds_are_bitwise_the_reference_on_every_schedule() {
    let device = Device::from_env();
    for seed in replay::seeds(2) {
        for mode in device.schedules([seed]) {
            let rounds = rounds(seed);
            let checked = device.check(rounds.case.ranks, mode, |comm| of_rank(&comm, &rounds));
            checked.unwrap_or_else(|why| {
                let line = replay::line(module_path!(), "rounds_are_bitwise_the_reference_on_every_schedule", seed);
                panic!("{why}\nreplay: {line}")
            });
        }
    }
}
