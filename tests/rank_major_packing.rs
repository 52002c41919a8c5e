//! Dispatches that pack the rows they bring: bit for bit what is packed behind the halves of one, in the same places; without a wait of theirs some round is
//! wrong; and where some of a rank's blocks stop, the rank has nothing.
use crate::support;

use std::time::Duration;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Comm, Config, DispatchInput, Dispatched, ElasticBuffer, Error, ExpertOutputs, Layout, Mode, Overflow,
    Packing, Result, WireFormat, bf16,
};
use epoxide_sim::Mutation;
use support::brought::{Brought, Lie};
use support::by_expert::{Padding, check_round};
use support::exchange::Tensors;
use support::reference::{World, same};
use support::routing::{Case, Random};
use support::{Checked, Device};

/// Ways to pack the rows of sources with so many tokens at most.
fn packings(tokens: u32) -> [Way; 3] {
    let slab = |capacity_per_source| Packing::Slab { capacity_per_source };
    [(Packing::ExpertContiguous, Overflow::Error), (slab(tokens), Overflow::Error), (slab(2), Overflow::Drop)]
}

/// A packing, and what becomes of what does not fit.
type Way = (Packing, Overflow);

/// All bytes of the packed rows in a slot, with what is beside them, and their counts.
fn packed_bytes(comm: &Comm, buffer: &mut ElasticBuffer, handle: &Dispatched, row_bytes: u64) -> Result<Vec<Vec<u8>>> {
    let (counts, view, copier) = (buffer.recv_counts(handle)?, buffer.recv_view(handle)?, Quantizer::new(comm)?);
    let rows = u64::from(counts.rows);
    let words = (1 + counts.by_source.len() + counts.by_expert.len() + counts.offsets.len()) as u64;
    let regions = [
        (view.x, rows * row_bytes),
        (view.scales, rows * u64::from(view.scale_stride) * 4),
        (view.topk_idx, rows * 4),
        (view.topk_weights, rows * 4),
        (view.sources, rows * 8),
        (view.counts, words * 4),
    ];
    let mut all = Vec::new();
    for (from, bytes) in regions {
        let whole = bytes.next_multiple_of(16);
        let to = comm.empty::<u8>(whole)?;
        if bytes > 0 {
            // SAFETY: the regions begin at multiples of 16, so up to the next one the memory is the buffer's; a tensor of that size. The rows are the slot's until
            // its next dispatch.
            unsafe { copier.copy_raw(from, to.address(), whole)? };
        }
        let mut bytes_of = to.to_vec()?;
        bytes_of.truncate(bytes as usize);
        all.push(bytes_of);
    }
    Ok(all)
}

/// A whole dispatch and one by halves, of the same tokens in slots of their own.
fn both_ways(device: Device, case: &Case, (packing, overflow): Way, brought: bool) -> Checked {
    let world = case.world();
    let wires = world.wires();
    device.check(case.ranks, case.mode, |comm| {
        let rank = comm.rank() as usize;
        let tokens = case.tokens[rank];
        let config = case.config().with_layout(Layout::RankMajor { alignment: 4 }).with_packing(packing);
        let config = config.with_overflow(overflow).with_zero_padding().with_halves().with_row_slots(2);
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        tensors.fill(&world, comm.rank())?;
        let own = Brought::new(&comm, &wires[rank], case.hidden.div_ceil(128), Lie::default());
        comm.barrier()?;
        let rows = || match brought {
            true => own.as_ref().map_err(Clone::clone)?.rows(),
            false => Ok((&tensors.x).into()),
        };
        let whole = tensors.dispatch_rows(&mut buffer, tokens, rows()?)?;
        let sent = support::halves::send(&mut buffer, &tensors, tokens, rows()?)?;
        let halves = buffer.dispatch_receive(sent)?;
        let row_bytes = u64::from(case.hidden) * if case.format == WireFormat::Bf16 { 2 } else { 1 };
        let [whole, halves] = [whole, halves].map(|handle| packed_bytes(&comm, &mut buffer, &handle, row_bytes));
        let (whole, halves) = (whole?, halves?);
        let mut checked = Ok(());
        for (name, (whole, halves)) in
            ["rows", "scales", "experts", "weights", "sources", "counts"].iter().zip(whole.iter().zip(&halves))
        {
            checked = checked.and(same(name, whole, halves, 16));
        }
        buffer.close()?;
        Ok(checked)
    })
}

