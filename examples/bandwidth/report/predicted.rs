//! What the planner says of a cell.
use epoxide::plan::{Hardware, LayerSizes, PlanOptions, Routing as Gate, RowLayout, Topology, Workload, plan_with};

use super::cells::Cell;
use super::routing::Routing;
use crate::buffer_layout::BufferLayout;
use crate::options::{Format, Options};

/// Microseconds of dispatch and combine on GPUs of this name; none where the planner does not know it, or has no such thing.
pub fn microseconds(gpu: Option<&str>, options: &Options, cell: Cell) -> [Option<f64>; 2] {
    let plan = || {
        let hardware = Hardware::named(gpu?, None).ok()?;
        let (ranks, gpus) = (options.ranks, options.gpu_of_ranks());
        let of_first = gpus.iter().filter(|gpu| **gpu == gpus[0]).count() as u32;
        let topology = Topology::new(ranks, ranks).ok()?.with_ranks_per_gpu(of_first).ok()?;
        let layout = match cell.layout {
            BufferLayout::Compact => RowLayout::Compact,
            // The planner does not know its kernels.
            BufferLayout::RankMajor | BufferLayout::RankMajorExpand | BufferLayout::RankMajorSlab => return None,
            BufferLayout::Expand => RowLayout::Expand { alignment: options.alignment() },
            BufferLayout::Slab => RowLayout::Slab,
        };
        let gate = match cell.routing {
            Routing::Uniform => Gate::Uniform,
            Routing::Zipf => Gate::Histogram(cell.routing.loads(options.experts, options.top_k)),
        };
        let (experts, top_k, hidden, tokens) = (options.experts, options.top_k, options.hidden, cell.tokens);
        let workload = Workload::new(LayerSizes { experts, top_k, hidden, tokens });
        let workload = workload.with_format(cell.format.into()).with_layout(layout).with_routing(gate);
        let plan = plan_with(&topology, &hardware, &workload, &PlanOptions::new().with_num_sms(cell.sms)).ok()?;
        Some([plan.dispatch.seconds * 1e6, plan.combine.seconds * 1e6])
    };
    // Rows that are quantised before are another dispatch than the planner's.
    match (cell.format, plan()) {
        (Format::Fp8Brought, Some([_, combine])) => [None, Some(combine)],
        (_, plan) => [plan.map(|[dispatch, _]| dispatch), plan.map(|[_, combine]| combine)],
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn what_the_planner_says_is_for_the_gpu_that_it_knows() {
        let mut options = Options::parse_from(["bandwidth", "--ranks", "4"]);
        options.settle(None).unwrap();
        let cell =
            |routing, tokens| Cell { routing, format: Format::Fp8, layout: BufferLayout::Compact, tokens, sms: 16 };
        assert_eq!(microseconds(None, &options, cell(Routing::Uniform, 128)), [None, None]);
        let of = |routing, tokens| microseconds(Some("H100"), &options, cell(routing, tokens)).map(Option::unwrap);
        let (few, many, uneven) = (of(Routing::Uniform, 128), of(Routing::Uniform, 4096), of(Routing::Zipf, 4096));
        assert!(few[0] < many[0] && few[1] < many[1], "{few:?} {many:?}");
        assert_ne!(many, uneven);
    }
}
