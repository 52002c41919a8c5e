//! From the command line to what the planner takes.
use std::path::Path;

use epoxide::plan::{Capacity, Hardware, LayerSizes, PlanOptions, Routing, RowLayout, Topology, Workload};

use crate::args::{Layout, PlanArgs};
use crate::machine::{Found, Machine};
use crate::named_file::text_of;

/// Ranks, and ranks of an NVLink domain, unless the caller or the machine says otherwise. Fewer ranks are one domain.
const USUAL_RANKS: u32 = 8;

/// Everything that a plan follows from.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub topology: Topology,
    pub hardware: Hardware,
    pub found: Found,
    pub workload: Workload,
    pub options: PlanOptions,
}

impl Request {
    /// What `args` ask for; `machine` and `routing` are those of `args`.
    pub fn new(args: &PlanArgs, machine: &Machine, routing: Routing) -> anyhow::Result<Self> {
        let layout = match args.layout {
            Layout::Compact => RowLayout::Compact,
            Layout::Expand => RowLayout::Expand { alignment: args.alignment },
            Layout::Slab => RowLayout::Slab,
        };
        let shape = &args.shape;
        let workload = Workload::new(LayerSizes {
            experts: shape.experts,
            top_k: shape.top_k,
            hidden: shape.hidden,
            tokens: shape.tokens,
        })
        .with_format(shape.format.into())
        .with_layout(layout)
        .with_scale_layout(shape.scales.into())
        .with_capacity(args.capacity.map_or(Capacity::WorstCase, Capacity::Rows))
        .with_row_slots(args.row_slots)
        .with_routing(routing)
        .with_imbalance(args.imbalance);
        let mut options = PlanOptions::new().with_protocol(args.protocol.into());
        options.num_sms = args.num_sms;
        options.allocated_qps = args.allocated_qps;
        options.many_sms = args.many_sms;
        let (hardware, found) = (machine.hardware.clone(), machine.found.clone());
        let topology = topology(args, machine)?;
        // Of slabs, those of an expert.
        let most = match layout {
            RowLayout::Slab => Some(u64::from(topology.ranks()) * u64::from(shape.tokens)),
            _ => workload.worst_case_rows(topology.ranks()),
        };
        let who = if layout == RowLayout::Slab { "an expert" } else { "a rank" };
        if let (Some(capacity), Some(most)) = (args.capacity, most) {
            // The planner takes it for the worst case, as a library may; from a person it is a mistake.
            anyhow::ensure!(
                capacity <= most,
                "capacity = {capacity}: {who} never receives more than {most} rows (--capacity); without it none is too many"
            );
        }
        Ok(Self { topology, hardware, found, workload, options })
    }
}

/// How the gate of `args` chooses. Reads the histogram that they name.
pub(crate) fn routing(args: &PlanArgs) -> anyhow::Result<Routing> {
    Ok(match (args.groups, args.group_limit, &args.histogram) {
        (Some(groups), Some(limit), _) => Routing::GroupLimited { groups, limit },
        (.., Some(path)) => Routing::Histogram(histogram(path)?),
        _ => Routing::Uniform,
    })
}

fn topology(args: &PlanArgs, machine: &Machine) -> anyhow::Result<Topology> {
    // Ranks in all and of a domain, if neither is said; a bad number of ranks of a GPU is refused below.
    let on_gpus = |gpus: u32| gpus.saturating_mul(args.ranks_per_gpu.max(1));
    let (usual, usual_domain) =
        machine.found.gpus.as_ref().map_or((USUAL_RANKS, USUAL_RANKS), |g| (on_gpus(g.count), on_gpus(g.domain)));
    let topology = match &args.domains {
        Some(sizes) => Topology::of_domains(sizes)?,
        None => {
            let ranks = args.ranks.unwrap_or(usual.max(args.per_node.unwrap_or(0)));
            let per_node = args.per_node.unwrap_or(usual_domain.min(ranks.max(1)));
            Topology::new(ranks, per_node).map_err(|error| match uneven(ranks, per_node) {
                Some(domains) => anyhow::anyhow!("{error}, as --domains {domains} (--per-node)"),
                None => error.into(),
            })?
        }
    };
    Ok(topology.with_ranks_per_gpu(args.ranks_per_gpu)?.with_nics_per_gpu(machine.nics_per_gpu)?)
}

/// The domains, the last one smaller, of ranks that whole domains do not cover; no more of them than one would type.
fn uneven(ranks: u32, per_node: u32) -> Option<String> {
    let (whole, left) = (ranks.checked_div(per_node)?, ranks.checked_rem(per_node)?);
    let sizes = std::iter::repeat_n(per_node, whole as usize).chain([left]);
    ((1..16).contains(&whole) && left > 0).then(|| sizes.map(|size| size.to_string()).collect::<Vec<_>>().join(","))
}

fn histogram(path: &Path) -> anyhow::Result<Vec<f64>> {
    let text = text_of("--histogram", path)?;
    let name = path.display();
    parse_histogram(&text).map_err(|(line, word)| anyhow::anyhow!("{name}:{line}: `{word}` is not a number"))
}

/// Numbers apart by spaces, commas or lines; the line and the word of the first that is none.
fn parse_histogram(text: &str) -> Result<Vec<f64>, (usize, &str)> {
    let words = text.lines().enumerate().flat_map(|(line, text)| {
        let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
        words.map(move |word| word.parse().map_err(|_| (line + 1, word)))
    });
    words.collect()
}

/// The option that sets an argument which the library names differently.
pub(crate) fn option_of(error: &epoxide::plan::Error) -> Option<&'static str> {
    let epoxide::plan::Error::InvalidArgument { argument, .. } = error else { return None };
    Some(match *argument {
        "per_domain" => "--per-node",
        "max_tokens_per_rank" | "rows" => "--tokens",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{parse_histogram, uneven};

    #[test]
    fn uneven_domains_are_spelled_out_where_they_are_few() {
        assert_eq!(uneven(20, 8).as_deref(), Some("8,8,4"));
        assert_eq!([uneven(16, 8), uneven(3, 0), uneven(4, 8), uneven(2047, 8)], [const { None }; 4]);
    }

    #[test]
    fn a_histogram_is_numbers_in_any_arrangement() {
        assert_eq!(parse_histogram("1, 2.5\n\n3e2 4"), Ok(vec![1.0, 2.5, 300.0, 4.0]));
        assert_eq!(parse_histogram("1\n2 many"), Err((2, "many")));
    }
}
