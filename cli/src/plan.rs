//! `epoxide plan`.
use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::answer::{Answer, Unwritten};
use crate::args::PlanArgs;
use crate::machine::Machine;
use crate::planned::Planned;
use crate::progress::Progress;
use crate::request::{Request, option_of, routing};
use crate::simulation::Setting;
use crate::{figures, given, page, plot, report, sweep};

/// How many parts of a plan its progress is counted in.
const PARTS: usize = 1000;

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
        return Ok(Answer::good(figures::file(&machine)));
    }
    let setting = Setting::new(args)?;
    let progress = Progress::new();
    progress.expect(PARTS * args.sweep.as_ref().map_or(1, |sweep| sweep.values.len()));
    let shown = Cell::new(0);
    let watch = |what: &'static str, plans: f64| {
        progress.step(what);
        let done = (plans * PARTS as f64) as usize;
        progress.rows(done.saturating_sub(shown.replace(done)));
    };
    let Some(over) = &args.sweep else {
        let request = Request::new(args, &machine, routing(args)?)?;
        given::check_network(args, [&request])?;
        let planned = Planned::new(request, setting.as_ref(), &watch)?;
        let text = if args.json { json(&report::Planned::new(&planned))? } else { page::text(&planned) };
        return Ok(Answer { success: planned.fits(), ..Answer::good(text) });
    };
    if let Some(path) = &args.plot {
        try_to_write(path)?;
    }
    let sweep = sweep::run(args, &machine, over, setting.as_ref(), &watch)?;
    if let Some(path) = &args.plot {
        let drawing = plot::draw(&sweep)?;
        fs::write(path, drawing).map_err(|error| unwritten(path, &error))?;
    }
    let notes = over.note().into_iter().chain(sweep.note()).collect();
    let mut text = if args.json { json(&report::Sweep::new(&sweep))? } else { sweep::text(&sweep) };
    if let (Some(path), false) = (&args.plot, args.json) {
        text += &format!("\ncurves: {}\n", path.display());
    }
    Ok(Answer { notes, ..Answer::good(text) })
}

/// Finds out whether a file can be written before there is anything to write, which may take minutes. Leaves everything as it is.
fn try_to_write(path: &Path) -> anyhow::Result<()> {
    let there = fs::metadata(path);
    // Of a pipe, whoever reads it would see the end.
    if there.as_ref().is_ok_and(|about| !about.is_file() && !about.is_dir()) {
        return Ok(());
    }
    OpenOptions::new().append(true).create(true).open(path).map_err(|error| unwritten(path, &error))?;
    if there.is_err() {
        fs::remove_file(path).map_err(|error| unwritten(path, &error))?;
    }
    Ok(())
}

/// A path that cannot be is what the caller gave; a disk that is full is not.
fn unwritten(path: &Path, error: &io::Error) -> anyhow::Error {
    let what = format!("--plot {path:?}: {error}");
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::BrokenPipe => Unwritten(what).into(),
        _ => anyhow::anyhow!(what),
    }
}

fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)?)
}
