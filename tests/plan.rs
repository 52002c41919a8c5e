//! The planner: the check values of DeepEP V2's arithmetic, the laws of our model, and that its bytes are what a buffer takes.
mod support;

use epoxide::plan::deepep::{Buffer, Setup, Warps, workspace_bytes};
use epoxide::plan::{
    Basis, Capacity, Gpu, Hardware, Nic, Plan, PlanOptions, Protocol, Resource, Routing, RowLayout, Topology, Workload,
    distinct_groups, plan, plan_with,
};
use epoxide::{Config, ElasticBuffer, Error, WireFormat, bytes_needed};
use proptest::prelude::*;
use support::laws::{regions_lie_well, require};
use support::{Device, replay};

const MIB: u64 = 1 << 20;

/// What DeepEP's README and its users report.
#[test]
fn deepep_sm_counts_are_its_own() {
    let h100 = Gpu::named("h100").unwrap().nvlink();
    let h800 = Gpu::named("h800").unwrap().nvlink();
    let b200 = Gpu::named("b200").unwrap().nvlink();
    assert_eq!((h100 / 1e9).round(), 430.0);
    assert_eq!((h800 / 1e9).round(), 191.0);
    assert_eq!((b200 / 1e9).round(), 810.0);
    for (ranks, per_domain, nvlink, rdma, device, want) in [
        (16, 8, h100, 50e9, 132, 12),
        (32, 8, h100, 50e9, 132, 6),
        (64, 8, h100, 50e9, 132, 4),
        (8, 8, h100, 0.0, 132, 14),
        (8, 8, 430e9, 0.0, 132, 14),
        (8, 8, h800, 0.0, 132, 6),
        (8, 8, 191e9, 0.0, 132, 6),
        (2, 2, h100, 0.0, 132, 22),
        (4, 4, h100, 0.0, 132, 16),
        (8, 8, b200, 0.0, 148, 24),
    ] {
        let mut setup = Setup::new(ranks, per_domain, 256, 8, nvlink, rdma, device);
        assert_eq!(setup.num_sms().unwrap(), want, "{setup:?}");
        setup.prefer_overlap = false;
        assert_eq!(setup.num_sms().unwrap(), want.max(64), "{setup:?}");
    }
    // Through the planner, with the built-in hardware.
    for (gpu, nic, ranks, want) in [
        ("h100", Some("cx7"), 16, 12),
        ("h100", Some("cx7"), 32, 6),
        ("h100", Some("cx7"), 64, 4),
        ("b200", None, 8, 24),
    ] {
        let hardware = Hardware::named(gpu, nic).unwrap();
        let options = PlanOptions::new().with_protocol(Protocol::DeepEpV2);
        let workload = Workload::new(8192, 7168, 8, 256).with_format(WireFormat::Fp8);
        let plan = plan_with(&Topology::new(ranks, 8).unwrap(), &hardware, &workload, &options).unwrap();
        assert_eq!(plan.num_sms, want);
        assert_eq!(plan.num_qps, if ranks == 8 { 0 } else { 129.min(16 * want + 1) });
    }
    let setup = Setup::new(16, 8, 256, 8, h100, 50e9, 132);
    assert_eq!((setup.num_qps(4, 129), setup.num_qps(12, 129)), (65, 129));
    assert_eq!(Setup::new(8, 8, 256, 8, h100, 0.0, 132).num_qps(14, 17), 9);
}

/// Section 4: warps and channels for hidden 7168 and top-8 on an H100.
#[test]
fn deepep_warps_and_channels_are_its_own() {
    let shared = Gpu::named("h100").unwrap().shared_memory.value as u64;
    let of = |fp8| {
        let w = Warps::new(&Buffer::new(4096, 7168, 8, fp8, 1, 8), 256, shared);
        [w.dispatch, w.copy, w.combine, w.reduce, w.channels]
    };
    assert_eq!(of(false), [15, 16, 16, 16, 7]);
    assert_eq!(of(true), [28, 30, 16, 16, 8]);
}

