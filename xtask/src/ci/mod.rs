//! `cargo xtask ci`: everything that must hold before a change lands, and what `.ci/run` runs.
//!
//! Every step runs, also after one failed, so that one run tells all; a table at the end says how each went. A step that
//! cannot run for want of a tool is SKIPPED, loudly; with `CI` in the environment only the rebuild of the PTX may be, and
//! only where `.ci/run` found that the server that has its toolchain is out of reach. The source hash and the lint are
//! checked regardless.

mod command;
mod package;
mod step;
mod steps;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use step::{Outcome, Step};
use steps::STEPS;

/// Options of `cargo xtask ci`.
#[derive(clap::Args)]
pub struct Args {
    /// Run only these steps (see --list), comma-separated.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Run all but these steps, comma-separated.
    #[arg(long, value_delimiter = ',')]
    skip: Vec<String>,
    /// List the steps and run none.
    #[arg(long)]
    list: bool,
}

/// Runs `cargo xtask ci`.
pub fn run(args: &Args) -> Result<()> {
    if args.list {
        STEPS.iter().for_each(|step| println!("{:<13} {}", step.name, step.what));
        return Ok(());
    }
    let known = |name: &&String| STEPS.iter().any(|step| step.name == **name);
    if let Some(unknown) = args.only.iter().chain(&args.skip).find(|name| !known(name)) {
        let names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        bail!("no step `{unknown}`; the steps are {}", names.join(", "));
    }
    let picked = |step: &&Step| {
        let named = |list: &[String]| list.iter().any(|name| name == step.name);
        (args.only.is_empty() || named(&args.only)) && !named(&args.skip)
    };
    let mut rows = Vec::new();
    for step in STEPS.iter().filter(picked) {
        println!("\n==== {}: {}", step.name, step.what);
        let (start, worked) = (Instant::now(), cpu_time());
        let result = (step.run)();
        let time = start.elapsed();
        let cpu = cpu_time().zip(worked).map(|(now, then)| now.saturating_sub(then));
        match &result {
            Ok(Outcome::Passed) => println!("==== {}: passed in {}", step.name, seconds(time)),
            Ok(Outcome::Skipped(why)) => println!("==== {}: SKIPPED: {why}", step.name),
            Err(error) => println!("==== {}: FAILED in {}: {error:#}", step.name, seconds(time)),
        }
        rows.push((step, time, cpu, result));
    }
    println!("\n{:<13} {:>9} {:>9}  result", "step", "time", "cpu");
    for (step, time, cpu, result) in &rows {
        let result = match result {
            Ok(Outcome::Passed) => "passed".to_owned(),
            Ok(Outcome::Skipped(why)) => format!("SKIPPED: {why}"),
            Err(error) => format!("FAILED: {}", format!("{error:#}").lines().next().unwrap_or_default()),
        };
        println!("{:<13} {:>9} {:>9}  {result}", step.name, seconds(*time), cpu.map_or("-".to_owned(), seconds));
    }
    let all: Duration = rows.iter().map(|(_, time, ..)| *time).sum();
    let cpu: Option<Duration> = rows.iter().map(|(_, _, cpu, _)| *cpu).sum();
    println!("{:<13} {:>9} {:>9}", "total", seconds(all), cpu.map_or("-".to_owned(), seconds));
    let failed: Vec<_> = rows.iter().filter(|(.., result)| result.is_err()).map(|(step, ..)| step.name).collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed: {}; again: `cargo xtask ci --only {}`", failed.join(", "), failed.join(","))
}

/// What this process, and those that it has waited for, have had of the processors, where the system tells: on a machine that does other things too, a step's
/// time says less than this.
fn cpu_time() -> Option<Duration> {
    // proc(5): behind the name, in parentheses, the state is field 3; times of its own, and of its children, are 14 to 17, in hundredths of a second.
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let times = stat.rsplit(')').next()?.split_whitespace().skip(11).take(4);
    let hundredths: u64 = times.map(|time| time.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(Duration::from_millis(10 * hundredths))
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
