//! The planner's model: its laws, its bytes, which are what a buffer takes, and what it refuses.
use crate::support;

use epoxide::plan::{
    Basis, Capacity, Gpu, Hardware, LayerSizes, Nic, Plan, PlanOptions, Protocol, Resource, Routing, RowLayout,
    Topology, Workload, distinct_groups, plan, plan_with,
};
use epoxide::{Config, ElasticBuffer, Error, WireFormat, bytes_needed};
use proptest::prelude::*;
use support::laws::{regions_lie_well, require};
use support::plans::{cases, most_selections};
use support::{Device, replay};

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
        let available = most_selections(&more.workload.routing, more.workload.experts);
        more.workload.top_k = more.workload.top_k.min(available);
        let options = sms.map_or_else(PlanOptions::new, |n| PlanOptions::new().with_num_sms(n));
        // The weights of a histogram are iterated until nine digits are right.
        let slack = if matches!(more.workload.routing, Routing::Histogram(_)) { 1e-6 } else { 1e-9 };
        let (less, more) = (case.plan(&options)?, more.plan(&options)?);
        for (name, a, b) in [
            ("dispatch", less.dispatch.seconds, more.dispatch.seconds),
            ("combine", less.combine.seconds, more.combine.seconds),
        ] {
            require(b >= a * (1.0 - slack), || format!("{name}: {a} s, then {b} s"))?;
        }
        for r in Resource::ALL {
            for (a, b) in [(&less.dispatch, &more.dispatch), (&less.combine, &more.combine)] {
                let (a, b) = (a.steps[0].traffic.busiest.of(r), b.steps[0].traffic.busiest.of(r));
                require(b >= a * (1.0 - slack), || format!("{}: {a}, then {b}", r.name()))?;
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
            if case.workload.layout == RowLayout::Slab {
                case.workload.layout = RowLayout::Compact;
            }
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

/// With as many SMs as the planner says, SMs take at most four fifths of what binds; with one fewer, more, where it was free to choose.
#[test]
fn as_many_sms_as_the_rest_needs() {
    replay::law(module_path!(), "as_many_sms_as_the_rest_needs", 300, cases(), |case| {
        let chosen = case.plan(&PlanOptions::new())?;
        let per_gpu = case.topology.ranks_per_gpu();
        let most = (case.hardware.gpu.sms.value as u32 - 1) / per_gpu;
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
            require(excess(&chosen).iter().all(|e| *e <= 0.8 + 1e-9), || format!("{:?}", excess(&chosen)))?;
        }
        if chosen.num_sms > 1 {
            let fewer = case.plan(&PlanOptions::new().with_num_sms(chosen.num_sms - 1))?;
            require(excess(&fewer).iter().any(|e| *e > 0.8), || format!("{} are too many", chosen.num_sms))?;
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
    let workload = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 4096, tokens: 1024 });
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
    assert_eq!(received(&at(Capacity::Rows(10_000))), 10_000 * 2 * 8192);
    assert_eq!(received(&worst), 32 * 1024 * 2 * 8192);
    // What a capacity can be held against, in every layout.
    let most = |layout, ranks| workload.clone().with_layout(layout).worst_case_rows(ranks);
    assert_eq!(most(RowLayout::Compact, 32), Some(32 * 1024));
    assert_eq!(most(RowLayout::Expand { alignment: 1 }, 32), Some(32 * 1024 * 8));
    assert_eq!(most(RowLayout::Expand { alignment: 100 }, 3), Some((3 * 1024 * 8 + 99 * 86) / 100 * 100));
    assert_eq!(most(RowLayout::Slab, 32), Some(32 * 1024 * 8));
    assert_eq!([most(RowLayout::Compact, 0), most(RowLayout::Expand { alignment: 0 }, 1)], [None; 2]);
}

/// A plan's regions are what `bytes_needed` says, and that is what a buffer allocates.
#[test]
fn a_buffer_takes_what_its_plan_says() {
    let device = Device::from_env();
    let mode = device.schedules([])[0];
    for format in [WireFormat::Bf16, WireFormat::Fp8] {
        let hardware = Hardware::named("h200", None).unwrap();
        for layout in [RowLayout::Compact, RowLayout::Expand { alignment: 8 }] {
            let workload = Workload::new(LayerSizes { experts: 9, top_k: 3, hidden: 48, tokens: 7 })
                .with_format(format)
                .with_layout(layout)
                .with_row_slots(if format == WireFormat::Fp8 { 2 } else { 1 });
            let options = PlanOptions::new().with_num_sms(2);
            let planned = plan_with(&Topology::new(4, 4).unwrap(), &hardware, &workload, &options).unwrap();
            assert_eq!(planned.bytes.basis, Basis::Exact);
            let checked = device.check(4, mode, |comm| {
                let buffer = ElasticBuffer::new(&comm, Config::for_workload(&workload, planned.num_sms))?;
                let bytes = buffer.bytes()?;
                buffer.close()?;
                Ok(require(bytes.regions == planned.bytes.regions && bytes.total() == planned.bytes.total(), || {
                    format!("{bytes}\ninstead of\n{}", planned.bytes)
                }))
            });
            checked.unwrap();
        }
    }
    let cases = (cases(), 1..=4u32);
    replay::law(module_path!(), "a_buffer_takes_what_its_plan_says", 200, cases, |(mut case, row_slots)| {
        case.workload.row_slots = row_slots;
        case.topology = Topology::new(case.topology.largest(), case.topology.largest()).map_err(|e| e.to_string())?;
        if case.workload.layout == RowLayout::Slab {
            case.workload.layout = RowLayout::Compact;
        }
        case.workload.imbalance = 1.0;
        let planned = case.plan(&PlanOptions::new())?;
        let config = Config::for_workload(&case.workload, planned.num_sms);
        let needed = bytes_needed(&config, case.topology.ranks(), planned.num_sms).map_err(|e| e.to_string())?;
        require(needed.regions == planned.bytes.regions, || format!("{needed}\ninstead of\n{}", planned.bytes))?;
        require(needed.total() == planned.bytes.total() && !planned.projection, || "totals differ".into())
    });
}

/// Rows that lie by expert cross the links as those by source do; what is more is moved where they lie. Without two experts of a rank
/// there is no more than the waits of a second half.
#[test]
fn rows_by_expert_cross_as_often_and_move_more() {
    let sms = prop_oneof![Just(None), (1..=32u32).prop_map(Some)];
    replay::law(module_path!(), "rows_by_expert_cross_as_often_and_move_more", 400, (cases(), sms), |(case, sms)| {
        let options = sms.map_or_else(PlanOptions::new, |n| PlanOptions::new().with_num_sms(n));
        let with = |layout| {
            let mut case = case.clone();
            case.workload.layout = layout;
            case.plan(&options)
        };
        let (compact, by_expert) = (with(RowLayout::Compact)?, with(RowLayout::Expand { alignment: 1 })?);
        let (few, many) = (&compact.combine.steps[0].traffic, &by_expert.combine.steps[0].traffic);
        for r in Resource::ALL {
            let (few, many) = (few.busiest.of(r), many.busiest.of(r));
            let linked = !matches!(r, Resource::SmRead | Resource::SmWrite | Resource::Hbm);
            let slack = few.max(1.0) * 1e-6;
            require(many >= few - slack, || format!("{}: {few}, by expert {many}", r.name()))?;
            require(!linked || many <= few + slack, || format!("{}: {few}, by expert {many}", r.name()))?;
        }
        let expected = &by_expert.expected;
        let several: f64 = expected.several.iter().sum();
        let further: f64 = expected.selections.iter().zip(&expected.to_rank).map(|(all, any)| all - any).sum();
        // A token that has a rank's experts several times has one row more, or more than one.
        require(further >= several - 1e-6, || format!("{several} ranks with several, {further} further rows"))?;
        require(by_expert.combine.seconds > compact.combine.seconds * (1.0 - 1e-6) || sms.is_none(), || {
            "faster".into()
        })?;
        // Where another rank's token has several rows they are summed, which is written; else nothing is.
        let [stored, sums] = [few, many].map(|traffic| traffic.mean.of(Resource::SmWrite));
        let summed = (sums - stored) / f64::from(case.workload.tokens) / case.workload.hidden as f64 / 2.0;
        let ranks = f64::from(case.topology.ranks());
        let of_others = several * (ranks - 1.0);
        require((summed * ranks - of_others).abs() < 1e-3 * ranks.max(of_others), || {
            format!("{summed} sums of a token, {several} ranks with several")
        })?;
        let built = case.topology.domains() == 1;
        require(by_expert.projection != built, || format!("projection: {}", by_expert.projection))
    });
}

#[test]
fn links_and_memory_are_separate_resources() {
    let hardware = Hardware::named("h200", None).unwrap();
    let workload = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 4096 });
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
    let good = Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 128 });
    let fails = |workload: Workload| plan(&topology, &hardware, &workload).unwrap_err().to_string();
    let deepep = |workload: &Workload, topology: &Topology| {
        let options = PlanOptions::new().with_protocol(Protocol::DeepEpV2);
        plan_with(topology, &hardware, workload, &options).unwrap_err().to_string()
    };
    // Also where the caller gives the SMs.
    let given = PlanOptions::new().with_protocol(Protocol::DeepEpV2).with_num_sms(8);
    let with_sms = plan_with(
        &topology,
        &hardware,
        &Workload::new(LayerSizes { experts: 250, top_k: 8, hidden: 7168, tokens: 128 }),
        &given,
    )
    .unwrap_err();
    let routed = |loads: Vec<f64>| good.clone().with_routing(Routing::Histogram(loads));
    let uneven = Topology::of_domains(&[8, 4]).unwrap();
    let no_nic = Hardware::named("h100", None).unwrap();
    let mut broken = hardware.clone();
    broken.gpu.sms.value = 0.0;
    let options = PlanOptions::new;
    let with = |options: PlanOptions| plan_with(&topology, &hardware, &good, &options).unwrap_err().to_string();
    let mut far = Vec::from([0.0; 256]);
    far[7] = 1.0;
    for (got, want) in [
        (
            fails(Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 7168, tokens: 0 })),
            "tokens = 0: a rank has 1 to 16777215 tokens",
        ),
        (
            fails(Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 0, tokens: 128 })),
            "hidden = 0: a row has 1 to 1048576 elements",
        ),
        (
            fails(Workload::new(LayerSizes { experts: 4, top_k: 8, hidden: 7168, tokens: 128 })),
            "top_k = 8: a token cannot select more than the 4 experts",
        ),
        (
            fails(Workload::new(LayerSizes { experts: 4096, top_k: 8, hidden: 7168, tokens: 128 })),
            "experts = 4096: there are 1 to 2048 experts",
        ),
        (
            fails(Workload::new(LayerSizes { experts: 256, top_k: 8, hidden: 1 << 20, tokens: 128 })),
            "hidden = 1048576: a row, 2097152 bytes, must fit in the 232448 bytes",
        ),
        (fails(good.clone().with_imbalance(0.5)), "imbalance = 0.5: the busiest rank over the mean is at least 1"),
        (fails(good.clone().with_imbalance(f64::NAN)), "imbalance = NaN"),
        (fails(good.clone().with_imbalance(1e300)), "imbalance = 1e300: the busiest rank has at most all rows"),
        (fails(good.clone().with_capacity(Capacity::Rows(0))), "capacity = 0"),
        (fails(good.clone().with_capacity(Capacity::Rows(9))), "capacity = 9: the busiest rank receives"),
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
        (
            Gpu::named("h300").unwrap_err().to_string(),
            "gpu = \"h300\": known GPUs are H100, H800, H200, H20, B200, GB200",
        ),
        (Nic::named("cx9").unwrap_err().to_string(), "nic = \"cx9\": known NICs are CX6, CX7, CX8, EFA"),
        (plan(&topology, &no_nic, &good).unwrap_err().to_string(), "nic = none: 2 NVLink domains need a NIC"),
        (
            no_nic.clone().set("nic.latency", 1.0, "x").unwrap_err().to_string(),
            "key = \"nic.latency\": known keys are gpu.sms",
        ),
        (no_nic.clone().set("gpu.hbm", f64::NAN, "x").unwrap_err().to_string(), "gpu.hbm = NaN: a number from"),
        (plan(&topology, &broken, &good).unwrap_err().to_string(), "gpu.sms = 0: a whole number from 1 to 1024"),
        (with(options().with_num_sms(0)), "num_sms = 0: an operation has 1 to 131 SMs"),
        (with(options().with_num_sms(133)), "num_sms = 133: an operation has 1 to 131 SMs on this GPU"),
        (with(options().with_allocated_qps(0)), "allocated_qps = 0"),
        (deepep(&good, &uneven), "domains"),
        (deepep(&good.clone().with_capacity(Capacity::Rows(9)), &topology), "capacity"),
        (deepep(&good.clone().with_layout(RowLayout::Slab), &topology), "layout = Slab"),
        (
            deepep(&Workload::new(LayerSizes { experts: 250, top_k: 8, hidden: 7168, tokens: 128 }), &topology),
            "experts = 250: DeepEP V2",
        ),
        (with_sms.to_string(), "experts = 250: DeepEP V2"),
        (fails(routed(vec![0.0; 256])), "histogram = 0: all loads together are more than 0"),
        (fails(routed(vec![1e308; 256])), "histogram = inf: all loads together"),
    ] {
        assert!(got.contains(want), "{got}\ninstead of\n{want}");
    }
    assert!(matches!(Gpu::named("x").map_err(Error::from), Err(Error::InvalidArgument { argument: "gpu", .. })));
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
            let workload = Workload::new(LayerSizes { experts, top_k, hidden, tokens });
            let plan = plan(&topology, &hardware, &workload).unwrap();
            for seconds in [plan.dispatch.seconds, plan.combine.seconds] {
                assert!(seconds.is_finite() && seconds > 1e-6, "{ranks} ranks: {seconds} s");
            }
            assert!(plan.bytes.total() > u64::from(tokens) * u64::from(hidden));
        }
    }
}

/// A rack is one domain, of more ranks than a buffer takes today.
#[test]
fn a_rack_of_72_is_one_domain() {
    let hardware = Hardware::named("gb200", None).unwrap();
    let topology = Topology::new(72, 72).unwrap();
    for format in [WireFormat::Bf16, WireFormat::Fp8] {
        let workload =
            Workload::new(LayerSizes { experts: 288, top_k: 8, hidden: 7168, tokens: 4096 }).with_format(format);
        let plan = plan(&topology, &hardware, &workload).unwrap();
        assert_eq!((plan.bytes.basis, plan.num_qps), (Basis::Projection, 0));
        assert!(plan.bytes.total() > 72 * 4096 * 7168 * 3 && plan.dispatch.seconds > 1e-5);
    }
    // What does not fit is still said.
    let wide = Workload::new(LayerSizes { experts: 288, top_k: 8, hidden: 1 << 20, tokens: 16 });
    let error = plan(&topology, &hardware, &wide).unwrap_err().to_string();
    assert!(error.starts_with("hidden = 1048576: a row, 2097152 bytes, must fit in the 232448 bytes"), "{error}");
}
