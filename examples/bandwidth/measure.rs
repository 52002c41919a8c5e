//! One row of the table: all ranks, one shape, one number of SMs.
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use epoxide::quantize::{Quantizer, scale_stride};
use epoxide::{
    CombineInput, Comm, Config, DeviceTensor, DispatchInput, ElasticBuffer, ExpertOutputs, Layout, LocalGroup, Mode,
    Packing, Rows, bf16,
};

use crate::ceiling::{self, Ceilings};
use crate::counts::{self, Times};
use crate::halves::{Exchange, Halves};
use crate::identity;
use crate::options::{Case, Device, Format, Options};
use crate::percentiles::Percentiles;
use crate::processes;
use crate::progress::Progress;
use crate::routes::{self, Sent};

/// What was measured.
pub struct Measured {
    /// The first rank's device, in words.
    pub device: String,
    /// Bytes per second of a copy through one GPU's memory, read and written.
    pub copy: f64,
    pub dispatch: Operation,
    pub combine: Operation,
    /// Seconds until the host is told what a dispatch brings, and until it is done; with `--counts-mirror`.
    pub told: Option<[f64; 2]>,
    /// Seconds of the four halves, of the same under load, and of two kernels beside in three ways; with `--halves`.
    pub halves: Option<[f64; 14]>,
}

/// Times and bytes of an operation.
pub struct Operation {
    /// Of each repetition the slowest rank's time.
    pub seconds: Percentiles,
    /// Bytes of rows that a rank receives or sums, the mean: where they lie by expert, of one for each selection.
    pub received: f64,
    /// How long a copy takes for the bytes that must move through the memory of a GPU.
    pub copy_seconds: f64,
    /// Bytes that come into a GPU from the others, the mean.
    pub linked: f64,
    /// Bytes per second of a plain kernel that does only this.
    pub link_copy: f64,
}

/// What one rank tells.
pub struct Outcome {
    pub device: String,
    pub ceilings: Ceilings,
    pub dispatch_ms: Vec<f64>,
    pub combine_ms: Vec<f64>,
    /// With `--counts-mirror`.
    pub told: Option<Times>,
    /// With `--halves`.
    pub halves: Option<Halves>,
    /// Rows that lie here from every rank.
    pub by_source: Vec<u32>,
    /// What goes to every rank.
    pub sent: Vec<Sent>,
    /// What is wrong with the sums.
    pub mismatch: Option<String>,
}

/// Where the ranks are.
pub enum Ranks {
    /// In this process, made anew for each row of the table.
    Threads,
    /// This process is one.
    Process(Comm),
}

impl Ranks {
    /// The rank that this process is alone.
    pub fn process(&self) -> Option<u32> {
        match self {
            Self::Threads => None,
            Self::Process(comm) => Some(comm.rank()),
        }
    }

    /// Runs `f` for every rank of this process.
    fn run<T: Send>(
        &self,
        options: &Options,
        f: impl Fn(Comm) -> epoxide::Result<T> + Sync,
    ) -> epoxide::Result<Vec<T>> {
        match self {
            Self::Threads => match options.device {
                Device::Sim => LocalGroup::simulated(options.ranks, Mode::Fast { workers: 0 })?.run(f),
                Device::Cuda => LocalGroup::on_gpus(&options.gpu_of_ranks())?.run(f),
            },
            Self::Process(comm) => Ok(vec![comm.run(|comm| f(comm.clone()))?]),
        }
    }
}

/// Makes the buffers and tensors of every row of the table once: what the device refuses, it refuses before the first is measured.
///
/// # Errors
///
/// The library's.
pub fn rehearse(options: &Options, ranks: &Ranks) -> Result<()> {
    let rank = |comm: Comm| -> epoxide::Result<()> {
        for case in options.cases() {
            let buffer = ElasticBuffer::new(&comm, options.config(case))?;
            let elements = u64::from(case.tokens) * u64::from(options.hidden);
            let tensors = (comm.empty::<bf16>(elements)?, comm.empty::<bf16>(elements)?);
            buffer.close()?;
            drop(tensors);
        }
        Ok(())
    };
    ranks.run(options, rank)?;
    Ok(())
}