/// Sections 2.3, 3.1 and 3.2.
#[test]
fn deepep_bytes_are_its_own() {
    let bf16 = Buffer::new(4096, 7168, 8, false, 1, 8);
    let fp8 = Buffer::new(4096, 7168, 8, true, 1, 8);
    assert_eq!(bf16.dispatch_record(bf16.scales()), 14464);
    assert_eq!(fp8.dispatch_record(fp8.scales()), 7520);
    assert_eq!(fp8.dispatch_record(7168 / 128 / 4), 7360);
    assert_eq!(bf16.combine_record(), 14400);
    for (tokens, fp8, nodes, want) in [
        (4096, false, 1, 452 * MIB),
        (8192, true, 1, 900 * MIB),
        (8192, true, 2, 2286 * MIB),
        (8192, true, 4, 4572 * MIB),
        (8192, true, 8, 9142 * MIB),
        (128, true, 1, 16 * MIB),
        (4096, false, 2, 1_218_445_312),
    ] {
        let bytes = Buffer::new(tokens, 7168, 8, fp8, nodes, 8).bytes().unwrap();
        assert_eq!(bytes.buffer, want, "{tokens} tokens on {nodes} nodes");
        if (tokens, nodes) != (4096, 1) {
            assert!(bytes.combine.iter().sum::<u64>() > bytes.dispatch.iter().sum());
        }
    }
    assert_eq!(workspace_bytes(), 12_820_528);
    assert_eq!(bf16.bytes().unwrap().workspace, 14 * MIB);
}

#[derive(Clone, Debug)]
struct Case {
    topology: Topology,
    hardware: Hardware,
    workload: Workload,
}

impl Case {
    fn plan(&self, options: &PlanOptions) -> Result<Plan, String> {
        plan_with(&self.topology, &self.hardware, &self.workload, options).map_err(|e| format!("{e}: {self:?}"))
    }
}

fn routing(experts: u32) -> impl Strategy<Value = Routing> {
    let groups: Vec<u32> = (1..=experts).filter(|g| experts.is_multiple_of(*g)).collect();
    let limited = (0..groups.len(), 0.0..1.0f64).prop_map(move |(g, share)| Routing::GroupLimited {
        groups: groups[g],
        limit: 1 + (share * f64::from(groups[g] - 1)) as u32,
    });
    prop_oneof![Just(Routing::Uniform), limited]
}

fn cases() -> impl Strategy<Value = Case> {
    let gpu = (0..Gpu::names().len(), 0..Nic::names().len());
    let layout = prop_oneof![
        Just(RowLayout::Compact),
        (1..=256u32).prop_map(|alignment| RowLayout::Expand { alignment }),
        Just(RowLayout::Slab)
    ];
    let sizes = prop_oneof![
        (1..=12u32, 1..=12usize).prop_map(|(size, domains)| vec![size * 2; domains]),
        proptest::collection::vec(1..=12u32, 1..=5).prop_map(|s| s.into_iter().map(|s| s * 2).collect()),
    ];
    let numbers = (1..=20_000u32, 1..=900u32, 1..=32u32, 1..=512u32, 1.0..4.0f64);
    (gpu, sizes, 1..=2u32, layout, any::<bool>(), numbers).prop_flat_map(
        |(gpu, sizes, per_gpu, layout, fp8, (tokens, sixteens, top_k, experts, imbalance))| {
            routing(experts).prop_map(move |routing| {
                let available = match routing {
                    Routing::GroupLimited { groups, limit } => limit * (experts / groups),
                    _ => experts,
                };
                let format = if fp8 { WireFormat::Fp8 } else { WireFormat::Bf16 };
                Case {
                    topology: Topology::of_domains(&sizes).unwrap().with_ranks_per_gpu(per_gpu).unwrap(),
                    hardware: Hardware::named(&Gpu::names()[gpu.0], Some(&Nic::names()[gpu.1])).unwrap(),
                    workload: Workload::new(tokens, sixteens * 16, top_k.min(available), experts)
                        .with_format(format)
                        .with_layout(layout)
                        .with_routing(routing)
                        .with_imbalance(imbalance),
                }
            })
        },
    )
}

