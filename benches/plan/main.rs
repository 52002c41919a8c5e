//! Benchmarks of the planner: a plan must take less than 1 ms, the simulation of 2048 ranks less than 10 s on one core.
//!
//! `cargo bench --bench plan`. All of it is host code.
#[path = "../plots.rs"]
mod plots;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group};
use epoxide::plan::simulate::{Draw, Scenario, simulate};
use epoxide::plan::{Hardware, LayerSizes, Routing, Topology, Workload, plan};

/// A plan, from one node to the largest, and with the dearest routing.
fn plans(c: &mut Criterion) {
    let mut group = c.benchmark_group("plan/plan");
    group.sample_size(20).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    let hardware = Hardware::named("h200", Some("cx7")).expect("it is built in");
    for ranks in [8, 64, 2048] {
        let topology = Topology::new(ranks, 8).expect("whole domains");
        let workload = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 4096 });
        group.bench_function(BenchmarkId::new("uniform", ranks), |b| {
            b.iter(|| plan(black_box(&topology), &hardware, &workload).expect("it is legal"));
        });
    }
    let topology = Topology::new(64, 8).expect("whole domains");
    let loads = (0..256).map(|e| 1.0 + f64::from(e % 7)).collect();
    for (name, routing) in
        [("groups", Routing::GroupLimited { groups: 8, limit: 4 }), ("histogram", Routing::Histogram(loads))]
    {
        let workload =
            Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 4096 }).with_routing(routing);
        group.bench_function(BenchmarkId::new(name, 64), |b| {
            b.iter(|| plan(black_box(&topology), &hardware, &workload).expect("it is legal"));
        });
    }
    group.finish();
}

/// A simulated dispatch and combine of 4096 tokens a rank.
fn simulations(c: &mut Criterion) {
    let mut group = c.benchmark_group("plan/simulate");
    group.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(1));
    let hardware = Hardware::named("h100", Some("cx7")).expect("it is built in");
    for ranks in [64, 2048] {
        let topology = Topology::new(ranks, 8).expect("whole domains");
        let workload = Workload::new(LayerSizes {
            experts: if ranks > 256 { 2048 } else { 256 },
            top_k: 8,
            hidden: 7168,
            tokens: 4096,
        });
        for (name, draw) in [
            ("uniform", Draw::Uniform),
            ("zipf", Draw::Zipf { exponent: 0.8 }),
            ("one-hot", Draw::OneHot { expert: 0 }),
        ] {
            // The other draws take as long by as much at every size.
            if name != "uniform" && ranks != 64 {
                continue;
            }
            let scenario = Scenario::new(1).with_draw(draw);
            group.bench_function(BenchmarkId::new(name, ranks), |b| {
                b.iter(|| simulate(&topology, &hardware, &workload, black_box(&scenario)).expect("it is legal"));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, plans, simulations);

fn main() {
    benches();
    Criterion::default().configure_from_args().final_summary();
    plots::tell();
}