/// What every rank of this process dispatches. It is made here, where it is an error if there is no memory for it.
///
/// # Errors
///
/// That there is none.
pub fn work(options: &Options, ranks: &Ranks, tokens: u32, progress: &Progress) -> Result<Vec<Work>> {
    let here = |rank| ranks.process().is_none_or(|process| process == rank);
    let of = |rank| if here(rank) { Work::new(options, tokens, rank, progress) } else { Ok(Work::default()) };
    (0..options.ranks).map(of).collect()
}

/// Runs all ranks.
///
/// # Errors
///
/// The library's, and that sums were wrong.
pub fn run(options: &Options, ranks: &Ranks, work: &[Work], case: Case) -> Result<Measured> {
    let gpus = options.gpu_of_ranks();
    let config = options.config(case).with_timeout(Duration::from_secs(20));
    let of_rank = |comm: Comm| {
        let own = rank(options, case, &work[comm.rank() as usize], &comm, &config, &gpus)?;
        match ranks {
            Ranks::Threads => Ok(vec![own]),
            // Every process has all, and the first one prints.
            Ranks::Process(_) => processes::gather(&comm, &own),
        }
    };
    let outcomes: Vec<Outcome> = ranks.run(options, of_rank)?.into_iter().flatten().collect();
    ensure!(outcomes.len() == options.ranks as usize, "a rank is another program: it measured nothing");
    let wrong = outcomes.iter().enumerate().find_map(|(rank, o)| o.mismatch.as_ref().map(|what| (rank, what)));
    if let Some((rank, what)) = wrong {
        bail!("what was combined is wrong, with {case:?}: rank {rank}, {what}");
    }

    let (bf16_row, wire_row) = (options.bf16_row(), options.wire_row(config.format));
    let ranks = f64::from(options.ranks);
    let used = match options.device {
        Device::Sim => 1,
        Device::Cuda => gpus.iter().collect::<BTreeSet<_>>().len(),
    } as f64;
    let rows: f64 = outcomes.iter().flat_map(|o| &o.by_source).map(|&rows| f64::from(rows)).sum();
    // Rows that go from one rank to another for which `of` counts them.
    let between = |from_to: &dyn Fn(usize, usize) -> bool, of: fn(&Sent) -> u32| -> f64 {
        let from = |(from, o): (usize, &Outcome)| -> f64 {
            o.sent.iter().enumerate().filter(|(to, _)| from_to(from, *to)).map(|(_, sent)| f64::from(of(sent))).sum()
        };
        outcomes.iter().enumerate().map(from).sum()
    };
    // One row for each token and rank, in every layout.
    let crossing = between(&|from, to| gpus[from] != gpus[to], |sent| sent.tokens);
    // Where rows lie by expert: tokens of other ranks that have several here, of which one row came.
    let several = match config.layout {
        // Written where they came, and read again.
        Layout::RankMajor { .. } if config.packing != Packing::None => 2.0 * between(&|_, _| true, |sent| sent.tokens),
        Layout::Compact | Layout::RankMajor { .. } => 0.0,
        _ => between(&|from, to| from != to, |sent| sent.several),
    };
    let slowest =
        |rate: fn(&Ceilings) -> Option<f64>| outcomes.iter().filter_map(|o| rate(&o.ceilings)).fold(f64::NAN, f64::min);
    let copy = slowest(|c| c.copy);
    // Every token's own row is read by dispatch and written by combine, whatever becomes of it.
    let own_rows = ranks * f64::from(case.tokens) * bf16_row;
    let operation = |times: fn(&Outcome) -> &Vec<f64>, row: f64, again: f64, link_copy: f64| Operation {
        seconds: of_slowest(outcomes.iter().map(times)),
        received: rows * row / ranks,
        copy_seconds: (own_rows + rows * row + again * row) / used / copy,
        linked: crossing * row / used,
        link_copy,
    };
    let told = |of: fn(&Times) -> &Vec<f64>| {
        let of_ranks: Option<Vec<_>> = outcomes.iter().map(|o| o.told.as_ref().map(of)).collect();
        of_ranks.map(|times| of_slowest(times.into_iter()).median)
    };
    let half = |which: usize| {
        let of =
            |halves: &'_ Halves| if which < 4 { halves.each[which].clone() } else { halves.loaded[which - 4].clone() };
        let of_ranks: Option<Vec<_>> = outcomes.iter().map(|o| o.halves.as_ref().map(of)).collect();
        of_ranks.map(|times| of_slowest(times.iter()).median)
    };
    let beside = |way: usize| {
        let of_ranks: Option<Vec<_>> = outcomes.iter().map(|o| o.halves.as_ref().map(|h| h.beside[way])).collect();
        of_ranks.map(|times| times.into_iter().fold(0.0, f64::max) / 1e3)
    };
    let halves: Option<Vec<f64>> = (0..8).map(half).chain((0..6).map(beside)).collect();
    Ok(Measured {
        halves: halves.and_then(|all| all.try_into().ok()),
        told: told(|t| &t.told).zip(told(|t| &t.done)).map(<[f64; 2]>::from),
        device: outcomes[0].device.clone(),
        copy,
        // What came once is read, and copied on; what goes back once is a sum, written and read.
        dispatch: operation(|o| &o.dispatch_ms, wire_row, several, slowest(|c| c.push)),
        combine: operation(|o| &o.combine_ms, bf16_row, 2.0 * several, slowest(|c| c.pull)),
    })
}

