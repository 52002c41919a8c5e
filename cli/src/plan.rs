//! `epoxide plan`.
use anyhow::Context;

use crate::args::PlanArgs;
use crate::machine::Machine;
use crate::request::{Request, option_of};
use crate::simulation::Setting;
use crate::{figures, page, plot, report, sweep};

/// Plans what `args` ask for, and prints it.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<String> {
    answer(args).map_err(|error| match error.downcast_ref().and_then(option_of) {
        Some(option) => anyhow::anyhow!("{error:#} ({option})"),
        None => error,
    })
}

fn answer(args: &PlanArgs) -> anyhow::Result<String> {
    let machine = Machine::new(args)?;
    if args.figures {
        return Ok(figures::file(&machine));
    }
    let setting = Setting::new(args)?;
    let Some(over) = &args.sweep else {
        let planned = Request::new(args, &machine)?.plan(setting.as_ref())?;
        return if args.json { json(&report::Planned::new(&planned)) } else { Ok(page::text(&planned)) };
    };
    let sweep = sweep::run(args, &machine, over, setting.as_ref())?;
    if let Some(path) = &args.plot {
        let drawing = plot::draw(&sweep)?;
        std::fs::write(path, drawing).with_context(|| format!("--plot {}", path.display()))?;
    }
    if args.json {
        return json(&report::Sweep::new(&sweep));
    }
    let mut text = sweep::text(&sweep);
    if let Some(path) = &args.plot {
        text += &format!("\ncurves: {}\n", path.display());
    }
    Ok(text)
}

fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)?)
}
