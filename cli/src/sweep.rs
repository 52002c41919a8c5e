//! A plan for several values of one number.
use std::fmt::Write;
use std::str::FromStr;

use crate::args::PlanArgs;
use crate::machine::Machine;
use crate::page;
use crate::request::{Planned, Request, option_of};
use crate::simulation::Setting;
use crate::table::Table;
use crate::units;

/// Most values of a sweep.
const MOST_VALUES: usize = 256;

/// What varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Ranks,
    Tokens,
    Hidden,
    TopK,
}

impl Over {
    const ALL: [Self; 4] = [Self::Ranks, Self::Tokens, Self::Hidden, Self::TopK];

    /// Its name, as its option has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ranks => "ranks",
            Self::Tokens => "tokens",
            Self::Hidden => "hidden",
            Self::TopK => "top-k",
        }
    }

    /// What its axis says.
    pub fn title(self) -> &'static str {
        match self {
            Self::Ranks => "ranks",
            Self::Tokens => "tokens a rank",
            Self::Hidden => "elements of a row",
            Self::TopK => "experts of a token",
        }
    }

    fn set(self, args: &mut PlanArgs, value: u32) {
        match self {
            Self::Ranks => {
                args.ranks = Some(value);
                // Fewer ranks than a domain has are one smaller domain.
                args.per_node = args.per_node.map(|domain| domain.min(value));
            }
            Self::Tokens => args.shape.tokens = value,
            Self::Hidden => args.shape.hidden = value,
            Self::TopK => args.shape.top_k = value,
        }
    }
}

/// `ranks=8..2048`, `tokens=128,1000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sweep {
    over: Over,
    values: Vec<u32>,
}

impl Sweep {
    /// What varies.
    pub fn over(&self) -> Over {
        self.over
    }
}

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Over::ALL.map(Over::name).join(", ");
        let form = || format!("a sweep is NAME=FIRST..LAST or NAME=A,B,C, with NAME one of {}", known());
        let (name, values) = text.split_once('=').ok_or_else(form)?;
        let name = name.trim().replace('_', "-");
        let over = Over::ALL.into_iter().find(|over| over.name() == name);
        let over = over.ok_or_else(|| format!("nothing to sweep is called `{name}`; known are {}", known()))?;
        let number = |text: &str| {
            let rule = |e| format!("{name}: `{}`: {e}", text.trim());
            text.trim().parse::<u32>().map_err(rule)
        };
        let values = match values.split_once("..") {
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last.trim_start_matches('='))?);
                let powers: Vec<u32> = (0..u32::BITS).map(|i| 1 << i).filter(|v| (first..=last).contains(v)).collect();
                if powers.is_empty() {
                    return Err(format!("{name}: no power of two lies in {first}..{last}; name values as A,B,C"));
                }
                powers
            }
            None => values.split(',').map(number).collect::<Result<_, _>>()?,
        };
        if values.len() > MOST_VALUES {
            return Err(format!("{name}: {} values; a sweep has at most {MOST_VALUES}", values.len()));
        }
        Ok(Self { over, values })
    }
}

/// The plans of a sweep, in its order; for a value that cannot be planned, why.
pub(crate) struct Points {
    pub over: Over,
    pub points: Vec<(u32, Result<Planned, String>)>,
}

impl Points {
    /// The values that could be planned.
    pub fn planned(&self) -> impl Iterator<Item = (u32, &Planned)> {
        self.points.iter().filter_map(|(value, result)| result.as_ref().ok().map(|planned| (*value, planned)))
    }
}

/// Plans every value on `machine`, which is that of `args`.
///
/// # Errors
///
/// The first error if no value can be planned.
pub(crate) fn run(
    args: &PlanArgs,
    machine: &Machine,
    sweep: &Sweep,
    setting: Option<&Setting>,
) -> anyhow::Result<Points> {
    anyhow::ensure!(
        sweep.over != Over::Ranks || args.domains.is_none(),
        "--sweep ranks: --domains fixes the ranks; use --per-node"
    );
    let mut points = Vec::with_capacity(sweep.values.len());
    for &value in &sweep.values {
        let mut args = args.clone();
        sweep.over.set(&mut args, value);
        let result = Request::new(&args, machine).and_then(|request| Ok(request.plan(setting)?));
        points.push((value, result));
    }
    let none = points.iter().all(|(_, result)| result.is_err());
    if none && let Some((value, Err(error))) = points.drain(..).next() {
        let name = sweep.over.name();
        return Err(error.context(format!("no value of the sweep can be planned; with {name} = {value}")));
    }
    let why = |e: anyhow::Error| match e.downcast_ref().and_then(option_of) {
        Some(option) => format!("{e:#} ({option})"),
        None => format!("{e:#}"),
    };
    let points = points.into_iter().map(|(value, result)| (value, result.map_err(why))).collect();
    Ok(Points { over: sweep.over, points })
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
    for (value, Planned { plan, simulation, .. }) in sweep.planned() {
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
        out += "  several NVLink domains, more than 64 ranks in one, and bounded or expanded buffers are projections: designed, not built yet\n";
    }
    let name = sweep.over.name();
    for (value, result) in &sweep.points {
        match result {
            Ok(planned) if !planned.fits() => {
                let _ = writeln!(out, "  {name} = {value}: {}", page::DOES_NOT_FIT);
            }
            Ok(_) => {}
            Err(why) => {
                let _ = writeln!(out, "  {name} = {value}: {why}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_its_powers_of_two_and_a_list_is_itself() {
        let sweep = |text: &str| text.parse::<Sweep>();
        assert_eq!(sweep("ranks=8..64"), Ok(Sweep { over: Over::Ranks, values: vec![8, 16, 32, 64] }));
        assert_eq!(sweep("tokens=100..300"), Ok(Sweep { over: Over::Tokens, values: vec![128, 256] }));
        assert_eq!(sweep("top_k=8,1,6"), Ok(Sweep { over: Over::TopK, values: vec![8, 1, 6] }));
        for (text, wanted) in [
            ("ranks", "NAME=FIRST..LAST"),
            ("nodes=1..2", "known are ranks, tokens, hidden, top-k"),
            ("ranks=9..15", "no power of two lies in 9..15"),
            ("ranks=64..8", "no power of two"),
            ("ranks=8..99999999999", "99999999999"),
            ("ranks=8,,16", "``"),
            ("ranks=-8", "`-8`"),
        ] {
            let error = sweep(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