/// What a rank dispatches.
#[derive(Default)]
pub struct Work {
    /// BF16 `[tokens, hidden]`.
    x: Vec<bf16>,
    /// i32 `[tokens, top_k]`.
    picks: Vec<i32>,
}

impl Work {
    fn new(options: &Options, tokens: u32, rank: u32, progress: &Progress) -> Result<Self> {
        let mut next = random(options.seed, rank);
        let elements = tokens as usize * options.hidden as usize;
        let mut x = Vec::new();
        ensure!(x.try_reserve_exact(elements).is_ok(), "no memory for {tokens} rows of {} elements", options.hidden);
        for _ in 0..tokens {
            x.extend((0..options.hidden).map(|_| bf16::from_f32((next() >> 40) as f32 / 8_388_608.0 - 1.0)));
            progress.rows(1);
        }
        let mut experts: Vec<i32> = (0..options.experts as i32).collect();
        let mut picks = Vec::new();
        for _ in 0..tokens {
            for k in 0..options.top_k as usize {
                let other = k + (next() >> 33) as usize % (experts.len() - k);
                experts.swap(k, other);
                picks.push(experts[k]);
            }
        }
        Ok(Self { x, picks })
    }
}

/// Numbers of a rank's own from a seed.
pub fn random(seed: u64, rank: u32) -> impl FnMut() -> u64 {
    // splitmix64 (Steele, Lea, Flood 2014). Seeds and ranks that are neighbours are far apart in its sequence.
    let mix = |x: u64| {
        let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    };
    let mut state = mix(mix(seed).wrapping_add(u64::from(rank)));
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(state)
    }
}

