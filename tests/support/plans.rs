//! Random cases for the planner.
use epoxide::WireFormat;
use epoxide::plan::{Gpu, Hardware, Nic, Plan, PlanOptions, Routing, RowLayout, Topology, Workload, plan_with};
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
    prop_oneof![Just(Routing::Uniform), limited]
}

/// Machines of every built-in kind, with up to 12 domains, and workloads whose experts are chosen uniformly or by groups.
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
