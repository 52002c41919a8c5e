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

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

pub use self::record::Report;
pub use self::routing::Routing;

use crate::options::Options;
use crate::output;
use crate::progress::Progress;

/// What a folder has its numbers in.
const NUMBERS: &str = "report.json";
/// And its tables.
const TABLES: &str = "report.md";

/// Makes a report, and writes it to `folder`; the exit code.
pub fn make(options: &Options, folder: &Path) -> u8 {
    // What cannot be written is found before an hour of measuring, not behind it.
    if let Err(error) = fs::create_dir_all(folder).and_then(|()| fs::write(folder.join(NUMBERS), "")) {
        let error = format_args!("--report {folder:?}: files cannot be written there: {error}");
        return output::fail(error, output::BAD_INPUT);
    }
    let start = Instant::now();
    let progress = Progress::new();
    let measured = measure::all(options, &progress);
    drop(progress);
    let written = measured.and_then(|mut report| {
        report.seconds = record::rounded(start.elapsed().as_secs_f64());
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
    let mut files = vec![
        (NUMBERS, serde_json::to_string_pretty(report).context("the report as JSON")? + "\n"),
        (TABLES, markdown::text(report)),
    ];
    files.extend(curves::files(report)?);
    for (name, text) in files {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("{path:?} cannot be written"))?;
    }
    Ok(())
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
            let text = format!(
                "{folder:?}: {} times of {} ranks in {} s, {failed} of them missing because something failed\n",
                report.rows.len(),
                report.setting.ranks,
                report.seconds
            );
            output::end(&text, if failed == 0 { 0 } else { output::FAILED })
        }
    }
}