fn rank(
    options: &Options,
    case: Case,
    work: &Work,
    comm: &Comm,
    config: &Config,
    gpus: &[u32],
) -> epoxide::Result<Outcome> {
    // Of a peer that is a process, a rank has the windows alone.
    let ceilings = ceiling::measure(comm, gpus, comm.device().ends_with(processes::OF_ITS_OWN))?;
    let mut buffer = ElasticBuffer::new(comm, config.clone())?;
    let (tokens, hidden) = (case.tokens, options.hidden);
    let elements = u64::from(tokens) * u64::from(hidden);
    let x = comm.tensor(&work.x)?;
    let brought = match case.format {
        Format::Fp8Brought => Some(quantized(comm, &x, tokens, hidden)?),
        _ => None,
    };
    let rows = match &brought {
        Some((codes, scales)) => Rows::fp8(codes, scales, scale_stride(hidden)),
        None => Rows::from(&x),
    };
    let weights = comm.tensor(&vec![1.0 / options.top_k as f32; work.picks.len()])?;
    let picks = comm.tensor(&work.picks)?;
    let mut y = comm.empty::<bf16>(elements)?;
    let on_the_wire = identity::on_the_wire(comm, &work.x, tokens, hidden, config.format)?;
    let top_k = options.top_k as usize;
    let first = first_experts(comm, &buffer)?;
    let input = DispatchInput::new(tokens, rows, &picks, &weights);
    // From here on nobody allocates.
    comm.barrier()?;
    let handle = buffer.dispatch(&input)?;
    let by_source = buffer.recv_counts(&handle)?.by_source;
    identity::write_outputs(comm, &mut buffer, &handle, options.corrupt)?;
    buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    buffer.synchronize()?;
    let check = |y: &DeviceTensor<bf16>| -> epoxide::Result<_> {
        Ok(identity::mismatch(
            &y.to_vec()?,
            &on_the_wire,
            &work.picks,
            top_k,
            &first,
            config.layout_of_rows(options.ranks),
        ))
    };
    let before = check(&y)?;
    let mut events = Vec::new();
    // Everything is enqueued while the streams are held, so that no host thread is in the measurement.
    comm.barrier()?;
    comm.delay(Duration::from_millis(20))?;
    let repeat = options.repetitions(tokens);
    for _ in 0..repeat + 3 {
        let start = comm.record()?;
        let handle = if options.replay { buffer.dispatch_again(&handle, rows)? } else { buffer.dispatch(&input)? };
        let middle = comm.record()?;
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
        let end = comm.record()?;
        events.push((start, middle, end));
    }
    buffer.synchronize()?;
    let told = match options.counts_mirror {
        true => Some(counts::measure(comm, &mut buffer, &input, &mut y, repeat)?),
        false => None,
    };
    let halves = match options.halves {
        true => {
            let (on_gpus, buffer, y) = (options.device == Device::Cuda, &mut buffer, &mut y);
            Some(Exchange { comm, buffer, input: &input, y, on_gpus }.measure(repeat)?)
        }
        false => None,
    };
    // The experts' outputs have lain there all the time, and belong to what was dispatched each time.
    let mismatch = match before {
        Some(what) => Some(what),
        None => check(&y)?.map(|what| format!("after all repetitions: {what}")),
    };
    let times = &events[3..];
    let outcome = Outcome {
        device: comm.device(),
        ceilings,
        dispatch_ms: times.iter().map(|(a, b, _)| comm.elapsed_ms(a, b)).collect::<epoxide::Result<_>>()?,
        combine_ms: times.iter().map(|(_, b, c)| comm.elapsed_ms(b, c)).collect::<epoxide::Result<_>>()?,
        told,
        halves,
        by_source,
        sent: routes::sent(&work.picks, top_k, &first),
        mismatch,
    };
    buffer.close()?;
    Ok(outcome)
}

/// The rows as e4m3, with their scales.
pub fn quantized(
    comm: &Comm,
    x: &DeviceTensor<bf16>,
    tokens: u32,
    hidden: u32,
) -> epoxide::Result<(DeviceTensor<u8>, DeviceTensor<f32>)> {
    let rows = u64::from(tokens);
    let mut codes = comm.empty(rows * u64::from(hidden))?;
    let mut scales = comm.empty(rows * u64::from(scale_stride(hidden)))?;
    Quantizer::new(comm)?.quantize(x, tokens.into(), hidden, &mut codes, &mut scales)?;
    Ok((codes, scales))
}

/// The first expert of every rank; collective.
pub fn first_experts(comm: &Comm, buffer: &ElasticBuffer) -> epoxide::Result<Vec<u32>> {
    let (first, _) = buffer.local_experts();
    let all = comm.all_gather(&first.to_le_bytes())?;
    let first = |bytes: &Vec<u8>| u32::from_le_bytes(bytes.as_slice().try_into().unwrap_or_default());
    Ok(all.iter().map(first).collect())
}

/// In seconds, of the ranks' times in ms.
fn of_slowest<'a>(ranks: impl Iterator<Item = &'a Vec<f64>>) -> Percentiles {
    Percentiles::of_slowest(&ranks.map(Vec::as_slice).collect::<Vec<_>>()).scaled(1e-3)
}
