//! The benchmarks: layout arithmetic on the host, kernels on the simulated GPU, and the same kernels on a GPU if there is one.
//!
//! `cargo bench --bench epoxide` runs on any machine; without a GPU the cases named `gpu/` are left out, with a line that says so.
//! `-- sim` or `-- gpu/combine` runs the cases of that name. Times of `sim/` cases are the host's: they say how fast the simulator is,
//! not how fast a GPU would be.
mod fleet;
#[path = "../plots.rs"]
mod plots;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use epoxide::quantize::{Quantizer, scale_stride};
use epoxide::{Comm, Config, LocalGroup, Mode, WireFormat, bf16, bytes_needed};

use crate::fleet::{Fleet, Sends, Work};

/// A group on whatever the case runs on.
type MakeGroup = fn(u32) -> epoxide::Result<LocalGroup>;

fn simulated(ranks: u32) -> epoxide::Result<LocalGroup> {
    LocalGroup::simulated(ranks, Mode::Fast { workers: 0 })
}

fn on_gpu(ranks: u32) -> epoxide::Result<LocalGroup> {
    LocalGroup::on_gpu(ranks, 0)
}

/// Host-side layout: what `bytes_needed` and `ElasticBuffer::new` compute.
fn layout(c: &mut Criterion) {
    let config = Config::new(256, 8, 7168, 4096);
    c.bench_function("layout/bytes_needed", |b| b.iter(|| bytes_needed(black_box(&config), 8, 16)));
}

/// The time on the stream of `iterations` calls of `enqueue`, which is given their number.
fn timed(comm: &Comm, iterations: u64, mut enqueue: impl FnMut(usize) -> epoxide::Result<()>) -> Duration {
    let mut run = || {
        let start = comm.record()?;
        (0..iterations as usize).try_for_each(&mut enqueue)?;
        let end = comm.record()?;
        comm.synchronize()?;
        comm.elapsed_ms(&start, &end)
    };
    Duration::from_secs_f64(run().expect("the kernel runs") / 1e3)
}

/// Quantising `[tokens, hidden]`, alone; on a GPU beside a copy that reads and writes as many bytes.
fn quantize(c: &mut Criterion, name: &str, make: MakeGroup, tokens: u64, hidden: u32) {
    let mut group = c.benchmark_group(format!("{name}/quantize"));
    let elements = tokens * u64::from(hidden);
    // Every input element is read once, its code written once, and every scale written once.
    group.throughput(Throughput::Bytes(elements * 3 + tokens * u64::from(hidden.div_ceil(128)) * 4));
    let comm =
        make(1).and_then(|g| g.into_comms().into_iter().next().ok_or_else(|| unreachable!("a group has a rank")));
    let comm = comm.expect("the device was there a moment ago");
    let mut run = || -> epoxide::Result<()> {
        let values: Vec<bf16> = (0..elements).map(|i| bf16::from_f32((i % 251) as f32 - 125.0)).collect();
        // On a GPU more sets than its L2 holds, so that every call reads memory.
        let sets = (256 * 1024 * 1024 / (elements * 3)).clamp(1, 64) as usize;
        let sets = if name == "sim" { 1 } else { sets };
        let mut buffers = (0..sets)
            .map(|_| {
                let scales = comm.empty::<f32>(tokens * u64::from(scale_stride(hidden)))?;
                Ok((comm.tensor(&values)?, comm.empty::<u8>(elements)?, scales))
            })
            .collect::<epoxide::Result<Vec<_>>>()?;
        let quantizer = Quantizer::new(&comm)?;
        // The ceiling: a copy that reads and writes as many bytes.
        let half = (elements * 3 + tokens * u64::from(hidden.div_ceil(128)) * 4) / 2 / 16 * 2;
        let mut copies = (0..if name == "sim" { 0 } else { sets })
            .map(|_| Ok((comm.empty::<u64>(half)?, comm.empty::<u64>(half)?)))
            .collect::<epoxide::Result<Vec<_>>>()?;
        let shape = format!("{tokens}x{hidden}");
        if !copies.is_empty() {
            group.bench_function(BenchmarkId::from_parameter(format!("{shape}/copy")), |b| {
                b.iter_custom(|iterations| {
                    timed(&comm, iterations, |i| {
                        let (from, to) = &mut copies[i % sets];
                        quantizer.copy(&*from, to)
                    })
                });
            });
        }
        group.bench_function(BenchmarkId::from_parameter(shape), |b| {
            b.iter_custom(|iterations| {
                timed(&comm, iterations, |i| {
                    let (x, codes, scales) = &mut buffers[i % sets];
                    quantizer.quantize(&*x, tokens, hidden, codes, scales)
                })
            });
        });
        Ok(())
    };
    run().expect("the benchmark runs");
    group.finish();
}

/// Dispatch and combine of all ranks, which always follow each other, each timed for itself; the time is the slowest rank's.
fn dispatch_and_combine(c: &mut Criterion, name: &str, make: MakeGroup, work: Work) {
    let fleet = Fleet::new(make(work.ranks).expect("the device was there a moment ago"), &work);
    let format = if work.format == WireFormat::Bf16 { "bf16" } else { "fp8" };
    let id = format!("{}x{}x{}/{format}", work.ranks, work.tokens, work.hidden);
    let operations: &[(&str, usize)] = match work.sends {
        Sends::Rows => &[("dispatch", 0), ("combine", 1)],
        Sends::Brought => &[("dispatch-brought", 0)],
        Sends::Again => &[("dispatch-again", 0)],
    };
    for &(operation, part) in operations {
        let mut group = c.benchmark_group(format!("{name}/{operation}"));
        group.throughput(Throughput::Elements(u64::from(work.ranks) * u64::from(work.tokens)));
        let time = |iterations| fleet.run(iterations)[part];
        group.bench_function(BenchmarkId::from_parameter(&id), |b| b.iter_custom(time));
        group.finish();
    }
}

/// Formats, and what is sent in each.
const CASES: [(WireFormat, Sends); 5] = [
    (WireFormat::Bf16, Sends::Rows),
    (WireFormat::Fp8, Sends::Rows),
    (WireFormat::Fp8, Sends::Brought),
    (WireFormat::Bf16, Sends::Again),
    (WireFormat::Fp8, Sends::Again),
];

fn on_the_simulator(c: &mut Criterion) {
    quantize(c, "sim", simulated, 64, 1024);
    for (format, sends) in CASES {
        let work = Work { ranks: 4, tokens: 32, hidden: 512, experts: 32, top_k: 4, format, sends };
        dispatch_and_combine(c, "sim", simulated, work);
    }
}

fn on_a_gpu(c: &mut Criterion) {
    if let Err(error) = on_gpu(1) {
        eprintln!("gpu/ cases are left out: {error}");
        return;
    }
    // Opens the device, which the last group has closed, and loads what every rank has.
    c.bench_function("gpu/open", |b| b.iter(|| on_gpu(1).expect("the device was there a moment ago")));
    for tokens in [128, 4096, 8192] {
        quantize(c, "gpu", on_gpu, tokens, 7168);
    }
    for (format, sends) in CASES {
        for tokens in [128, 4096] {
            let work = Work { ranks: 8, tokens, hidden: 7168, experts: 256, top_k: 8, format, sends };
            dispatch_and_combine(c, "gpu", on_gpu, work);
        }
    }
}

fn short() -> Criterion {
    Criterion::default().sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3))
}

criterion_group! { name = benches; config = short(); targets = layout, on_the_simulator, on_a_gpu }

fn main() {
    benches();
    Criterion::default().configure_from_args().final_summary();
    plots::tell();
}
