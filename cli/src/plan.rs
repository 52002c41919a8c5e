//! `epoxide plan`.
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::answer::{Answer, Unwritten};
use crate::args::PlanArgs;
use crate::machine::Machine;
use crate::request::{Request, option_of};
use crate::simulation::Setting;
use crate::{figures, given, page, plot, report, sweep};

/// Plans what `args` ask for. A plan that does not fit into the GPU's memory is no good answer.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<Answer> {
    answer(args).map_err(|error| match error.downcast_ref().and_then(option_of) {
        Some(option) => anyhow::anyhow!("{error:#} ({option})"),
        None => error,
    })
}

fn answer(args: &PlanArgs) -> anyhow::Result<Answer> {
    let machine = Machine::new(args)?;
    given::check(args)?;
    if args.figures {
        return Ok(Answer { text: figures::file(&machine), success: true });
    }
    let setting = Setting::new(args)?;
    let Some(over) = &args.sweep else {
        let planned = Request::new(args, &machine)?.plan(setting.as_ref())?;
        given::check_planned(args, [&planned])?;
        let text = if args.json { json(&report::Planned::new(&planned))? } else { page::text(&planned) };
        return Ok(Answer { text, success: planned.fits() });
    };
    let sweep = sweep::run(args, &machine, over, setting.as_ref())?;
    given::check_planned(args, sweep.planned().map(|(_, planned)| planned))?;
    if let Some(path) = &args.plot {
        let drawing = plot::draw(&sweep)?;
        std::fs::write(path, drawing).map_err(|error| unwritten(path, &error))?;
    }
    if args.json {
        return Ok(Answer { text: json(&report::Sweep::new(&sweep))?, success: true });
    }
    let mut text = sweep::text(&sweep);
    if let Some(path) = &args.plot {
        text += &format!("\ncurves: {}\n", path.display());
    }
    Ok(Answer { text, success: true })
}

/// A path that cannot be is what the caller gave; a disk that is full is not.
fn unwritten(path: &Path, error: &io::Error) -> anyhow::Error {
    let what = format!("--plot {}: {error}", path.display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::BrokenPipe => Unwritten(what).into(),
        _ => anyhow::anyhow!(what),
    }
}

fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)?)
}
