//! Goes through all cells on all ranks, and begins anew behind one that failed.
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Result;
use epoxide::{Comm, LocalGroup, Mode as Machines, bf16};

use super::align::Align;
use super::bench::Bench;
use super::cells::{Cell, cells};
use super::modes::{MODES, Mode, Moves, Operation};
use super::record::{Latency, Link, Measured, Outcome, Report, Row, Setting, VERSION, rounded};
use super::routing::Routing;
use super::timing::Timed;
use super::{links, machine, predicted, timing};
use crate::name;
use crate::options::{Device, Options};
use crate::percentiles::Percentiles;
use crate::progress::Progress;

/// Failures in a row behind which nothing is tried any more: every one may take as long as an operation has to give up.
const TOO_MANY: usize = 5;

/// What links and launches do by themselves is one measurement more, the last.
const LINKS: usize = 1;

/// A cell in one mode.
type Step = (Cell, &'static Mode);

/// What one rank found of a step.
struct Own {
    timed: Timed,
    /// Microseconds of the host for its calls, where they are timed.
    host_us: Vec<f64>,
    /// Tokens that send a row to each rank.
    sent: Vec<u32>,
    /// What is wrong with the sums.
    mismatch: Option<String>,
}

/// A report while it grows: what ranks found of the step that they are at, and of all before it.
struct Growing<'a> {
    options: &'a Options,
    report: Report,
    /// What ranks have found of the first step that is left.
    found: Vec<Option<Own>>,
    /// When measuring began.
    start: Instant,
    /// Is given what there is whenever there is more of it.
    save: &'a (dyn Fn(&Report) + Sync),
}

impl Growing<'_> {
    /// Takes what a rank found of a step; a step that all have been through is done.
    fn take(&mut self, step: Step, rank: u32, own: Own) {
        self.found[rank as usize] = Some(own);
        if self.found.iter().any(Option::is_none) {
            return;
        }
        let found: Vec<Own> = self.found.iter_mut().filter_map(Option::take).collect();
        let rows = measured(self.options, self.report.machine.planned_as.as_deref(), step, &found);
        self.report.host.extend(calls(step, &found));
        self.done(rows);
    }

    /// A step's rows, whatever is in them.
    fn done(&mut self, rows: Vec<Row>) {
        self.found.fill_with(|| None);
        self.report.rows.extend(rows);
        self.report.left -= 1;
        self.report.seconds = seconds_since(self.start);
        (self.save)(&self.report);
    }
}

/// Measures everything; `save` is given the report whenever there is more of it.
///
/// # Errors
///
/// That there are no such ranks. What fails later is in the report.
pub fn all(options: &Options, progress: &Progress, save: &(dyn Fn(&Report) + Sync)) -> Result<Report> {
    let start = Instant::now();
    let modes = |cell| MODES.iter().filter(move |mode| (mode.has)(&cell)).map(move |mode| (cell, mode));
    let steps: Vec<Step> = cells(options).into_iter().flat_map(modes).collect();
    progress.expect(steps.len());
    progress.step("measure");
    let devices = ranks(options)?.run(|comm| Ok(comm.device()))?;
    let machine = machine::machine(devices);
    let (experts, top_k, hidden, seed) = (options.experts, options.top_k, options.hidden, options.seed);
    let setting = Setting { ranks: options.ranks, gpus: options.gpu_of_ranks(), hidden, experts, top_k, seed };
    let epoxide = env!("CARGO_PKG_VERSION").to_owned();
    let left = steps.len() + LINKS;
    let report = Report { version: VERSION, epoxide, machine, setting, left, ..Report::default() };
    let found = (0..options.ranks).map(|_| None).collect();
    let growing = Mutex::new(Growing { options, report, found, start, save });
    let mut failed_in_a_row = 0;
    loop {
        let left = locked(&growing).report.left;
        let steps = &steps[steps.len() + LINKS - left..];
        let Some(first) = steps.first() else { break };
        if failed_in_a_row == TOO_MANY {
            let why = format!("not tried: {TOO_MANY} before it failed in a row");
            locked(&growing).done(failed(*first, &why));
            continue;
        }
        let ran = run(options, steps, progress, &growing);
        let mut growing = locked(&growing);
        if growing.report.left < left {
            failed_in_a_row = 0;
        }
        let step = steps[left - growing.report.left..].first();
        if let (Err(error), Some(step)) = (ran, step) {
            growing.done(failed(*step, &error.to_string()));
            failed_in_a_row += 1;
            progress.rows(1);
        }
    }
    let growing = growing.into_inner().unwrap_or_else(PoisonError::into_inner);
    progress.step("links");
    let report = with_links(options, growing.report);
    Ok(Report { seconds: seconds_since(start), ..report })
}

fn seconds_since(start: Instant) -> f64 {
    rounded(start.elapsed().as_secs_f64())
}

