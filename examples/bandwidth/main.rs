//! Measures dispatch and combine of several ranks, over the number of SMs, beside a device copy in the same run.
//!
//! Every row of the table is the median over repetitions of the slowest rank's time, from events around each operation.
//! GB/s count each received row once (its data and scales), as its rank received it; "copy" moves the same bytes, read
//! and written, with a plain kernel on an idle device. Several ranks on one GPU share its memory: these figures measure kernels
//! and protocol, not NVLink.
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use comfy_table::{Cell, CellAlignment, Table, presets};
use epoxide::quantize::{Quantizer, scale_stride};
use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, ExpertOutputs, LocalGroup, Mode, WireFormat, bf16,
};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Device {
    /// The simulated GPU: the times are the host's, and say nothing of a GPU.
    Sim,
    /// The first NVIDIA GPU.
    Cuda,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Bf16,
    Fp8,
}

/// Measures dispatch and combine over the number of SMs, beside a device copy in the same run.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Where to run.
    #[arg(long, value_enum, default_value_t = Device::Cuda)]
    device: Device,
    /// Ranks; on a GPU all of them share it.
    #[arg(long, default_value_t = 8)]
    ranks: u32,
    /// Tokens of every rank.
    #[arg(long, value_delimiter = ',', default_values_t = [4096])]
    tokens: Vec<u32>,
    /// Elements of a row.
    #[arg(long, default_value_t = 7168)]
    hidden: u32,
    /// Experts in all.
    #[arg(long, default_value_t = 256)]
    experts: u32,
    /// Experts of a token, drawn uniformly without repetition.
    #[arg(long, default_value_t = 8)]
    top_k: u32,
    /// Blocks of an operation on every rank; a list is a sweep.
    #[arg(long, value_delimiter = ',', default_values_t = [2, 4, 8, 16])]
    sms: Vec<u32>,
    /// Formats on the wire.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Format::Bf16, Format::Fp8])]
    format: Vec<Format>,
    /// Repetitions that are timed, after three that are not.
    #[arg(long, default_value_t = 15)]
    repeat: usize,
    /// Seed of the routing.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What one rank measured.
struct Times {
    dispatch_ms: Vec<f64>,
    combine_ms: Vec<f64>,
    rows: u32,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header([
        "tokens",
        "format",
        "SMs",
        "dispatch us",
        "GB/s/rank",
        "GB/s/SM",
        "of copy",
        "combine us",
        "GB/s/rank",
        "GB/s/SM",
        "of copy",
    ]);
    let mut device = String::new();
    for &tokens in &options.tokens {
        for &format in &options.format {
            for &sms in &options.sms {
                let row = measure(&options, tokens, format, sms, &mut device)?;
                table.add_row(row.into_iter().map(|text| Cell::new(text).set_alignment(CellAlignment::Right)));
            }
        }
    }
    println!(
        "{device}: {} ranks, hidden {}, top-{} of {}",
        options.ranks, options.hidden, options.top_k, options.experts
    );
    println!("{table}");
    println!(
        "\"of copy\": time of a device copy of the same bytes / time of the operation; all ranks share the device."
    );
    Ok(())
}

fn measure(options: &Options, tokens: u32, format: Format, sms: u32, device: &mut String) -> Result<Vec<String>> {
    let group = match options.device {
        Device::Sim => LocalGroup::simulated(options.ranks, Mode::Fast { workers: 0 })?,
        Device::Cuda => LocalGroup::on_gpu(options.ranks, 0)?,
    };
    let wire = match format {
        Format::Bf16 => WireFormat::Bf16,
        Format::Fp8 => WireFormat::Fp8,
    };
    let config = Config::new(options.experts, options.top_k, options.hidden, tokens)
        .with_format(wire)
        .with_num_sms(sms)
        .with_timeout(Duration::from_secs(20));
    let ranks = group.run(|comm| {
        let (times, copy) = run_rank(options, tokens, &comm, &config)?;
        Ok((times, copy, comm.device()))
    })?;
    *device = ranks[0].2.clone();
    let row_bytes = match format {
        Format::Bf16 => u64::from(options.hidden) * 2,
        Format::Fp8 => u64::from(options.hidden) + u64::from(scale_stride(options.hidden)) * 4,
    };
    let rows: u64 = ranks.iter().map(|(t, ..)| u64::from(t.rows)).sum();
    let copy_bytes_per_ms = ranks[0].1;
    let bf16_row = u64::from(options.hidden) * 2;
    let sent = u64::from(options.ranks) * u64::from(tokens) * bf16_row;
    // Bytes that must move through memory: every input row is read once, every received row is written once; and the reverse.
    let dispatch_bytes = (sent + rows * row_bytes) as f64;
    let combine_bytes = (rows * bf16_row + sent) as f64;
    let mut row = vec![tokens.to_string(), format!("{format:?}").to_lowercase(), sms.to_string()];
    for (pick, bytes, row_bytes) in [(0, dispatch_bytes, row_bytes), (1, combine_bytes, bf16_row)] {
        let per_rank = |t: &Times| if pick == 0 { t.dispatch_ms.clone() } else { t.combine_ms.clone() };
        let ms = median_of_max(&ranks.iter().map(|(t, ..)| per_rank(t)).collect::<Vec<_>>());
        let received = rows as f64 * row_bytes as f64 / f64::from(options.ranks);
        let gbs = received / ms / 1e6;
        row.push(format!("{:.1}", ms * 1e3));
        row.push(format!("{gbs:.1}"));
        row.push(format!("{:.1}", gbs / f64::from(sms)));
        row.push(format!("{:.2}", bytes / copy_bytes_per_ms / ms));
    }
    Ok(row)
}

