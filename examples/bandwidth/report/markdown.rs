//! A report as a page of tables.
use std::fmt::Write;

use super::record::{Latency, Outcome, Report, Row};
use super::summary;
use super::table::table;

/// The page.
pub fn text(report: &Report) -> String {
    let mut out = String::from("# What dispatch and combine reach here\n\n");
    heading(&mut out, report);
    summary::write(&mut out, report);
    let mut sections: Vec<(&str, &str, &str)> = Vec::new();
    for row in &report.rows {
        let section = section(row);
        if !sections.contains(&section) {
            sections.push(section);
        }
    }
    for of in sections {
        let (operation, layout, routing) = of;
        let _ = writeln!(out, "## {operation}: {layout} rows, {routing} routing\n");
        table(&mut out, &HEADER, report.rows.iter().filter(|row| section(row) == of).map(cells));
    }
    if !report.host.is_empty() {
        let _ = writeln!(
            out,
            "## What calls take of the host\n\nBy the clock of the slowest rank's thread, while nothing waits for it.\n"
        );
        times(&mut out, &report.host);
    }
    ceilings(&mut out, report);
    out
}

/// What links and launches do by themselves.
fn ceilings(out: &mut String, report: &Report) {
    let _ = writeln!(
        out,
        "## The links alone\n\nPlain kernels with nothing else to do: every rank moves bytes to or from all others at once, or all others to or from rank 0 alone, as where rows go to one rank; with one block on each SM.\n"
    );
    let ended = Some("the report was ended before".to_owned()).filter(|_| report.left > 0);
    if let Some(why) = report.without_links.as_ref().or(ended.as_ref()) {
        let _ = writeln!(out, "Not measured: {why}\n");
        return;
    }
    let rows = report.links.iter().map(|link| {
        let numbers = [link.median_us, link.mb, link.gb_s].map(|number| number.to_string());
        [link.way.clone(), link.sms.to_string()].into_iter().chain(numbers).collect()
    });
    table(out, &["way", "SMs", "median us", "MB", "GB/s"], rows);
    let _ = writeln!(out, "## Launches and flags alone\n");
    times(out, &report.latencies);
}

/// Of what takes a time of its own.
fn times(out: &mut String, latencies: &[Latency]) {
    let row = |latency: &Latency| {
        let numbers = [latency.median_us, latency.p95_us, latency.p99_us, latency.max_us];
        [latency.what.clone()].into_iter().chain(numbers.map(|number| number.to_string())).collect()
    };
    table(out, &["what", "median us", "p95", "p99", "max"], latencies.iter().map(row));
}

/// Rows of one table have these in common.
fn section(row: &Row) -> (&str, &str, &str) {
    (&row.operation, &row.layout, row.routing.name())
}

/// Which machine, and what is measured how.
fn heading(out: &mut String, report: &Report) {
    let (machine, setting) = (&report.machine, &report.setting);
    let driver = machine.driver.as_ref().map_or(String::new(), |driver| format!(", driver {driver}"));
    let _ = writeln!(out, "**Machine.** {}{driver}. Ranks:\n", machine.links);
    for (rank, device) in machine.ranks.iter().enumerate() {
        let gpu = setting.gpus.get(rank).map_or(String::new(), |gpu| format!(" on {gpu}"));
        let _ = writeln!(out, "* rank {rank}{gpu}: {device}");
    }
    let planned = machine.planned_as.as_ref().map_or("it does not know".to_owned(), |gpu| format!("it knows as {gpu}"));
    let _ = writeln!(
        out,
        "\n**Setting.** {} ranks, hidden {}, top-{} of {} experts, seed {}; epoxide {}, report of version {}, made in {} s with {} measurements left. Each cell was verified bit for bit \
         before and after it was timed.\n\n\
         **Columns.** Times are of the slowest rank in each repetition, from events on its stream, while no host thread is in the way: the median, \
         what 95 and 99 of 100 do not exceed, and the longest. *late* counts repetitions of batches that a host thread was late with, even when they were \
         measured again: it may be in their times. Where routing is uneven, ranks exchange a token before each operation, so that they begin it together. A *pair in a graph* is a dispatch and its combine behind it, of 75 in a graph, and one repetition all of them. A *half* is what of an operation comes before other work, or behind it. *MB from others* is what comes into a rank from the other ranks, the mean, \
         and *GB/s* that over the median time from end to end; *busiest* is the same of what goes into or out of the rank that has most of it. *Planner* is what it predicts for GPUs that {planned}, and *ratio* measured over predicted.\n",
        setting.ranks,
        setting.hidden,
        setting.top_k,
        setting.experts,
        setting.seed,
        report.epoxide,
        report.version,
        report.seconds,
        report.left
    );
}

const HEADER: [&str; 16] = [
    "format",
    "tokens",
    "SMs",
    "median us",
    "p95",
    "p99",
    "max",
    "repetitions",
    "late",
    "MB from others",
    "GB/s",
    "busiest MB",
    "busiest GB/s",
    "planner us",
    "ratio",
    "",
];

fn cells(row: &Row) -> Vec<String> {
    let mut cells = vec![row.format.clone(), row.tokens.to_string(), row.sms.to_string()];
    match &row.outcome {
        Outcome::Measured(m) => {
            cells.extend([m.median_us, m.p95_us, m.p99_us, m.max_us].map(|us| us.to_string()));
            cells.extend([m.repetitions, m.late].map(|count| count.to_string()));
            cells.extend([m.from_others_mb, m.from_others_gb_s].map(|number| number.to_string()));
            let ratio = m.predicted_us.map(|us| format!("{:.2}", m.median_us / us));
            let known =
                [m.busiest_mb, m.busiest_gb_s, m.predicted_us].map(|number| number.map(|number| number.to_string()));
            cells.extend(known.into_iter().chain([ratio]).map(|text| text.unwrap_or_else(|| "-".to_owned())));
            cells.push(String::new());
        }
        Outcome::Failed(why) => {
            cells.extend(std::iter::repeat_n("-".to_owned(), HEADER.len() - cells.len() - 1));
            // A bar would end the cell.
            cells.push(why.replace('|', "/").replace('\n', " "));
        }
    }
    cells
}