#[test]
fn a_whole_dispatch_and_its_halves_pack_the_same_bits() {
    let device = Device::from_env();
    let forms = [
        (WireFormat::Bf16, false),
        (WireFormat::Fp8, false),
        (WireFormat::Fp8, true),
        (WireFormat::Fp8Ue8m0, false),
        (WireFormat::Mxfp8, false),
    ];
    for mode in device.schedules([7]) {
        for (number, (format, brought)) in forms.into_iter().enumerate() {
            // The last in pieces: by halves, whose blocks all send, in others.
            for (num_sms, tokens, hidden) in [(1, 9, 1024), (3, 2, 1024), (2, 40, 1024), (9, 9, 2064)] {
                let tokens = vec![tokens, tokens - 1, 0];
                let case = Case { num_sms, ..Case::with_rows(3, hidden, format, tokens, 5 + number as u64, mode) };
                for packing in packings(case.max_tokens()) {
                    both_ways(device, &case, packing, brought)
                        .unwrap_or_else(|why| panic!("{case:?}, {packing:?}, brought: {brought}: {why}"));
                }
            }
        }
    }
}

/// Whole rounds with random delays between ranks, each checked.
fn rounds(seed: u64, mutation: Option<Mutation>) -> Checked {
    let mode = Mode::Seeded { seed };
    let format = if seed.is_multiple_of(2) { WireFormat::Bf16 } else { WireFormat::Fp8 };
    let case = Case { num_sms: 3, ..Case::with_rows(2, 256, format, vec![7, 5], seed, mode) };
    let worlds: Vec<World> = (0..3).map(|round| Case { data: seed + round, ..case.clone() }.world()).collect();
    let of_worlds: Vec<_> = worlds.iter().map(World::wires).collect();
    Device::Simulated.check_without(2, mode, mutation, |comm| {
        let rank = comm.rank();
        let mut random = Random::new(seed ^ (u64::from(rank) + 1) << 40);
        let config = case.config().with_layout(Layout::RankMajor { alignment: 1 });
        let config = config.with_packing(Packing::ExpertContiguous).with_timeout(Duration::from_secs(20));
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        let mut tensors = Tensors::empty(&comm, case.tokens[rank as usize], 256, case.top_k, case.index)?;
        let mut checked = Ok(());
        for (world, wires) in worlds.iter().zip(&of_worlds) {
            tensors.fill(world, rank)?;
            comm.barrier()?;
            comm.delay(Duration::from_nanos(u64::from(random.below(20_000))))?;
            let right = check_round(&comm, &mut buffer, &mut tensors, world, wires, Padding::Multiple(1))?;
            checked = checked.and(right);
        }
        buffer.close()?;
        Ok(checked)
    })
}

