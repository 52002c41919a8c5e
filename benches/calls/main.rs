//! What a call costs the host beside the driver: a dispatch and its combine, with a driver that returns at once.
//!
//! `cargo bench --bench calls`. No GPU is needed; on a machine with one it is not touched.
#[path = "../../tests/support/driver/mod.rs"]
mod driver;
#[path = "../plots.rs"]
mod plots;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group};
use driver::{Pairs, StandIn};
use epoxide::{Layout, LocalGroup, Packing, Result, WireFormat};

/// The time of so many pairs on the rank for which they took longest.
fn pairs(ranks: u32, layout: Layout, count: u64) -> Result<Duration> {
    let gpus: Vec<u32> = (0..ranks).collect();
    let times = LocalGroup::on_gpus(&gpus)?.run(|comm| {
        let mut pairs = Pairs::new(&comm, layout, Packing::None, WireFormat::Bf16, 8)?;
        (0..100).try_for_each(|_| pairs.pair())?;
        comm.barrier()?;
        let begun = Instant::now();
        (0..count).try_for_each(|_| pairs.pair())?;
        let time = begun.elapsed();
        pairs.close()?;
        Ok(time)
    })?;
    Ok(times.into_iter().max().unwrap_or_default())
}

fn calls(c: &mut Criterion) {
    let _stand_in = StandIn::open();
    let mut group = c.benchmark_group("calls/pair");
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for (name, layout) in [
        ("rank-major", Layout::RankMajor { alignment: 1 }),
        ("compact", Layout::Compact),
        ("expert-contiguous", Layout::ExpertContiguous { alignment: 1 }),
    ] {
        for ranks in [1, 2] {
            group.bench_function(BenchmarkId::new(name, ranks), |b| {
                b.iter_custom(|count| pairs(ranks, layout, count).expect("the stand-in does all"));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, calls);

fn main() {
    benches();
    Criterion::default().configure_from_args().final_summary();
    plots::tell();
}
