//! Random cases for the planner.
use epoxide::WireFormat;
use epoxide::plan::{
    Gpu, Hardware, LayerSizes, Nic, Plan, PlanOptions, Routing, RowLayout, Topology, Workload, plan_with,
};
use proptest::prelude::*;

/// What is planned.
#[derive(Clone, Debug)]
pub struct Case {
    pub topology: Topology,
    pub hardware: Hardware,
    pub workload: Workload,
}

impl Case {
    /// Its plan, or why there is none.
    pub fn plan(&self, options: &PlanOptions) -> Result<Plan, String> {
        plan_with(&self.topology, &self.hardware, &self.workload, options).map_err(|e| format!("{e}: {self:?}"))
    }
}

fn routing(experts: u32) -> impl Strategy<Value = Routing> {
    let groups: Vec<u32> = (1..=experts).filter(|g| experts.is_multiple_of(*g)).collect();
    let limited = (0..groups.len(), 0.0..1.0f64).prop_map(move |(g, share)| Routing::GroupLimited {
        groups: groups[g],
        limit: 1 + (share * f64::from(groups[g] - 1)) as u32,
    });
    // Loads from none to half of all, of which top-k makes what a gate can do.
    let loads = proptest::collection::vec(0..=4u32, experts as usize).prop_map(|mut loads| {
        loads[0] += 1;
        Routing::Histogram(loads.into_iter().map(f64::from).collect())
    });
    prop_oneof![Just(Routing::Uniform), limited, loads]
}

/// Most selections of a token that a gate can make.
pub fn most_selections(routing: &Routing, experts: u32) -> u32 {
    match routing {
        Routing::GroupLimited { groups, limit } => limit * (experts / groups),
        // A token selects an expert at most once.
        Routing::Histogram(loads) => {
            let hottest = loads.iter().copied().fold(0.0, f64::max);
            (loads.iter().sum::<f64>() / hottest) as u32
        }
        _ => experts,
    }
}

/// Machines of every built-in kind, with up to 12 domains, and workloads with every kind of routing.
pub fn cases() -> impl Strategy<Value = Case> {
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
                let available = most_selections(&routing, experts);
                let ranks: u32 = sizes.iter().sum();
                let format = if fp8 { WireFormat::Fp8 } else { WireFormat::Bf16 };
                Case {
                    topology: Topology::of_domains(&sizes).unwrap().with_ranks_per_gpu(per_gpu).unwrap(),
                    hardware: Hardware::named(&Gpu::names()[gpu.0], Some(&Nic::names()[gpu.1])).unwrap(),
                    workload: Workload::new(LayerSizes {
                        experts,
                        top_k: top_k.min(available),
                        hidden: sixteens * 16,
                        tokens,
                    })
                    .with_format(format)
                    .with_layout(layout)
                    .with_routing(routing)
                    .with_imbalance(imbalance.min(f64::from(ranks))),
                }
            })
        },
    )
}