/// What the tests of packed rows would miss if they could not fail: without any one of these waits some round is wrong.
#[test]
fn without_a_wait_some_round_is_packed_wrong() {
    const RECEIVING: (&str, &str) =
        ("gpu-kernels/src/rank_major/receive.rs", include_str!("../gpu-kernels/src/rank_major/receive.rs"));
    const PACKING: (&str, &str) =
        ("gpu-kernels/src/rank_major/packing.rs", include_str!("../gpu-kernels/src/rank_major/packing.rs"));
    const WAITS: [((&str, &str), &str); 5] = [
        (RECEIVING, "a.landings.wait("),
        (RECEIVING, "a.selections.wait("),
        (RECEIVING, "a.selections.wait_tokens("),
        (PACKING, "a.op.grid.said("),
        (PACKING, "a.landings.wait("),
    ];
    for seed in 0..4 {
        rounds(seed, None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    for ((file, source), wait) in WAITS {
        let mutation = Mutation::of(file, source, wait).expect("the wait is there");
        assert!((0..24).any(|seed| rounds(seed, Some(mutation)).is_err()), "{file}: no seed misses {wait}");
    }
}

/// A buffer for four tokens of a rank, whose rows its dispatches pack.
fn with_timeout(timeout: Duration) -> Config {
    let config = Config::new(4, 2, 64, 4).with_num_sms(4).with_layout(Layout::RankMajor { alignment: 1 });
    config.with_packing(Packing::ExpertContiguous).with_timeout(timeout)
}

/// Dispatches, and drops the buffer: what the rank is told, and how many packed rows are counted then.
fn packed_rows(comm: &Comm, mut buffer: ElasticBuffer, input: &DispatchInput<'_, i64>) -> Result<(Result<()>, u32)> {
    let copier = Quantizer::new(comm)?;
    let handle = buffer.dispatch(input)?;
    let view = buffer.recv_view(&handle)?;
    let (found, counts) = (buffer.synchronize(), comm.empty::<u32>(4)?);
    // SAFETY: words of the buffer's own, of which there are more, that nobody writes any more.
    unsafe { copier.copy_raw(view.counts, counts.address(), 16)? };
    Ok((found, counts.to_vec()?[0]))
}

/// A dispatch in which rank 1 is `late`, by more or less than rank 0 waits: what rank 0 is told, and the counts and the packed counts that it has then.
fn nearly_too_late(late: Duration, seed: u64) -> (Result<()>, u32) {
    let mut results = Device::Simulated.run_all(2, Mode::Seeded { seed }, |comm| {
        let mut buffer = ElasticBuffer::new(&comm, with_timeout(Duration::from_micros(100)))?;
        let x = comm.tensor(&[bf16::ONE; 4 * 64])?;
        let (idx, weights) = (comm.tensor(&[0i64, 2].repeat(4))?, comm.tensor(&[1.0f32; 8])?);
        let mut y = comm.empty::<bf16>(4 * 64)?;
        let input = DispatchInput::new(4, &x, &idx, &weights);
        // Behind it the slot is free: nobody waits for entry words before it sends.
        let handle = buffer.dispatch(&input)?;
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
        buffer.synchronize()?;
        comm.barrier()?;
        if comm.rank() == 1 {
            comm.delay(late)?;
        }
        packed_rows(&comm, buffer, &input)
    });
    results.swap_remove(0).expect("rank 0 runs to its end")
}

/// A block's time begins when it does, so of a rank that waits for another to the end of its time some blocks may find the rows and others give up. Then nothing
/// is there, though most of it has been laid.
#[test]
fn where_some_blocks_give_up_nothing_is_there() {
    let (mut whole, mut gave_up) = (0, 0);
    for seed in 0..4 {
        for late in (60..110).step_by(2) {
            let (found, rows) = nearly_too_late(Duration::from_micros(late), seed);
            match found {
                Ok(()) => {
                    assert_eq!(rows, 8, "seed {seed}, {late} us");
                    whole += 1;
                }
                Err(Error::PeerTimeout { .. } | Error::PeerAborted { .. }) => {
                    assert_eq!(rows, 0, "seed {seed}, {late} us");
                    gave_up += 1;
                }
                Err(other) => panic!("seed {seed}, {late} us: {other}"),
            }
        }
    }
    assert!(whole > 0 && gave_up > 0, "{whole} whole, {gave_up} not");
}

/// Blocks of one rank that begin far from each other: those that wait for the receiving one to say where rows go give up before it has begun, and then
/// it is an error, never a dispatch that brought nothing.
#[test]
fn a_block_that_waits_in_vain_for_its_own_rank_is_an_error() {
    let (mut whole, mut gave_up) = (0, 0);
    for seed in 0..40 {
        for timeout in [2, 4, 8, 16, 32].map(Duration::from_micros) {
            let mut results = Device::Simulated.run_all(1, Mode::Seeded { seed }, |comm| {
                let buffer = ElasticBuffer::new(&comm, with_timeout(timeout))?;
                let x = comm.tensor(&[bf16::ONE; 4 * 64])?;
                let (idx, weights) = (comm.tensor(&[0i64, 2].repeat(4))?, comm.tensor(&[1.0f32; 8])?);
                packed_rows(&comm, buffer, &DispatchInput::new(4, &x, &idx, &weights))
            });
            match results.swap_remove(0).expect("the rank runs to its end") {
                (Ok(()), rows) => {
                    assert_eq!(rows, 8, "seed {seed}, {timeout:?}");
                    whole += 1;
                }
                // The receiving block's own waits may end too.
                (Err(Error::PeerTimeout { phase, .. }), rows) => {
                    assert_eq!(rows, 0, "seed {seed}, {timeout:?}");
                    gave_up += u32::from(phase.starts_with("placed"));
                }
                (Err(other), _) => panic!("seed {seed}, {timeout:?}: {other}"),
            }
        }
    }
    assert!(whole > 0 && gave_up > 0, "{whole} whole, {gave_up} not");
}
