//! Where tokens go, for the planner: the expected numbers against a plain draw, and the simulation of routing at scale.
mod support;

use epoxide::WireFormat;
use epoxide::plan::simulate::{Draw, Report, Scenario, SendOrder, simulate};
use epoxide::plan::{
    Hardware, LayerSizes, PlanOptions, Resource, Routing, RowLayout, Topology, Workload, distinct_groups, plan,
    plan_with,
};
use support::laws::require;
use support::plans::cases;
use support::replay;

/// A small generator (xorshift64*): the estimate must not share code with what it checks.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n as u64) as usize
    }
    fn choose(&mut self, count: usize, mut from: Vec<u32>) -> Vec<u32> {
        for i in 0..count {
            let j = i + self.below(from.len() - i);
            from.swap(i, j);
        }
        from.truncate(count);
        from
    }
}

/// Draws tokens as the routing says, and counts.
#[test]
fn expected_distinct_groups_are_what_a_draw_gives() {
    const TOKENS: usize = 4000;
    replay::law(
        module_path!(),
        "expected_distinct_groups_are_what_a_draw_gives",
        40,
        (cases(), 1u64..),
        |(mut case, seed)| {
            if matches!(case.workload.routing, Routing::Histogram(_)) {
                // Its law is drawn from in the library's own tests.
                case.workload.routing = Routing::Uniform;
            }
            let plan = case.plan(&PlanOptions::new().with_num_sms(1))?;
            let (w, ranks) = (&case.workload, case.topology.ranks());
            let mut random = Random(seed);
            let owner: Vec<u32> = {
                let larger = w.experts % ranks;
                let counts = (0..ranks).map(|r| w.experts / ranks + u32::from(r < larger));
                counts.enumerate().flat_map(|(r, n)| std::iter::repeat_n(r as u32, n as usize)).collect()
            };
            let (mut sums, mut squares) = ([0.0f64; 2], [0.0f64; 2]);
            for _ in 0..TOKENS {
                let pool = match w.routing {
                    Routing::GroupLimited { groups, limit } => {
                        let size = w.experts / groups;
                        let chosen = random.choose(limit as usize, (0..groups).collect());
                        chosen.into_iter().flat_map(|g| g * size..(g + 1) * size).collect()
                    }
                    _ => (0..w.experts).collect(),
                };
                let experts = random.choose(w.top_k as usize, pool);
                let to: std::collections::BTreeSet<u32> = experts.iter().map(|&e| owner[e as usize]).collect();
                let domains: std::collections::BTreeSet<u32> = to.iter().map(|&r| case.topology.domain_of(r)).collect();
                for (i, n) in [to.len(), domains.len()].into_iter().enumerate() {
                    sums[i] += n as f64;
                    squares[i] += (n * n) as f64;
                }
            }
            for (i, (name, want)) in
                [("ranks", plan.expected.ranks), ("domains", plan.expected.domains)].into_iter().enumerate()
            {
                let mean = sums[i] / TOKENS as f64;
                let error = ((squares[i] / TOKENS as f64 - mean * mean).max(0.0) / TOKENS as f64).sqrt();
                // Five standard errors: one in a million draws is further off by chance.
                require((mean - want).abs() <= 5.5 * error + 2e-3, || {
                    format!("{name}: {mean} +- {error}, expected {want}")
                })?;
            }
            Ok(())
        },
    );
}

/// A histogram is drawn from by the maximum-entropy law; here from the exact probabilities of all sets.
#[test]
fn a_histogram_reaches_what_it_says() {
    let loads = [5.0, 1.0, 1.0, 3.0, 0.0, 2.0];
    let topology = Topology::new(3, 3).unwrap();
    let hardware = Hardware::named("h200", None).unwrap();
    let workload = Workload::new(LayerSizes { experts: 6, top_k: 2, hidden: 64, tokens: 16 })
        .with_routing(Routing::Histogram(loads.to_vec()));
    let expected = plan(&topology, &hardware, &workload).unwrap().expected;
    for (rank, pair) in loads.chunks(2).enumerate() {
        let selections = pair.iter().sum::<f64>() / 12.0 * 2.0;
        assert!((expected.selections[rank] - selections).abs() < 1e-12);
        // A rank cannot be reached more often than its experts are selected, nor less than the hotter one is.
        let hottest = pair.iter().copied().fold(0.0, f64::max) / 12.0 * 2.0;
        assert!(
            expected.to_rank[rank] <= selections + 1e-6 && expected.to_rank[rank] >= hottest - 1e-6,
            "{expected:?}"
        );
    }
    // Rank 2's only expert: exactly its frequency.
    assert!((expected.to_rank[2] - 2.0 / 6.0).abs() < 1e-7, "{expected:?}");
    // Distinct ranks: 2, less the sets that lie on one rank.
    let together: f64 = (0..3).map(|r| expected.selections[r] - expected.to_rank[r]).sum();
    assert!((expected.ranks - (2.0 - together)).abs() < 1e-9);
    // A hot expert makes its rank's links busier than the mean.
    let plan = plan(&topology, &hardware, &workload).unwrap();
    let t = &plan.dispatch.steps[0].traffic;
    assert!(t.busiest.of(Resource::NvlinkIn) > 1.2 * t.mean.of(Resource::NvlinkIn));
}