#[test]
fn more_of_anything_never_takes_less() {
    let pairs = (cases(), 0..3u32, 1..40u32, prop_oneof![Just(None), (1..=32u32).prop_map(Some)]);
    replay::law(module_path!(), "more_of_anything_never_takes_less", 600, pairs, |(case, what, step, sms)| {
        let mut more = case.clone();
        match what {
            0 => more.workload.tokens += step,
            1 => more.workload.hidden += 16 * step,
            _ => more.workload.top_k = (more.workload.top_k + 1).min(32),
        }
        let available = match more.workload.routing {
            Routing::GroupLimited { groups, limit } => limit * (more.workload.experts / groups),
            _ => more.workload.experts,
        };
        more.workload.top_k = more.workload.top_k.min(available);
        let options = sms.map_or_else(PlanOptions::new, |n| PlanOptions::new().with_num_sms(n));
        let (less, more) = (case.plan(&options)?, more.plan(&options)?);
        for (name, a, b) in [
            ("dispatch", less.dispatch.seconds, more.dispatch.seconds),
            ("combine", less.combine.seconds, more.combine.seconds),
        ] {
            require(b >= a * (1.0 - 1e-9), || format!("{name}: {a} s, then {b} s"))?;
        }
        for r in Resource::ALL {
            for (a, b) in [(&less.dispatch, &more.dispatch), (&less.combine, &more.combine)] {
                let (a, b) = (a.steps[0].traffic.busiest.of(r), b.steps[0].traffic.busiest.of(r));
                require(b >= a * (1.0 - 1e-9), || format!("{}: {a}, then {b}", r.name()))?;
            }
        }
        require(more.bytes.window >= less.bytes.window, || "the window shrinks".into())?;
        // Fewer SMs need fewer counters of blocks; at the same number nothing shrinks.
        require(sms.is_none() || more.bytes.private >= less.bytes.private, || "private memory shrinks".into())
    });
}

#[test]
fn a_plan_fits_its_device() {
    let options = (cases(), any::<bool>());
    replay::law(module_path!(), "a_plan_fits_its_device", 600, options, |(mut case, deepep)| {
        let mut options = PlanOptions::new();
        if deepep {
            // What DeepEP V2 takes: equal domains and as many experts on every rank.
            let size = case.topology.largest();
            case.topology = Topology::new(size * case.topology.domains(), size).map_err(|e| e.to_string())?;
            case.workload.routing = Routing::Uniform;
            case.workload.experts = case.topology.ranks() * (1 + 512 / case.topology.ranks());
            options = options.with_protocol(Protocol::DeepEpV2).with_many_sms();
        }
        let plan = case.plan(&options)?;
        let device = case.hardware.gpu.sms.value as u32;
        let per_gpu = case.topology.ranks_per_gpu();
        require((1..=device).contains(&plan.num_sms), || format!("{} SMs", plan.num_sms))?;
        require(plan.num_sms * per_gpu <= device, || format!("{per_gpu} ranks of {} SMs", plan.num_sms))?;
        require((plan.num_qps > 0) == (case.topology.domains() > 1), || format!("{} QPs", plan.num_qps))?;
        for phase in [&plan.dispatch, &plan.combine] {
            for step in &phase.steps {
                let longest = step.resources.iter().map(|r| r.seconds).fold(0.0, f64::max);
                require(step.resources[0].seconds == longest, || format!("{:?} does not bind", step.resources[0]))?;
                require((step.seconds - longest - step.latency).abs() < 1e-12, || format!("{step:?}"))?;
                for r in Resource::ALL {
                    let (mean, busiest) = (step.traffic.mean.of(r), step.traffic.busiest.of(r));
                    require(mean <= busiest * (1.0 + 1e-9), || format!("{}: {mean} of {busiest}", r.name()))?;
                }
            }
            let sum: f64 = phase.steps.iter().map(|s| s.seconds).sum();
            require((sum - phase.seconds).abs() < 1e-12, || "steps do not sum up".into())?;
        }
        // What leaves one rank arrives at another.
        for phase in [&plan.dispatch, &plan.combine] {
            let mean = &phase.steps[0].traffic.mean;
            for (out, into) in [(Resource::NvlinkOut, Resource::NvlinkIn), (Resource::RdmaOut, Resource::RdmaIn)] {
                let (out, into) = (mean.of(out), mean.of(into));
                require((out - into).abs() <= out.max(1.0) * 1e-9, || format!("{out} out, {into} in"))?;
            }
        }
        Ok(())
    });
}

