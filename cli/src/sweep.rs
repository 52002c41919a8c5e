//! A plan for several values of one number.
use std::fmt::Write;

use crate::args::PlanArgs;
use crate::given;
use crate::machine::Machine;
use crate::page;
use crate::planned::Planned;
use crate::request::{Request, option_of, routing};
use crate::simulation::Setting;
use crate::swept::{Over, Sweep};
use crate::table::Table;
use crate::units;

/// The plans of a sweep, in its order; for a value that cannot be planned, the value and why.
pub(crate) struct Points {
    pub over: Over,
    pub points: Vec<(u32, Result<Planned, String>)>,
}

impl Points {
    /// The values that could be planned.
    pub fn planned(&self) -> impl Iterator<Item = (u32, &Planned)> {
        self.points.iter().filter_map(|(value, result)| result.as_ref().ok().map(|planned| (*value, planned)))
    }

    /// How many could not, in words.
    pub fn note(&self) -> Option<String> {
        let (all, refused) = (self.points.len(), self.points.len() - self.planned().count());
        let name = self.over.name();
        (refused > 0).then(|| format!("--sweep {name}: {refused} of {all} values cannot be planned"))
    }
}

/// Why a value cannot be planned.
struct Refusal {
    /// Which rule is broken, and by what.
    why: String,
    /// Whether it is the value itself that breaks it, and so is in `why`.
    of_value: bool,
}

impl Refusal {
    fn new(over: Over, error: &anyhow::Error) -> Self {
        let library = error.downcast_ref::<epoxide::plan::Error>();
        let argument = match library {
            Some(epoxide::plan::Error::InvalidArgument { argument, .. }) => *argument,
            _ => "",
        };
        let option = library.and_then(option_of);
        let why = match option {
            Some(option) => format!("{error:#} ({option})"),
            None => format!("{error:#}"),
        };
        let name = option.map_or(argument.replace('_', "-"), |option| option.trim_start_matches('-').to_owned());
        Self { why, of_value: name == over.name() }
    }

    /// With the value in front, once.
    fn with_value(&self, over: Over, value: u32) -> String {
        if self.of_value { self.why.clone() } else { format!("{} = {value}: {}", over.name(), self.why) }
    }
}