/// With one expert a rank, a rank is reached as often as its expert is selected, however uneven the loads are.
#[test]
fn uneven_histograms_reach_what_they_say() {
    let hardware = Hardware::named("h200", None).unwrap();
    let mut nine = [1.0; 9];
    nine[8] = 0.01;
    let cases: [(&[f64], u32); 6] = [
        (&[5.0, 1.0], 1),
        (&[2.0, 1.0], 1),
        (&[99.0, 1.0, 1.0], 1),
        (&nine, 8),
        (&[100.0, 100.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 2),
        (&[1e-9, 3.0, 2.0, 2.0], 2),
    ];
    for (loads, top_k) in cases {
        let ranks = loads.len() as u32;
        let topology = Topology::new(ranks, ranks).unwrap();
        let workload = Workload::new(LayerSizes { experts: ranks, top_k, hidden: 64, tokens: 16 })
            .with_routing(Routing::Histogram(loads.to_vec()));
        let expected = plan(&topology, &hardware, &workload).unwrap().expected;
        for (reached, selected) in expected.to_rank.iter().zip(&expected.selections) {
            assert!((reached - selected).abs() <= 1e-6 * selected, "{loads:?}, top-{top_k}: {expected:?}");
        }
    }
}

/// A row's pass over the network is in the model's latency and in the simulated row's way, and counted once.
#[test]
fn the_networks_latency_is_simulated_once() {
    let topology = Topology::new(64, 8).unwrap();
    let workload = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 128 });
    let beyond_the_model = |latency: f64| {
        let mut hardware = Hardware::named("h100", Some("cx7")).unwrap();
        hardware.nic.as_mut().unwrap().latency.value = latency;
        let report = simulate(&topology, &hardware, &workload, &Scenario::new(1)).unwrap();
        [report.dispatch, report.combine].map(|phase| phase.seconds - phase.model)
    };
    for (near, far) in beyond_the_model(0.0).into_iter().zip(beyond_the_model(1e-3)) {
        assert!((far - near).abs() < 3e-6, "{near} s, then {far} s");
    }
}

/// Simulates a dispatch and its combine on nodes of 8.
fn run(ranks: u32, tokens: u32, scenario: &Scenario) -> Report {
    let topology = Topology::new(ranks, ranks.min(8)).unwrap();
    let hardware = Hardware::named("h100", Some("cx7")).unwrap();
    simulate(
        &topology,
        &hardware,
        &Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens }),
        scenario,
    )
    .unwrap()
}

/// What a report has to say of a calm run in which tokens go where the model expects them.
fn agrees_with_the_model(report: &Report, what: &dyn std::fmt::Debug) {
    for phase in [report.dispatch, report.combine] {
        let off = phase.seconds / phase.model - 1.0;
        assert!((-0.02..0.12).contains(&off), "{what:?}: {off} in {phase:?}");
        // The model adds a pass over the network to what a queue takes that may be at work meanwhile: EFA's is the longest.
        assert!(phase.queueing >= -10e-6 - 1e-9, "{phase:?}");
    }
}

#[test]
fn even_routing_takes_what_the_model_says() {
    for ranks in [2, 8, 16, 64] {
        let report = run(ranks, 2048, &Scenario::new(7));
        agrees_with_the_model(&report, &ranks);
        assert!((report.ranks_per_token - distinct_groups(256, 8, ranks)).abs() < 0.02);
    }
}