/// With as many SMs as the planner says, SMs do not bind; with one fewer they do, where it was free to choose.
#[test]
fn as_many_sms_as_the_rest_needs() {
    replay::law(module_path!(), "as_many_sms_as_the_rest_needs", 300, cases(), |case| {
        let chosen = case.plan(&PlanOptions::new())?;
        let per_gpu = case.topology.ranks_per_gpu();
        let most = (case.hardware.gpu.sms.value as u32 - u32::from(per_gpu > 1)) / per_gpu;
        let excess = |plan: &Plan| {
            [&plan.dispatch, &plan.combine].map(|phase| {
                let time = |sm| {
                    let times = phase.steps[0].resources.iter().filter(|r| r.resource.is_sm() == sm);
                    times.map(|r| r.seconds).fold(0.0, f64::max)
                };
                time(true) / time(false)
            })
        };
        if chosen.num_sms < most {
            require(excess(&chosen).iter().all(|e| *e <= 1.0 + 1e-9), || format!("{:?}", excess(&chosen)))?;
        }
        if chosen.num_sms > 1 {
            let fewer = case.plan(&PlanOptions::new().with_num_sms(chosen.num_sms - 1))?;
            require(excess(&fewer).iter().any(|e| *e > 1.0), || format!("{} are too many", chosen.num_sms))?;
        }
        Ok(())
    });
}

#[test]
fn planned_regions_are_aligned_disjoint_and_inside() {
    replay::law(module_path!(), "planned_regions_are_aligned_disjoint_and_inside", 400, cases(), |case| {
        let bytes = case.plan(&PlanOptions::new())?.bytes;
        regions_lie_well(&bytes.regions, bytes.window, bytes.private)?;
        let table = bytes.to_string();
        require(table.contains(&bytes.total().to_string()), || table)
    });
}

#[test]
fn fewer_rows_take_fewer_bytes_and_all_rows_take_the_worst_case() {
    let topology = Topology::new(32, 8).unwrap();
    let hardware = Hardware::named("h200", Some("cx7")).unwrap();
    let workload = Workload::new(1024, 4096, 8, 256);
    let at = |capacity| plan(&topology, &hardware, &workload.clone().with_capacity(capacity)).unwrap().bytes;
    let worst = at(Capacity::WorstCase);
    assert_eq!(worst.basis, Basis::Projection);
    assert_eq!(at(Capacity::Rows(32 * 1024)), worst);
    assert_eq!(at(Capacity::Rows(u64::MAX)), worst);
    let received = |b: &epoxide::plan::PlannedBytes| {
        b.regions
            .iter()
            .filter(|r| r.name.starts_with("received rows") || r.name == "expert outputs")
            .map(|r| r.bytes)
            .sum::<u64>()
    };
    assert_eq!(received(&at(Capacity::Rows(1000))), 1000 * 2 * 8192);
    assert_eq!(received(&worst), 32 * 1024 * 2 * 8192);
}

