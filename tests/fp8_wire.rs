//! Combine whose rows cross in FP8: how far its sums are from those of rows that cross in BF16, and who is refused. That they are bitwise the
//! reference is shown by `combine_options` and `matrix`.
use crate::assert_error;
use crate::support;

use epoxide::{
    CombineInput, Config, DispatchInput, ElasticBuffer, Error, ExpertOutputs, IndexType, Layout, Mode, Received,
    Result, WireFormat, bf16, bytes_needed,
};
use epoxide_sim::Mutation;
use support::combine_options::{Agreed, Own, check_combine, crossed};
use support::exchange::Tensors;
use support::reference::{Wire, World, owned, round};
use support::routing::{Case, Choice, Random};
use support::{Checked, Device, gpus};

const LAYOUT: Layout = Layout::ExpertContiguous { alignment: 1 };
const LAYOUTS: [Layout; 2] = [LAYOUT, Layout::Compact];
const HIDDEN: u32 = 1024;

/// Normal numbers that follow from a token and an expert.
fn output(source: u32, token: u32, expert: u32) -> Vec<bf16> {
    let mut random = Random::new(u64::from(source) << 40 ^ u64::from(token) << 20 ^ u64::from(expert));
    let mut uniform = || (f64::from(random.draw() as u32) + 0.5) / 4_294_967_296.0;
    let normals = (0..HIDDEN).map(|_| (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos());
    normals.map(bf16::from_f64).collect()
}

/// What a rank's experts write for what it received.
fn outputs(world: &World, rank: u32, received: &Received) -> Vec<bf16> {
    let first = owned(world.experts, world.ranks)[rank as usize].start;
    // A row's experts: one, or those of a compact row.
    let experts = received.topk_idx.chunks(received.topk_idx.len() / received.sources.len().max(1));
    let rows = received.sources.iter().zip(experts).flat_map(|(&(source, token), experts)| {
        let mut sum = vec![0.0f32; HIDDEN as usize];
        for &expert in experts.iter().filter(|expert| **expert >= 0) {
            sum.iter_mut().zip(output(source, token, first + expert as u32)).for_each(|(sum, x)| *sum += f32::from(x));
        }
        sum.into_iter().map(round)
    });
    rows.collect()
}

/// By how much each element of a token's sum may be off, as the documentation has it, and by how much those of the reference are.
fn bound(world: &World, source: u32, token: u32) -> (Vec<f64>, Vec<f64>) {
    let owners = world.owners();
    let (mut bound, mut off) = (vec![0.0; HIDDEN as usize], vec![0.0; HIDDEN as usize]);
    for owner in (0..world.ranks).filter(|owner| *owner != source) {
        let mut sum = vec![0.0f32; HIDDEN as usize];
        for &selected in world.selections(source, token) {
            let Ok(selected) = u32::try_from(selected) else { continue };
            if owners[selected as usize] == owner {
                sum.iter_mut().zip(output(source, token, selected)).for_each(|(sum, x)| *sum += f32::from(x));
            }
        }
        let row: Vec<bf16> = sum.into_iter().map(round).collect();
        let fp8 = crossed(&row);
        for (number, group) in row.chunks(128).enumerate() {
            let amax = group.iter().map(|x| f64::from(*x).abs()).fold(1e-4, f64::max);
            for (i, x) in group.iter().enumerate() {
                let at = number * 128 + i;
                bound[at] += (f64::from(*x).abs() / 16.0).max(amax / 458_752.0);
                off[at] += f64::from(fp8[at]) - f64::from(*x);
            }
        }
    }
    (bound, off)
}

/// Prints the error, the largest and its root mean square, and holds it against what is documented.
#[test]
fn sums_are_as_near_as_documented() {
    let device = Device::from_env();
    for (layout, ranks, top_k) in LAYOUTS.into_iter().flat_map(|layout| [(layout, 2, 8), (layout, 8, 8)]) {
        let case = Case {
            ranks,
            experts: 32,
            top_k,
            hidden: HIDDEN,
            format: WireFormat::Bf16,
            num_sms: 2,
            tokens: vec![16; ranks as usize],
            index: IndexType::I64,
            choice: Choice::Uniform,
            holes: 0,
            data: 7,
            mode: Mode::Fast { workers: 0 },
        };
        let world = case.world();
        let results = device.run_all(ranks, case.mode, |comm| {
            let config = case.config().with_layout(layout).with_combine_options().with_fp8_combine();
            let mut buffer = ElasticBuffer::new(&comm, config)?;
            let tokens = case.tokens[comm.rank() as usize];
            let mut tensors = Tensors::empty(&comm, tokens, HIDDEN, top_k, case.index)?;
            tensors.fill(&world, comm.rank())?;
            let mut sums = Vec::new();
            for over_fp8 in [false, true] {
                let handle = tensors.dispatch(&mut buffer, tokens)?;
                let received = buffer.received(&handle)?;
                buffer.write_expert_outputs(&handle, &outputs(&world, comm.rank(), &received))?;
                let mut y = comm.empty::<f32>(u64::from(tokens * HIDDEN))?;
                let input = CombineInput::new(ExpertOutputs::InPlace, &mut y);
                buffer.combine(&handle, if over_fp8 { input.over_fp8() } else { input })?;
                sums.push(y.to_vec()?);
            }
            buffer.close()?;
            Ok(sums)
        });
        let (mut largest, mut of_bound, mut square, mut of_sums) = (0.0f64, 0.0f64, 0.0, 0.0);
        for (source, sums) in (0..).zip(results) {
            let sums = sums.unwrap();
            let rows = sums[0].chunks(HIDDEN as usize).zip(sums[1].chunks(HIDDEN as usize));
            for (token, (plain, fp8)) in (0..).zip(rows) {
                let (bound, off) = bound(&world, source, token);
                for (at, (plain, fp8)) in plain.iter().zip(fp8).enumerate() {
                    let error = f64::from(*fp8) - f64::from(*plain);
                    // What f32 rounds on the way: 24 bits of numbers below 64.
                    let rounding = 64.0 / f64::from(1 << 22);
                    assert!(
                        (error - off[at]).abs() <= rounding,
                        "token {token} of rank {source}: {error}, {}",
                        off[at]
                    );
                    assert!(
                        error.abs() <= bound[at] + rounding,
                        "token {token} of rank {source}: {error} of {}",
                        bound[at]
                    );
                    largest = largest.max(error.abs());
                    of_bound = of_bound.max(error.abs() / (bound[at] + rounding));
                    (square, of_sums) = (square + error * error, of_sums + f64::from(*plain).powi(2));
                }
            }
        }
        let rms = (square / of_sums).sqrt();
        println!(
            "{layout:?}, {ranks} ranks, top-{top_k}: error at most {largest:.3}, {of_bound:.2} of its bound; its root mean square is {:.2} % of the sums'",
            rms * 100.0
        );
        assert!(rms > 0.005 && rms < 0.03, "{rms}: nothing crossed in FP8, or worse than documented");
    }
}

/// A buffer that is not made for it, or cannot be; and ranks that differ.
#[test]
fn who_does_not_ask_for_it_does_not_get_it() {
    let config = |layout| Config::new(4, 2, 64, 4).with_layout(layout).with_num_sms(1);
    assert_error!(
        bytes_needed(&config(Layout::RankMajor { alignment: 1 }).with_fp8_combine(), 2, 1).unwrap_err(),
        Error::InvalidArgument { argument: "fp8_combine", .. },
        "not where rows have fixed places"
    );
    // By expert it takes no memory, and of compact rows codes and a scale for each: a multiple of 16 bytes for each of 2 x 4.
    let regions = |config: Config| bytes_needed(&config, 2, 1).unwrap().regions;
    assert_eq!(regions(config(LAYOUT)), regions(config(LAYOUT).with_fp8_combine()));
    let more: Vec<_> = regions(config(Layout::Compact).with_fp8_combine());
    let bytes = |name| more.iter().find(|region| region.name == name).expect("there is one").bytes;
    assert_eq!([bytes("expert outputs in FP8"), bytes("block words")], [8 * 80, 2 * 2 * 8]);
    let device = Device::from_env();
    for (layout, made_for_it) in LAYOUTS.into_iter().flat_map(|layout| [(layout, false), (layout, true)]) {
        let results = device.run_all(2, Mode::Fast { workers: 0 }, |comm| -> Result<()> {
            let config = if made_for_it { config(layout).with_fp8_combine() } else { config(layout) };
            let mut buffer = ElasticBuffer::new(&comm, config)?;
            let (x, weights) = (comm.tensor(&[bf16::ONE; 64])?, comm.tensor(&[1.0f32; 2])?);
            let handle = buffer.dispatch(&DispatchInput::new(1, &x, &comm.tensor(&[0i64, 3])?, &weights))?;
            let mut y = comm.empty::<bf16>(64)?;
            let input = CombineInput::new(ExpertOutputs::InPlace, &mut y);
            let over_fp8 = !made_for_it || comm.rank() == 1;
            buffer.combine(&handle, if over_fp8 { input.over_fp8() } else { input })?;
            buffer.synchronize()
        });
        for error in results.into_iter().map(|result| result.expect_err("it cannot be")) {
            match made_for_it {
                false => assert_error!(error, Error::InvalidArgument { argument: "over_fp8", .. }, "with_fp8_combine"),
                true => assert_error!(error, Error::OutOfStep { .. }, "combine over FP8"),
            }
        }
    }
}

/// A few rounds of compact rows that cross in FP8, with uneven ranks.
fn rounds(seed: u64, mutation: Option<Mutation>) -> Checked {
    let mode = Mode::Seeded { seed };
    let case = Case { num_sms: 3, ..Case::with_rows(3, 264, WireFormat::Bf16, vec![9, 4, 7], seed, mode) };
    let worlds: Vec<World> = (0..3).map(|round| Case { data: seed ^ round << 32, ..case.clone() }.world()).collect();
    Device::Simulated.check_without(case.ranks, mode, mutation, |comm| {
        let mut buffer = ElasticBuffer::new(&comm, case.config().with_fp8_combine())?;
        let tokens = case.tokens[comm.rank() as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        let mut checked = Ok(());
        for world in &worlds {
            let wires: Vec<Wire> = world.wires();
            tensors.fill(world, comm.rank())?;
            let handle = tensors.dispatch(&mut buffer, tokens)?;
            let agreed = Agreed { fp8: true, ..Agreed::default() };
            let right = check_combine(&comm, &mut buffer, &handle, world, &wires, agreed, Own::default(), seed)?;
            checked = checked.and(right);
        }
        buffer.close()?;
        Ok(checked)
    })
}

/// Of compact rows that cross none is read before it is there: without the wait for that some schedule is wrong.
#[test]
fn without_the_wait_some_schedule_fails() {
    const FILE: &str = "gpu-kernels/src/combine/fp8_rows.rs";
    const SOURCE: &str = include_str!("../gpu-kernels/src/combine/fp8_rows.rs");
    for seed in 0..4 {
        rounds(seed, None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    let mutation = Mutation::of(FILE, SOURCE, "self.reduced.wait_for_all(window").expect("the wait is there");
    assert!((0..24).any(|seed| rounds(seed, Some(mutation)).is_err()), "no seed misses it");
}

/// Prints how long a combine takes whose rows cross in BF16, and in FP8: a rank on each GPU that is named, 256 experts, top-8, rows of 7168.
#[test]
#[ignore = "needs NVIDIA GPUs, and measures"]
fn how_long_a_combine_takes() {
    const HIDDEN: u32 = 7168;
    const TIMES: usize = 31;
    let ranks = gpus().len() as u32;
    let sizes = [4096u32, 128, 1].into_iter().flat_map(|tokens| [16, 64].map(|sms| (tokens, sms)));
    for (layout, (tokens, sms)) in sizes.flat_map(|size| LAYOUTS.map(|layout| (layout, size))) {
        let case = Case {
            ranks,
            experts: 256,
            top_k: 8,
            hidden: HIDDEN,
            format: WireFormat::Bf16,
            num_sms: sms,
            tokens: vec![0; ranks as usize],
            index: IndexType::I64,
            choice: Choice::Uniform,
            holes: 0,
            data: 1,
            mode: Mode::Fast { workers: 0 },
        };
        let results = Device::from_env().run_all(ranks, case.mode, |comm| {
            let mut config = case.config().with_layout(layout).with_fp8_combine().with_capacity(u64::from(tokens * 12));
            config.max_tokens_per_rank = tokens;
            let mut buffer = ElasticBuffer::new(&comm, config)?;
            let mut random = Random::new(u64::from(comm.rank()));
            let idx = (0..tokens).flat_map(|_| {
                let first = random.below(256);
                // Eight of them, all over the ranks.
                (0..8).map(move |k| i64::from((first + k * 37) % 256))
            });
            let (idx, weights) =
                (comm.tensor(&idx.collect::<Vec<_>>())?, comm.tensor(&vec![1.0f32; 8 * tokens as usize])?);
            let x = comm.tensor(&vec![bf16::ONE; (tokens * HIDDEN) as usize])?;
            let mut y = comm.empty::<bf16>(x.len())?;
            let first = buffer.dispatch(&DispatchInput::new(tokens, &x, &idx, &weights))?;
            buffer.combine(&first, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
            let mut medians = [0.0; 2];
            for (over_fp8, median) in [false, true].into_iter().zip(&mut medians) {
                let mut times = Vec::new();
                for _ in 0..TIMES {
                    let handle = buffer.dispatch_again(&first, &x)?;
                    let before = comm.record()?;
                    let input = CombineInput::new(ExpertOutputs::InPlace, &mut y);
                    buffer.combine(&handle, if over_fp8 { input.over_fp8() } else { input })?;
                    times.push((before, comm.record()?));
                }
                buffer.synchronize()?;
                let times = times.iter().map(|(from, to)| comm.elapsed_ms(from, to)).collect::<Result<Vec<_>>>();
                let mut times = times?;
                times.sort_by(f64::total_cmp);
                *median = times[TIMES / 2] * 1e3;
            }
            buffer.close()?;
            Ok(medians)
        });
        let medians: Vec<[f64; 2]> = results.into_iter().map(|result| result.unwrap()).collect();
        let slowest = |wire: usize| medians.iter().map(|medians| medians[wire]).fold(0.0, f64::max);
        println!(
            "{layout:?}, {ranks} ranks, {tokens} tokens, {sms} SMs: {:.1} us in BF16, {:.1} us in FP8",
            slowest(0),
            slowest(1)
        );
    }
}
