//! `epoxide preflight`: what this machine can run, looked at piece by piece.
//!
//! Nothing is guessed from a version number where it can be tried: a GPU works when two ranks have dispatched and combined on
//! it, and so does the simulated one.
mod check;
mod gpu;
mod limits;
mod nccl;
mod nic;
mod proof;
mod sharing;

use epoxide::{LocalGroup, Mode};
use serde::Serialize;

use crate::answer::Answer;
use crate::args::PreflightArgs;
use crate::progress::Progress;
use check::{Check, Status};

/// What takes time: GPUs, NCCL, the simulated GPU.
const PARTS: usize = 3;

/// What operations can run on here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Runs {
    gpu: bool,
    simulator: bool,
}

#[derive(Serialize)]
struct Report {
    runs: Runs,
    checks: Vec<Check>,
}

/// Looks, and prints what it saw.
pub(crate) fn run(args: &PreflightArgs) -> anyhow::Result<Answer> {
    let report = look(args);
    let text = if args.json { serde_json::to_string_pretty(&report)? } else { text(&report) };
    Ok(Answer { success: report.runs.gpu || report.runs.simulator, ..Answer::good(text) })
}

fn look(args: &PreflightArgs) -> Report {
    // A GPU that does not answer takes seconds to be given up.
    let progress = Progress::new();
    progress.expect(PARTS);
    progress.step("GPUs");
    let (mut checks, gpus) = gpu::look();
    progress.rows(1);
    progress.step("NCCL");
    checks.extend(nccl::look());
    checks.push(sharing::look(&gpus));
    progress.rows(1);
    checks.extend(nic::look(&args.root));
    checks.extend(limits::look(&args.root, gpus.contains(&true)));
    progress.step("simulated GPU");
    let simulator = simulator();
    let runs = Runs { gpu: gpus.contains(&true), simulator: simulator.status == Status::Ok };
    checks.push(simulator);
    Report { runs, checks }
}

fn simulator() -> Check {
    let proof = LocalGroup::simulated(proof::RANKS, Mode::Fast { workers: 0 }).and_then(proof::run);
    let advice = "this is a defect of Epoxide or of this build: please report it";
    match proof {
        Ok(proof) if proof.holds() => Check::new("simulator", Status::Ok, format!("simulated GPU: {proof}")),
        Ok(proof) => Check::new("simulator", Status::No, format!("simulated GPU: {proof}")).advice(advice),
        Err(error) => Check::new("simulator", Status::No, format!("simulated GPU: {error}")).advice(advice),
    }
}

/// Where findings begin, and where lines end.
const COLUMNS: (usize, usize) = (26, 120);

/// `text` over several lines, the first after `first`, the others as far in.
fn wrapped(first: &str, text: &str) -> String {
    let mut out = first.to_owned();
    let mut column = first.chars().count();
    for word in text.split(' ') {
        let width = word.chars().count() + 1;
        if column + width > COLUMNS.1 && column > COLUMNS.0 + 3 {
            let indent = first.chars().count();
            out = format!("{}\n{:indent$}", out.trim_end(), "");
            column = indent;
        }
        out += word;
        out.push(' ');
        column += width;
    }
    out.trim_end().to_owned() + "\n"
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    for check in &report.checks {
        let mark = match check.status {
            Status::Ok => "ok",
            Status::Limited => "limited",
            Status::No => "NO",
            Status::Absent => "-",
        };
        let name = check.check.replace('_', " ");
        out += &wrapped(&format!("{mark:<8} {name:<17}"), &check.finding);
        if let Some(advice) = &check.advice {
            out += &wrapped(&format!("{:<26}-> ", ""), advice);
        }
    }
    out + "\n" + verdict(report.runs) + "\n"
}

fn verdict(runs: Runs) -> &'static str {
    match runs {
        Runs { gpu: true, simulator: true } => "Dispatch and combine run here, on the GPU and on the simulated one.",
        Runs { gpu: true, simulator: false } => "Dispatch and combine run here on the GPU; the simulated one fails.",
        Runs { gpu: false, simulator: true } => {
            "No GPU can run Epoxide here. The simulated GPU does: the same kernels on the CPU, for tests and development.\n\
             Try: cargo test -p epoxide, or cargo run --release -p epoxide --example moe_layer -- --help"
        }
        Runs { gpu: false, simulator: false } => "Nothing can run here.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_mark_and_its_advice_below() {
        let runs = Runs { gpu: false, simulator: true };
        let check = Check::new("shared_memory", Status::Limited, "/dev/shm has 64 MiB").advice("make it larger");
        let text = text(&Report { runs, checks: vec![check] });
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("limited  shared memory    /dev/shm has 64 MiB"));
        assert_eq!(lines.next(), Some("                          -> make it larger"));
        assert!(text.contains("simulated GPU does"));
        let long = wrapped("name: ", &"word ".repeat(60));
        assert!(long.lines().count() > 1 && long.lines().all(|line| line.len() <= COLUMNS.1), "{long}");
        assert!(long.lines().skip(1).all(|line| line.starts_with("      word")), "{long}");
    }

    #[test]
    fn the_simulated_gpu_proves_itself() {
        let check = simulator();
        assert_eq!(check.status, Status::Ok, "{check:?}");
    }
}