/// Plans every value on `machine`, which is that of `args`. `watch` is told what is being done, and how many of the values are done.
///
/// # Errors
///
/// If no value can be planned: what is wrong with all of them, or else with the first.
pub(crate) fn run(
    args: &PlanArgs,
    machine: &Machine,
    sweep: &Sweep,
    setting: Option<&Setting>,
    watch: &dyn Fn(&'static str, f64),
) -> anyhow::Result<Points> {
    let over = sweep.over;
    anyhow::ensure!(
        over != Over::Ranks || args.domains.is_none(),
        "--sweep ranks: --domains fixes the ranks; use --per-node"
    );
    // Read once: a file that is wrong is not wrong because of a value, and a pipe has its text once.
    let routing = routing(args)?;
    let request = |&value: &u32| {
        let mut args = args.clone();
        set(over, &mut args, value);
        (value, Request::new(&args, machine, routing.clone()))
    };
    let requests: Vec<_> = sweep.values.iter().map(request).collect();
    given::check_network(args, requests.iter().filter_map(|(_, request)| request.as_ref().ok()))?;
    let mut points = Vec::with_capacity(requests.len());
    for (i, (value, request)) in requests.into_iter().enumerate() {
        let watch = |what: &'static str, share: f64| watch(what, i as f64 + share);
        watch("plan", 0.0);
        let planned = request.and_then(|request| Ok(Planned::new(request, setting, &watch)?));
        points.push((value, planned.map_err(|error| Refusal::new(over, &error))));
    }
    let mut refusals = points.iter().filter_map(|(value, planned)| Some((*value, planned.as_ref().err()?)));
    if refusals.clone().count() == points.len() {
        // What is wrong whatever the value is, is wrong without it.
        let mut others = refusals.clone().map(|(_, refusal)| refusal).filter(|refusal| !refusal.of_value);
        if let Some(first) = others.next()
            && others.all(|refusal| refusal.why == first.why)
        {
            anyhow::bail!("{}", first.why);
        }
        let first = refusals.next().map_or(String::new(), |(value, refusal)| refusal.with_value(over, value));
        anyhow::bail!("no value of the sweep can be planned: {first}");
    }
    let said = |(value, planned): (u32, Result<Planned, Refusal>)| {
        (value, planned.map_err(|refusal| refusal.with_value(over, value)))
    };
    Ok(Points { over, points: points.into_iter().map(said).collect() })
}

fn set(over: Over, args: &mut PlanArgs, value: u32) {
    match over {
        Over::Ranks => {
            args.ranks = Some(value);
            // Fewer ranks than a domain has are one smaller domain.
            args.per_node = args.per_node.map(|domain| domain.min(value));
        }
        Over::Tokens => args.shape.tokens = value,
        Over::Hidden => args.shape.hidden = value,
        Over::TopK => args.shape.top_k = value,
    }
}

/// What the whole sweep has in common: a plan of it, without what varies.
pub(crate) fn title(sweep: &Points) -> String {
    let Some((_, Planned { request, plan, .. })) = sweep.planned().last() else { return String::new() };
    let nic = request.hardware.nic.as_ref().map_or(String::new(), |nic| format!(" + {}", nic.name));
    let machine = match sweep.over {
        Over::Ranks => {
            let largest = sweep.planned().map(|(_, p)| p.request.topology.largest()).max().unwrap_or(0);
            format!("{}{nic}, up to {largest} ranks in an NVLink domain", request.hardware.gpu.name)
        }
        _ => page::machine(request),
    };
    let workload = page::workload(request);
    let varies = match sweep.over {
        Over::Ranks => "",
        Over::Tokens => "tokens a rank",
        Over::Hidden => "hidden",
        Over::TopK => "top-",
    };
    let parts = workload.split(", ").map(|part| match (varies, part) {
        ("", part) => part.to_owned(),
        ("top-", part) if part.starts_with("top-") => format!("{} experts", request.workload.experts),
        ("hidden", part) if part.starts_with("hidden") => String::new(),
        ("tokens a rank", part) if part.ends_with("tokens a rank") => String::new(),
        (_, part) => part.to_owned(),
    });
    let parts: Vec<_> = parts.filter(|part| !part.is_empty()).collect();
    format!("{} on {machine}\n{}", page::protocol(plan), parts.join(", "))
}

/// The sweep as a table.
pub(crate) fn text(sweep: &Points) -> String {
    let simulated = sweep.planned().any(|(_, planned)| planned.simulation.is_some());
    let mut headings = vec![sweep.over.name(), "SMs", "QPs", "buffer"];
    for name in ["dispatch", "combine"] {
        headings.push(name);
        if simulated {
            headings.push("simulated");
        }
        headings.extend(["binds", "GB/s"]);
    }
    let left: &[usize] = if simulated { &[6, 10] } else { &[5, 8] };
    let mut table = Table::new(&headings, left);
    for (value, result) in &sweep.points {
        let Ok(Planned { plan, simulation, .. }) = result else {
            table.row(std::iter::once(value.to_string()).chain(headings[1..].iter().map(|_| "-".to_owned())));
            continue;
        };
        let mut row = vec![
            value.to_string(),
            plan.num_sms.to_string(),
            plan.num_qps.to_string(),
            units::memory(plan.bytes.total()),
        ];
        let reports = simulation.as_ref().map(|(_, report)| [report.dispatch, report.combine]);
        for (i, phase) in [&plan.dispatch, &plan.combine].into_iter().enumerate() {
            row.push(units::time(phase.seconds));
            row.extend(reports.map(|r| units::time(r[i].seconds)));
            row.push(phase.binding().resource.name().into());
            row.push(units::digits(phase.bandwidth.scale_up / 1e9));
        }
        table.row(row);
    }
    let mut out = title(sweep) + "\n\n";
    if let Some((_, planned)) = sweep.planned().max_by_key(|(_, planned)| planned.request.topology.domains()) {
        out += &page::found(&planned.request);
    }
    out += &format!("{}\n", table.lines("  "));
    out += "  GB/s as DeepEP's tables count inside a domain: every received row, the rank's own too\n";
    if sweep.planned().any(|(_, planned)| planned.plan.projection) {
        out += "  several NVLink domains and more than 64 ranks in one are projections: designed, not built yet\n";
    }
    let name = sweep.over.name();
    for (value, result) in &sweep.points {
        match result {
            Ok(planned) if !planned.fits() => {
                let _ = writeln!(out, "  {name} = {value}: {}", page::DOES_NOT_FIT);
            }
            Ok(_) => {}
            Err(why) => {
                let _ = writeln!(out, "  {why}");
            }
        }
    }
    out
}