/// Whatever binds: SMs, links, rails, messages, memory; in even and in uneven domains, with ranks alone on their GPUs or not.
#[test]
fn the_simulation_agrees_with_the_model_on_every_machine() {
    let mut bound = std::collections::HashSet::new();
    for (sizes, per_gpu) in
        [(vec![8, 8], 1), (vec![8, 2], 1), (vec![4, 2, 6], 2), (vec![3, 1], 1), (vec![8], 8), (vec![4, 4], 4)]
    {
        let topology = Topology::of_domains(&sizes).unwrap().with_ranks_per_gpu(per_gpu).unwrap();
        for (nic, hidden, format, sms) in [
            ("cx7", 7168, WireFormat::Bf16, None),
            ("cx8", 7168, WireFormat::Fp8, None),
            ("cx8", 7168, WireFormat::Bf16, Some(2)),
            ("cx8", 7168, WireFormat::Fp8, Some(1)),
            ("efa", 256, WireFormat::Bf16, None),
        ] {
            // Beside such short rows, a GPU's memory has indices and counts to move, which are not simulated.
            if hidden == 256 && sizes.len() == 1 {
                continue;
            }
            let hardware = Hardware::named("h200", Some(nic)).unwrap();
            let workload =
                Workload::new(LayerSizes { experts: 252, top_k: 8, hidden, tokens: 4096 }).with_format(format);
            let mut scenario = Scenario::new(3);
            scenario.num_sms = sms;
            let report = simulate(&topology, &hardware, &workload, &scenario).unwrap();
            agrees_with_the_model(&report, &(&sizes, per_gpu, nic, format, sms));
            bound.extend([report.dispatch.resource, report.combine.resource]);
        }
    }
    for resource in [Resource::SmRead, Resource::SmWrite, Resource::Hbm, Resource::RdmaOut, Resource::Messages] {
        assert!(bound.contains(&resource), "{resource:?} never bound: {bound:?}");
    }
}

/// The gate's own law is drawn from, also where it leaves a link without traffic.
#[test]
fn a_histogram_is_simulated_as_it_is_planned() {
    let hardware = Hardware::named("h200", Some("cx7")).unwrap();
    let loads = (0..256).map(|e| f64::from(e % 7 + e / 64)).collect();
    let workload = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 2048 })
        .with_routing(Routing::Histogram(loads));
    let report = simulate(&Topology::new(16, 8).unwrap(), &hardware, &workload, &Scenario::new(5)).unwrap();
    agrees_with_the_model(&report, &"uneven loads");
    let far = Workload::new(LayerSizes { experts: 4, top_k: 1, hidden: 7168, tokens: 2048 })
        .with_routing(Routing::Histogram(vec![0.0, 0.0, 1.0, 1.0]));
    let topology = Topology::of_domains(&[2, 1, 1]).unwrap();
    let report = simulate(&topology, &hardware, &far, &Scenario::new(5)).unwrap();
    agrees_with_the_model(&report, &"no token stays in the first domain");
    // Another draw than the model's: rows cross a link of which the model knows nothing.
    let other = simulate(&topology, &hardware, &far, &Scenario::new(5).with_draw(Draw::Uniform)).unwrap();
    assert!(other.dispatch.seconds < 2.0 * report.dispatch.seconds, "{other:?}");
}

#[test]
fn the_busiest_queue_is_a_bound_and_one_seed_is_one_run() {
    replay::law(
        module_path!(),
        "the_busiest_queue_is_a_bound_and_one_seed_is_one_run",
        20,
        (1u64.., 0..3u32, 0.0..2.0f64),
        |(seed, draw, exponent)| {
            let draw = match draw {
                0 => Draw::Uniform,
                1 => Draw::Zipf { exponent },
                _ => Draw::OneHot { expert: (seed % 256) as u32 },
            };
            let scenario = Scenario::new(seed).with_draw(draw).with_skew(exponent * 1e-4);
            let report = run(16, 64, &scenario);
            require(report == run(16, 64, &scenario), || "another run, other times".into())?;
            for phase in [report.dispatch, report.combine] {
                // The pass over the network that the model adds, 5 us of a ConnectX-7, may be hidden here.
                require(phase.queueing >= -5e-6 - 1e-9, || format!("{phase:?}"))?;
                require(phase.disturbance >= -1e-9, || format!("{phase:?}"))?;
            }
            Ok(())
        },
    );
}

#[test]
fn what_goes_wrong_is_named() {
    let calm = run(32, 512, &Scenario::new(3));
    let hot = run(32, 512, &Scenario::new(3).with_draw(Draw::OneHot { expert: 41 }));
    assert!(hot.dispatch.imbalance > 0.2 * calm.dispatch.seconds && hot.row_imbalance > 1.5, "{hot:?}");
    // Expert 41 of 256 is on rank 5 of 32: the busiest queue is at its domain.
    assert!(hot.dispatch.rank < 8, "{hot:?}");
    let zipf = run(32, 512, &Scenario::new(3).with_draw(Draw::Zipf { exponent: 1.0 }));
    assert!(zipf.row_imbalance > calm.row_imbalance + 0.5 && zipf.dispatch.imbalance > 0.0, "{zipf:?}");
    let incast = run(32, 512, &Scenario::new(3).with_order(SendOrder::InTurn));
    assert!(incast.dispatch.queueing > 2.0 * calm.dispatch.queueing.max(1e-6), "{incast:?}\n{calm:?}");
    assert!((incast.dispatch.busiest / calm.dispatch.busiest - 1.0).abs() < 1e-6);
    let late = run(32, 512, &Scenario::new(3).with_skew(300e-6));
    assert!(late.dispatch.disturbance > 100e-6 && late.dispatch.disturbance <= 301e-6, "{late:?}");
    let slow = run(32, 512, &Scenario::new(3).with_straggler(9, 3.0));
    assert!(slow.dispatch.disturbance > 1.5 * calm.dispatch.busiest, "{slow:?}\n{calm:?}");
    assert_eq!(slow.dispatch.busiest, calm.dispatch.busiest);
}

