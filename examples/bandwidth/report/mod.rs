//! A report of a machine: every way to dispatch and combine over tokens and SMs, verified and timed, with what its links can do beside it.
//!
//! 1. [`cells`] says what is measured, [`modes`] in which ways; [`bench`] has what all of it shares on a rank.
//! 2. [`measure`] opens the ranks, goes through the cells, and begins anew behind one that failed: that one is a row with its reason.
//! 3. What came of it is a [`Report`]: numbers as they are printed, and nothing else. It is written as `report.json`.
//! 4. [`markdown`] and [`curves`] make everything else from that, now or later (`--render`).
mod align;
mod bench;
mod cells;
mod curves;
mod exchange;
mod links;
mod machine;
mod markdown;
mod measure;
mod modes;
#[path = "../../../cli/src/panel.rs"]
mod panel;
mod predicted;
mod record;
mod routing;
mod summary;
mod table;
mod timing;

use std::fmt::Write;
use std::fs;
use std::iter;
use std::path::Path;
use std::sync::Once;

use anyhow::{Context, Result, ensure};

pub use self::record::Report;
pub use self::routing::Routing;

use crate::options::Options;
use crate::output;
use crate::progress::Progress;

/// What a folder has its numbers in.
const NUMBERS: &str = "report.json";
/// Under what name they are written, before they take the place of those of before.
const NEW_NUMBERS: &str = "report.json.new";
/// And its tables.
const TABLES: &str = "report.md";

/// Makes a report, and writes it to `folder`; the exit code.
pub fn make(options: &Options, folder: &Path) -> u8 {
    // What cannot be written is found before an hour of measuring, not behind it.
    let tried = folder.join(NEW_NUMBERS);
    let try_it =
        || fs::create_dir_all(folder).and_then(|()| fs::write(&tried, "")).and_then(|()| fs::remove_file(&tried));
    if let Err(error) = try_it() {
        let error = format_args!("--report {folder:?}: files cannot be written there: {error}");
        return output::fail(error, output::BAD_INPUT);
    }
    let progress = Progress::new();
    // Whoever ends it before its time keeps what was measured, beside no tables of another report. What cannot be written now is written with what comes next.
    let others = Once::new();
    let save = |report: &Report| {
        others.call_once(|| remove_tables(folder));
        _ = write_numbers(report, folder);
    };
    let measured = measure::all(options, &progress, &save);
    drop(progress);
    let written = measured.and_then(|report| {
        write(&report, folder)?;
        Ok(report)
    });
    ended(written, folder)
}

/// Writes tables and curves of the numbers in `folder` again; the exit code.
pub fn render(folder: &Path) -> u8 {
    let read = || -> Result<Report> {
        let path = folder.join(NUMBERS);
        let text = fs::read_to_string(&path).with_context(|| format!("--render {folder:?}: no {NUMBERS} to read"))?;
        let report: Report = serde_json::from_str(&text).with_context(|| format!("{path:?} is no report"))?;
        let version = record::VERSION;
        ensure!(report.version == version, "{path:?} is a report of version {}, and this is {version}", report.version);
        Ok(report)
    };
    match read() {
        Err(error) => output::fail(format_args!("{error:#}"), output::BAD_INPUT),
        Ok(report) => ended(write(&report, folder).map(|()| report), folder),
    }
}

fn write(report: &Report, folder: &Path) -> Result<()> {
    write_numbers(report, folder)?;
    let tables = (TABLES, markdown::text(report));
    for (name, text) in iter::once(tables).chain(curves::files(report)?) {
        write_file(&folder.join(name), &text)?;
    }
    Ok(())
}

/// Removes what was made of other numbers, if it is there.
fn remove_tables(folder: &Path) {
    for name in [TABLES].iter().chain(&curves::NAMES) {
        _ = fs::remove_file(folder.join(name));
    }
}

/// Writes the numbers: all at once, so that a reader finds those of before or these.
fn write_numbers(report: &Report, folder: &Path) -> Result<()> {
    let (path, new) = (folder.join(NUMBERS), folder.join(NEW_NUMBERS));
    write_file(&new, &(serde_json::to_string_pretty(report).context("the report as JSON")? + "\n"))?;
    fs::rename(&new, &path).with_context(|| format!("{path:?} cannot be written"))
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("{path:?} cannot be written"))
}

/// Says what came of it.
fn ended(written: Result<Report>, folder: &Path) -> u8 {
    match written {
        Err(error) => {
            let code = error.downcast_ref().map_or(output::FAILED, output::code_of);
            output::fail(format_args!("{error:#}"), code)
        }
        Ok(report) => {
            let failed = report.failures();
            let mut text = format!(
                "{folder:?}: {} times of {} ranks in {} s, {failed} of them missing because something failed\n",
                report.rows.len(),
                report.setting.ranks,
                report.seconds
            );
            if report.left > 0 {
                let _ = writeln!(
                    text,
                    "It was ended before its time, with {} measurements left, each of some times",
                    report.left
                );
            }
            output::end(&text, if failed == 0 && report.left == 0 { 0 } else { output::FAILED })
        }
    }
}