/// The report with what links and launches do by themselves, or why that is not there.
fn with_links(options: &Options, mut report: Report) -> Report {
    let mut sms = options.sms.clone();
    sms.sort_unstable();
    let found = ranks(options).and_then(|ranks| ranks.run(|comm| links::measure(options, &comm, &sms)));
    report.left -= LINKS;
    report.without_links = found.as_ref().err().map(ToString::to_string);
    let Ok(found) = found else { return report };
    let slowest = |of: &dyn Fn(&links::Found) -> Vec<f64>| {
        let times: Vec<Vec<f64>> = found.iter().map(of).filter(|times| !times.is_empty()).collect();
        Percentiles::of_slowest(&times.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    for (way, name) in links::WAYS.iter().enumerate() {
        for (at, sms) in sms.iter().enumerate() {
            let us = slowest(&|found| found.moved_ms[at][way].clone()).scaled(1e3);
            // One rank alone has nobody to move bytes to.
            if us.max > 0.0 {
                report.links.push(Link::new(name, *sms, us.median, found[0].bytes as f64));
            }
        }
    }
    for (at, what) in links::LATENCIES.iter().enumerate() {
        let us = slowest(&|found| found.latencies_us[at].clone());
        if us.max > 0.0 {
            report.latencies.push(Latency::new(what, us));
        }
    }
    report
}

/// The ranks, as threads.
fn ranks(options: &Options) -> epoxide::Result<LocalGroup> {
    match options.device {
        Device::Sim => LocalGroup::simulated(options.ranks, Machines::Fast { workers: 0 }),
        Device::Cuda => LocalGroup::on_gpus(&options.gpu_of_ranks()),
    }
}

/// Runs steps until all are done or one fails.
fn run(options: &Options, steps: &[Step], progress: &Progress, growing: &Mutex<Growing<'_>>) -> epoxide::Result<()> {
    let of_rank = |comm: Comm| {
        let mut bench = Bench::new(options, &comm, steps[0].0)?;
        let tokens = options.tokens.iter().copied().max().unwrap_or(1);
        let mut y = comm.empty::<bf16>(u64::from(tokens) * u64::from(options.hidden))?;
        for step in steps {
            let own = measure(&mut bench, *step, &mut y)?;
            locked(growing).take(*step, comm.rank(), own);
            if comm.rank() == 0 {
                progress.rows(1);
            }
        }
        Ok(())
    };
    ranks(options)?.run(of_rank).map(|_| ())
}

fn locked<'g, 'o>(growing: &'g Mutex<Growing<'o>>) -> MutexGuard<'g, Growing<'o>> {
    growing.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Verifies one step, and times it; collective.
fn measure(bench: &mut Bench<'_>, (cell, mode): Step, y: &mut epoxide::DeviceTensor<bf16>) -> epoxide::Result<Own> {
    bench.prepare(cell)?;
    let (comm, sent) = (bench.comm, bench.sent(cell));
    let mut exchange = (mode.open)(bench, cell)?;
    let mut align = if cell.routing == Routing::Uniform { None } else { Some(Align::open(bench, cell)?) };
    bench.spoil(cell, y)?;
    // From here on nobody allocates.
    comm.barrier()?;
    exchange.send()?;
    exchange.write_outputs(bench.options.corrupt)?;
    exchange.bring_back(y)?;
    exchange.synchronize()?;
    comm.barrier()?;
    let before = bench.mismatch(cell, y)?;
    let wrong = comm.all_gather(&[u8::from(before.is_some())])?;
    let mut own = Own { timed: Timed::default(), host_us: Vec::new(), sent, mismatch: before };
    if wrong.iter().all(|wrong| *wrong == [0]) {
        exchange.ready(y)?;
        bench.spoil(cell, y)?;
        let repetitions = bench.options.repetitions(cell.tokens) as usize;
        own.timed = timing::parts(comm, &mut *exchange, align.as_mut(), y, repetitions)?;
        comm.barrier()?;
        // The experts' outputs have lain there all the time, and belong to what was sent each time.
        own.mismatch = bench.mismatch(cell, y)?.map(|what| format!("after all repetitions: {what}"));
        if mode.calls.is_some() && has_calls(bench.options, cell) {
            own.host_us = timing::calls(comm, &mut *exchange, y)?;
        }
    }
    align.map_or(Ok(()), Align::close)?;
    exchange.close()?;
    Ok(own)
}

/// The rows of a step that all ranks have been through.
fn measured(options: &Options, gpu: Option<&str>, step: Step, ranks: &[Own]) -> Vec<Row> {
    if let Some(what) = ranks.iter().find_map(|own| own.mismatch.as_ref()) {
        return failed(step, what);
    }
    let (cell, mode) = step;
    // Rows go from one rank to another, and as many sums go back.
    let rows = crossing(&ranks.iter().map(|own| own.sent.as_slice()).collect::<Vec<_>>());
    let predicted = predicted::microseconds(gpu, options, cell);
    assert!(ranks.iter().all(|own| own.timed.ms.len() >= mode.operations.len()), "every name has a part");
    let (row_bytes, sum_bytes) = (options.wire_row(cell.format.into()), options.bf16_row());
    let times = |(part, operation): (usize, &Operation)| {
        // Bytes of a row, and what the planner says of whole operations.
        let (bytes, planned) = match (operation.moves, predicted) {
            (Moves::Rows, [dispatch, _]) => (row_bytes, dispatch),
            (Moves::Sums, [_, combine]) => (sum_bytes, combine),
            (Moves::RowsAndSums, [dispatch, combine]) => {
                (row_bytes + sum_bytes, dispatch.zip(combine).map(|(dispatch, combine)| dispatch + combine))
            }
            (Moves::Words, _) => (0.0, None),
        };
        let ms: Vec<&[f64]> = ranks.iter().map(|own| own.timed.ms[part].as_slice()).collect();
        let (times, us) = ([ms[0].len(), ranks[0].timed.late], Percentiles::of_slowest(&ms));
        let planned = if operation.planned { planned } else { None };
        row(cell, operation.name, Outcome::Measured(Measured::new(times, us, rows.map(|rows| rows * bytes), planned)))
    };
    mode.operations.iter().enumerate().map(times).collect()
}

/// Whether the host's part is timed of a cell: of each layout one, as tokens and SMs are no matter to it.
fn has_calls(options: &Options, cell: Cell) -> bool {
    let usual = |of: &Cell| (Some(&of.routing), Some(&of.format)) == (options.routing.first(), options.format.first());
    let of_layout = cells(options).into_iter().filter(|of| of.layout == cell.layout && usual(of));
    of_layout.min_by_key(|of| (of.tokens, of.sms)) == Some(cell)
}

/// What a step's calls take of the host, if that was timed.
fn calls((cell, mode): Step, ranks: &[Own]) -> Option<Latency> {
    let us: Vec<&[f64]> = ranks.iter().map(|own| own.host_us.as_slice()).collect();
    let timed = us.iter().all(|us| !us.is_empty()) && ranks.iter().all(|own| own.mismatch.is_none());
    let Row { layout, format, .. } = row(cell, mode.operations[0].name, Outcome::Failed(String::new()));
    let what = format!("{}: {layout} rows, {format}", mode.calls?);
    timed.then(|| Latency::new(&what, Percentiles::of_slowest(&us)))
}

/// Rows that come into a rank from the others, the mean; and the most that come into one, or go out of one. `sent` has the rows of every rank to each.
fn crossing(sent: &[&[u32]]) -> [f64; 2] {
    let ranks = sent.len();
    let between = |from: usize, to: usize| if from == to { 0.0 } else { f64::from(sent[from][to]) };
    let out = |rank: usize| (0..ranks).map(|to| between(rank, to)).sum::<f64>();
    let into = |rank: usize| (0..ranks).map(|from| between(from, rank)).sum::<f64>();
    let most = (0..ranks).map(|rank| out(rank).max(into(rank))).fold(0.0, f64::max);
    [(0..ranks).map(into).sum::<f64>() / ranks.max(1) as f64, most]
}

/// The rows of a step of which there are no times.
fn failed((cell, mode): Step, why: &str) -> Vec<Row> {
    mode.operations.iter().map(|of| row(cell, of.name, Outcome::Failed(why.to_owned()))).collect()
}

fn row(cell: Cell, operation: &str, outcome: Outcome) -> Row {
    Row {
        operation: operation.to_owned(),
        layout: name(&cell.layout),
        format: name(&cell.format),
        routing: cell.routing,
        tokens: cell.tokens,
        sms: cell.sms,
        outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    /// Behind each step, and behind each that failed.
    #[test]
    fn a_report_is_saved_as_it_grows() {
        let args = "bandwidth --device sim --ranks 2 --tokens 3,2 --hidden 16 --experts 1 --top-k 1 --sms 1 --repeat 2 --format bf16 \
                    --layout compact --capacity 5 --report unused";
        let mut options = Options::parse_from(args.split_whitespace());
        options.settle(None).expect("they are right");
        let seen = Mutex::new(Vec::new());
        let save = |report: &Report| seen.lock().unwrap().push((report.left, report.rows.len(), report.failures()));
        let report = all(&options, &Progress::new(), &save).expect("there are ranks");
        let seen = seen.into_inner().unwrap();
        let steps = seen.len();
        assert!(steps >= 6 && seen.iter().map(|(left, ..)| *left).eq((LINKS..=steps).rev()), "{seen:?}");
        assert!(seen.is_sorted_by_key(|(_, rows, _)| *rows) && seen[0].1 > 0, "{seen:?}");
        // What does not fit fails first.
        assert!(seen[0].2 > 0, "{seen:?}");
        assert_eq!(seen[steps - 1], (LINKS, report.rows.len(), report.failures()), "{seen:?}");
        assert!(report.left == 0 && !report.links.is_empty() && report.without_links.is_none());
    }

    /// All send 5 to themselves; the first gets 3 and 4 from the others, and sends 1 to one of them.
    #[test]
    fn rows_are_counted_between_ranks_and_where_most_of_them_are() {
        assert_eq!(crossing(&[&[5, 1, 0], &[3, 5, 0], &[4, 0, 5]]), [8.0 / 3.0, 7.0]);
        assert_eq!(crossing(&[&[5, 1, 6], &[3, 5, 0], &[1, 0, 5]])[1], 7.0);
        assert_eq!(crossing(&[&[9]]), [0.0, 0.0]);
    }
}