fn run_rank(options: &Options, tokens: u32, comm: &Comm, config: &Config) -> epoxide::Result<(Times, f64)> {
    let mut buffer = ElasticBuffer::new(comm, config.clone())?;
    let mut random = (options.seed ^ u64::from(comm.rank()) << 32) | 1;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let elements = u64::from(tokens) * u64::from(options.hidden);
    let x: Vec<bf16> = (0..elements).map(|_| bf16::from_f32((next() >> 40) as f32 / 8_388_608.0 - 1.0)).collect();
    let x = comm.tensor(&x)?;
    let mut experts: Vec<i32> = (0..options.experts as i32).collect();
    let mut picks = Vec::new();
    for _ in 0..tokens {
        for k in 0..options.top_k as usize {
            let other = k + (next() >> 33) as usize % (experts.len() - k);
            experts.swap(k, other);
            picks.push(experts[k]);
        }
    }
    let weights = comm.tensor(&vec![1.0 / options.top_k as f32; picks.len()])?;
    let picks = comm.tensor(&picks)?;
    let mut y = comm.empty::<bf16>(elements)?;
    let input = DispatchInput::new(tokens, &x, &picks, &weights);
    // The ceiling: rank 0 copies alone, at least a gibibyte on a GPU.
    let bytes = if matches!(options.device, Device::Cuda) { 1u64 << 30 } else { 1 << 24 };
    let quantizer = Quantizer::new(comm)?;
    let pair =
        if comm.rank() == 0 { Some((comm.empty::<u64>(bytes / 8)?, comm.empty::<u64>(bytes / 8)?)) } else { None };
    comm.barrier()?;
    let mut copy = 0.0;
    if let Some((from, mut to)) = pair {
        let mut times = Vec::new();
        for _ in 0..8 {
            let start = comm.record()?;
            quantizer.copy(&from, &mut to)?;
            let end = comm.record()?;
            comm.synchronize()?;
            times.push(comm.elapsed_ms(&start, &end)?);
        }
        times.sort_by(f64::total_cmp);
        copy = 2.0 * bytes as f64 / times[times.len() / 2];
    }
    comm.barrier()?;
    let handle = buffer.dispatch(&input)?;
    let rows = buffer.recv_counts(&handle)?.rows;
    buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    let mut events = Vec::new();
    // Everything is enqueued while the streams are held, so that no host thread is in the measurement.
    comm.barrier()?;
    comm.delay(Duration::from_millis(20))?;
    for _ in 0..options.repeat + 3 {
        let start = comm.record()?;
        let handle = buffer.dispatch(&input)?;
        let middle = comm.record()?;
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
        let end = comm.record()?;
        events.push((start, middle, end));
    }
    buffer.synchronize()?;
    let times = &events[3..];
    let times = Times {
        dispatch_ms: times.iter().map(|(a, b, _)| comm.elapsed_ms(a, b)).collect::<epoxide::Result<_>>()?,
        combine_ms: times.iter().map(|(_, b, c)| comm.elapsed_ms(b, c)).collect::<epoxide::Result<_>>()?,
        rows,
    };
    buffer.close()?;
    Ok((times, copy))
}

/// For every repetition the slowest rank, then the median over repetitions.
fn median_of_max(ranks: &[Vec<f64>]) -> f64 {
    let mut slowest: Vec<f64> = (0..ranks[0].len()).map(|i| ranks.iter().map(|r| r[i]).fold(0.0, f64::max)).collect();
    slowest.sort_by(f64::total_cmp);
    slowest[slowest.len() / 2]
}