#[test]
fn ranks_of_one_gpu_share_its_memory_in_the_simulation_too() {
    let topology = Topology::new(8, 8).unwrap().with_ranks_per_gpu(8).unwrap();
    let hardware = Hardware::named("h200", None).unwrap();
    let report = simulate(
        &topology,
        &hardware,
        &Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 1024 }),
        &Scenario::new(1),
    )
    .unwrap();
    for phase in [report.dispatch, report.combine] {
        assert_eq!(phase.resource, Resource::Hbm);
        assert!((phase.seconds / phase.model - 1.0).abs() < 0.15, "{phase:?}");
    }
}

#[test]
fn quantising_binds_where_a_token_has_few_copies() {
    let topology = Topology::new(2, 2).unwrap();
    let mut hardware = Hardware::named("h200", None).unwrap();
    let bf16 = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 4096 });
    let fp8 = bf16.clone().with_format(WireFormat::Fp8);
    let options = PlanOptions::new().with_num_sms(4);
    let binding = |workload| *plan_with(&topology, &hardware, workload, &options).unwrap().dispatch.binding();
    assert_eq!(binding(&bf16).resource, Resource::SmWrite);
    assert_eq!(binding(&fp8).resource, Resource::SmRead);
    assert_eq!(binding(&fp8).bytes, 4096.0 * 7168.0 * 2.0);
    assert!((binding(&fp8).rate / (4.0 * hardware.gpu.sm_quantize.value) - 1.0).abs() < 1e-9);
    // So slow that all SMs of the device are not enough; the simulation takes as long as the model.
    hardware.set("gpu.sm_quantize", 1.0, "a test").unwrap();
    let report = simulate(&topology, &hardware, &fp8, &Scenario::new(1)).unwrap();
    let phase = report.dispatch;
    assert_eq!(phase.resource, Resource::SmRead, "{phase:?}");
    assert!((phase.seconds / phase.model - 1.0).abs() < 0.02, "{phase:?}");
}

/// The largest that a plan takes; `cargo bench --bench plan` times it.
#[test]
fn two_thousand_ranks_fit_in_a_gibibyte() {
    let topology = Topology::new(2048, 8).unwrap();
    let hardware = Hardware::named("h100", Some("cx7")).unwrap();
    let workload = Workload::new(LayerSizes { experts: 2048, top_k: 8, hidden: 7168, tokens: 1024 });
    let report = simulate(&topology, &hardware, &workload, &Scenario::new(1)).unwrap();
    assert!(report.dispatch.events > 4_000_000, "{report:?}");
    assert!((report.dispatch.seconds / report.dispatch.model - 1.0).abs() < 0.2, "{report:?}");
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 1 << 20, "{kib} KiB");
    }
}

#[test]
fn bad_scenarios_name_the_field_the_value_and_the_rule() {
    let topology = Topology::new(8, 8).unwrap();
    let hardware = Hardware::named("h200", None).unwrap();
    let workload = Workload::new(LayerSizes { experts: 16, top_k: 2, hidden: 64, tokens: 8 });
    let fails =
        |workload: &Workload, s: Scenario| simulate(&topology, &hardware, workload, &s).unwrap_err().to_string();
    let scenario = Scenario::new(1);
    for (got, want) in [
        (fails(&workload, scenario.clone().with_skew(-1.0)), "skew = -1"),
        (fails(&workload, scenario.clone().with_skew(1e302)), "at 0 to 60 s"),
        (fails(&workload, scenario.clone().with_skew(f64::NAN)), "skew = NaN"),
        (fails(&workload, scenario.clone().with_straggler(1, 1e308)), "at most 1000000"),
        (fails(&workload, scenario.clone().with_straggler(8, 2.0)), "straggler = rank 8: there are 8 ranks"),
        (fails(&workload, scenario.clone().with_straggler(1, 0.5)), "straggler = 0.5"),
        (fails(&workload, scenario.clone().with_draw(Draw::Zipf { exponent: -1.0 })), "exponent = -1"),
        (fails(&workload, scenario.clone().with_draw(Draw::OneHot { expert: 16 })), "expert = 16: there are 16"),
        (fails(&workload.clone().with_layout(RowLayout::Slab), scenario.clone()), "layout = Slab"),
        (
            fails(&Workload::new(LayerSizes { experts: 16, top_k: 2, hidden: 64, tokens: 0 }), scenario.clone()),
            "tokens = 0",
        ),
    ] {
        assert!(got.contains(want), "{got}\ninstead of\n{want}");
    }
}