/// A plan's regions are what `bytes_needed` says, and that is what a buffer allocates.
#[test]
fn a_buffer_takes_what_its_plan_says() {
    let device = Device::from_env();
    let mode = device.schedules([])[0];
    for format in [WireFormat::Bf16, WireFormat::Fp8] {
        let hardware = Hardware::named("h200", None).unwrap();
        let workload = Workload::new(7, 48, 3, 9).with_format(format);
        let options = PlanOptions::new().with_num_sms(2);
        let planned = plan_with(&Topology::new(4, 4).unwrap(), &hardware, &workload, &options).unwrap();
        assert_eq!(planned.bytes.basis, Basis::Exact);
        let checked = device.check(4, mode, |comm| {
            let buffer = ElasticBuffer::new(&comm, workload.config(planned.num_sms))?;
            let bytes = buffer.bytes()?;
            buffer.close()?;
            Ok(require(bytes.regions == planned.bytes.regions && bytes.total() == planned.bytes.total(), || {
                format!("{bytes}\ninstead of\n{}", planned.bytes)
            }))
        });
        checked.unwrap();
    }
    replay::law(module_path!(), "a_buffer_takes_what_its_plan_says", 200, cases(), |mut case| {
        case.topology = Topology::new(case.topology.largest(), case.topology.largest()).map_err(|e| e.to_string())?;
        case.workload.layout = RowLayout::Compact;
        let planned = case.plan(&PlanOptions::new())?;
        let config: Config = case.workload.config(planned.num_sms);
        let needed = bytes_needed(&config, case.topology.ranks(), planned.num_sms).map_err(|e| e.to_string())?;
        require(needed.regions == planned.bytes.regions, || format!("{needed}\ninstead of\n{}", planned.bytes))?;
        require(needed.total() == planned.bytes.total() && !planned.projection, || "totals differ".into())
    });
}

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
        |(case, seed)| {
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
    let workload = Workload::new(16, 64, 2, 6).with_routing(Routing::Histogram(loads.to_vec()));
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

#[test]
fn links_and_memory_are_separate_resources() {
    let hardware = Hardware::named("h200", None).unwrap();
    let workload = Workload::new(4096, 7168, 8, 256);
    let eight = Topology::new(8, 8).unwrap();
    let linked = plan(&eight, &hardware, &workload).unwrap();
    for phase in [&linked.dispatch, &linked.combine] {
        assert!(matches!(phase.binding().resource, Resource::NvlinkOut | Resource::NvlinkIn), "{:?}", phase.binding());
    }
    let one = eight.with_ranks_per_gpu(8).unwrap();
    let shared = plan(&one, &hardware, &workload).unwrap();
    for phase in [&shared.dispatch, &shared.combine] {
        assert_eq!(phase.binding().resource, Resource::Hbm);
        assert_eq!(phase.bandwidth.nvlink, 0.0);
    }
    assert!((distinct_groups(256, 8, 8) - shared.expected.ranks).abs() < 1e-12);
}

#[test]
fn bad_input_names_the_field_the_value_and_the_rule() {
    let topology = Topology::new(16, 8).unwrap();
    let hardware = Hardware::named("h100", Some("cx7")).unwrap();
    let good = Workload::new(128, 7168, 8, 256);
    let fails = |workload: Workload| plan(&topology, &hardware, &workload).unwrap_err().to_string();
    let deepep = |workload: &Workload, topology: &Topology| {
        let options = PlanOptions::new().with_protocol(Protocol::DeepEpV2);
        plan_with(topology, &hardware, workload, &options).unwrap_err().to_string()
    };
    let uneven = Topology::of_domains(&[8, 4]).unwrap();
    let no_nic = Hardware::named("h100", None).unwrap();
    let options = PlanOptions::new;
    let with = |options: PlanOptions| plan_with(&topology, &hardware, &good, &options).unwrap_err().to_string();
    let mut far = Vec::from([0.0; 256]);
    far[7] = 1.0;
    for (got, want) in [
        (fails(Workload::new(0, 7168, 8, 256)), "tokens = 0: a rank has 1 to 16777215 tokens"),
        (fails(Workload::new(128, 0, 8, 256)), "hidden = 0: a row has 1 to 1048576 elements"),
        (fails(Workload::new(128, 7168, 8, 4)), "top_k = 8: a token cannot select more than the 4 experts"),
        (fails(Workload::new(128, 7168, 8, 4096)), "experts = 4096: there are 1 to 2048 experts"),
        (fails(Workload::new(128, 1 << 20, 8, 256)), "hidden = 1048576: a row must fit in the 232448 bytes"),
        (fails(good.clone().with_imbalance(0.5)), "imbalance = 0.5: the busiest rank over the mean is at least 1"),
        (fails(good.clone().with_imbalance(f64::NAN)), "imbalance = NaN"),
        (fails(good.clone().with_capacity(Capacity::Rows(0))), "capacity = 0"),
        (fails(good.clone().with_layout(RowLayout::Expand { alignment: 0 })), "alignment = 0"),
        (fails(good.clone().with_routing(Routing::GroupLimited { groups: 7, limit: 1 })), "groups = 7"),
        (fails(good.clone().with_routing(Routing::GroupLimited { groups: 8, limit: 9 })), "group_limit = 9"),
        (fails(good.clone().with_routing(Routing::GroupLimited { groups: 64, limit: 1 })), "top_k = 8: 1 of 64 groups"),
        (fails(good.clone().with_routing(Routing::Histogram(vec![1.0]))), "histogram = 1 numbers"),
        (fails(good.clone().with_routing(Routing::Histogram(far))), "histogram = 1.0000: an expert has at most 1/8"),
        (fails(good.clone().with_routing(Routing::Histogram(vec![-1.0; 256]))), "histogram = -1: expert 0"),
        (Topology::new(0, 1).unwrap_err().to_string(), "ranks = 0: a plan has 1 to 2048 ranks"),
        (Topology::new(2049, 1).unwrap_err().to_string(), "ranks = 2049"),
        (Topology::new(8, 0).unwrap_err().to_string(), "per_domain = 0"),
        (Topology::new(20, 8).unwrap_err().to_string(), "per_domain = 8: whole domains must cover the 20 ranks"),
        (Topology::of_domains(&[]).unwrap_err().to_string(), "ranks = 0"),
        (Topology::of_domains(&[8, 0]).unwrap_err().to_string(), "domains = [8, 0]: domain 1 has no rank"),
        (Topology::of_domains(&[u32::MAX, u32::MAX]).unwrap_err().to_string(), "ranks = 8589934590"),
        (Topology::new(8, 8).unwrap().with_ranks_per_gpu(3).unwrap_err().to_string(), "ranks_per_gpu = 3"),
        (Topology::new(8, 8).unwrap().with_nics_per_gpu(0).unwrap_err().to_string(), "nics_per_gpu = 0"),
        (Gpu::named("h300").unwrap_err().to_string(), "gpu = h300: known GPUs are H100, H800, H200, H20, B200, GB200"),
        (Nic::named("cx9").unwrap_err().to_string(), "nic = cx9: known NICs are CX6, CX7, CX8, EFA"),
        (plan(&topology, &no_nic, &good).unwrap_err().to_string(), "nic = none: 2 NVLink domains need a NIC"),
        (
            no_nic.clone().set("nic.latency", 1.0, "x").unwrap_err().to_string(),
            "key = nic.latency: known keys are gpu.sms",
        ),
        (no_nic.clone().set("gpu.hbm", f64::NAN, "x").unwrap_err().to_string(), "gpu.hbm = NaN: a number from"),
        (with(options().with_num_sms(0)), "num_sms = 0"),
        (with(options().with_num_sms(133)), "num_sms = 133: 132 of an operation's SMs fit"),
        (with(options().with_allocated_qps(0)), "allocated_qps = 0"),
        (deepep(&good, &uneven), "domains"),
        (deepep(&Workload::new(128, 7168, 8, 250), &topology), "experts = 250: DeepEP V2"),
    ] {
        assert!(got.contains(want), "{got}\ninstead of\n{want}");
    }
    assert!(matches!(Gpu::named("x"), Err(Error::InvalidArgument { argument: "gpu", .. })));
    assert!(Nic::named("ConnectX-7").is_ok() && Gpu::named("gb-200").is_ok());
}

/// From 2 ranks to 2048, and the largest numbers that are allowed: no overflow, no nonsense.
#[test]
fn every_scale_has_a_plan() {
    for ranks in [1, 2, 8, 64, 72, 1024, 2048] {
        for (tokens, hidden, top_k, experts) in [(1, 16, 1, 1), (4096, 7168, 8, 256), ((1 << 24) - 1, 65_536, 32, 2048)]
        {
            let topology = Topology::new(ranks, if ranks % 8 == 0 { 8 } else { ranks }).unwrap();
            let hardware = Hardware::named("b200", Some("cx8")).unwrap();
            let workload = Workload::new(tokens, hidden, top_k, experts);
            let plan = plan(&topology, &hardware, &workload).unwrap();
            for seconds in [plan.dispatch.seconds, plan.combine.seconds] {
                assert!(seconds.is_finite() && seconds > 1e-6, "{ranks} ranks: {seconds} s");
            }
            assert!(plan.bytes.total() > u64::from(tokens) * u64::from(hidden));
        }
    }
}

mod at_scale {
    use super::*;
    use epoxide::plan::simulate::{Draw, Report, Scenario, SendOrder, simulate};

    fn run(ranks: u32, tokens: u32, scenario: &Scenario) -> Report {
        let topology = Topology::new(ranks, ranks.min(8)).unwrap();
        let hardware = Hardware::named("h100", Some("cx7")).unwrap();
        simulate(&topology, &hardware, &Workload::new(tokens, 7168, 8, 256), scenario).unwrap()
    }

    #[test]
    fn even_routing_takes_what_the_model_says() {
        for ranks in [2, 8, 16, 64] {
            let report = run(ranks, 2048, &Scenario::new(7));
            for phase in [report.dispatch, report.combine] {
                let off = phase.seconds / phase.model - 1.0;
                assert!((-0.02..0.12).contains(&off), "{ranks} ranks: {off} in {phase:?}");
                assert_eq!(phase.disturbance, 0.0);
                assert!(phase.queueing >= -1e-9, "{phase:?}");
            }
            assert!((report.ranks_per_token - distinct_groups(256, 8, ranks)).abs() < 0.02);
        }
    }

    #[test]
    fn the_busiest_queue_is_a_bound_and_one_seed_is_one_run() {
        replay::law(
            module_path!(),
            "at_scale::the_busiest_queue_is_a_bound_and_one_seed_is_one_run",
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
                    let rest = phase.busiest + phase.queueing;
                    require(phase.queueing >= -1e-9, || format!("{phase:?}"))?;
                    require(phase.seconds >= rest + phase.disturbance, || format!("{phase:?}"))?;
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
        let report = simulate(&topology, &hardware, &Workload::new(1024, 7168, 8, 256), &Scenario::new(1)).unwrap();
        for phase in [report.dispatch, report.combine] {
            assert_eq!(phase.resource, Resource::Hbm);
            assert!((phase.seconds / phase.model - 1.0).abs() < 0.15, "{phase:?}");
        }
    }

    /// The largest that a plan takes; `cargo bench --bench plan` times it.
    #[test]
    fn two_thousand_ranks_fit_in_a_gibibyte() {
        let topology = Topology::new(2048, 8).unwrap();
        let hardware = Hardware::named("h100", Some("cx7")).unwrap();
        let workload = Workload::new(1024, 7168, 8, 2048);
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
        let workload = Workload::new(8, 64, 2, 16);
        let fails =
            |workload: &Workload, s: Scenario| simulate(&topology, &hardware, workload, &s).unwrap_err().to_string();
        let scenario = Scenario::new(1);
        for (got, want) in [
            (fails(&workload, scenario.clone().with_skew(-1.0)), "skew = -1"),
            (fails(&workload, scenario.clone().with_straggler(8, 2.0)), "straggler = 8: there are 8 ranks"),
            (fails(&workload, scenario.clone().with_straggler(1, 0.5)), "straggler = 0.5"),
            (fails(&workload, scenario.clone().with_draw(Draw::Zipf { exponent: -1.0 })), "exponent = -1"),
            (fails(&workload, scenario.clone().with_draw(Draw::OneHot { expert: 16 })), "expert = 16: there are 16"),
            (fails(&workload.clone().with_layout(RowLayout::Slab), scenario.clone()), "layout = Slab"),
            (fails(&Workload::new(0, 64, 2, 16), scenario.clone()), "tokens = 0"),
        ] {
            assert!(got.contains(want), "{got}\ninstead of\n{want}");
        }
    }
}
