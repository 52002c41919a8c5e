//! `cargo xtask nccl`: the table of NCCL's versions, `host/src/nccl/versions.rs`, made from NVIDIA's own wheels.
//!
//! Each wheel comes from PyPI by pip, by its hash. A C compiler says where the fields are that the library writes and whether the functions
//! have the types that it calls them by, and the wheel's library must export them all. `--check` does so for the newest alone, and writes
//! nothing: no GPU is needed, and it takes some seconds.

mod row;
mod wheel;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::kernels::root;
use row::Row;
use wheel::Fetched;

/// Options of `cargo xtask nccl`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Add this version to the table.
    #[arg(long, value_name = "VERSION")]
    add: Option<String>,
    /// Compare the newest version of the table with its wheel, and write nothing.
    #[arg(long, conflicts_with = "add")]
    check: bool,
}

/// How a check ended, if it did not fail.
pub enum Checked {
    Same,
    /// The wheel cannot be had.
    OutOfReach(String),
}

/// Runs `cargo xtask nccl`.
pub fn run(args: &Args) -> Result<()> {
    if args.check {
        return match check()? {
            Checked::Same => Ok(()),
            Checked::OutOfReach(why) => bail!("{why}"),
        };
    }
    let mut wanted: Vec<(String, Option<String>)> =
        table()?.into_iter().map(|row| (row.name(), Some(row.sha256))).collect();
    if let Some(version) = &args.add {
        wanted.push((version.clone(), None));
    }
    let mut rows = Vec::new();
    for (version, hash) in wanted {
        println!("NCCL {version}");
        match wheel::fetch(&version, hash.as_deref())? {
            Fetched::Here(wheel) => rows.push(Row::of(&wheel).with_context(|| format!("NCCL {version}"))?),
            Fetched::OutOfReach(why) => bail!("{why}"),
        }
    }
    rows.sort_by_key(|row| row.version);
    let path = path();
    fs::write(&path, text(&rows)).with_context(|| path.display().to_string())
}

/// Compares the newest row with its wheel.
pub fn check() -> Result<Checked> {
    let rows = table()?;
    let newest = rows.last().context("the table has no version")?;
    match wheel::fetch(&newest.name(), Some(&newest.sha256))? {
        Fetched::OutOfReach(why) => Ok(Checked::OutOfReach(why)),
        Fetched::Here(wheel) => {
            let found = Row::of(&wheel)?;
            if found != *newest {
                bail!("{} is not what its wheel says: {found:?}; `cargo xtask nccl` writes it", newest.name());
            }
            println!("NCCL {}: as in the table", newest.name());
            Ok(Checked::Same)
        }
    }
}

fn path() -> PathBuf {
    root().join("host/src/nccl/versions.rs")
}

/// The committed rows.
fn table() -> Result<Vec<Row>> {
    let path = path();
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    text.lines().filter(|line| line.starts_with("    Row {")).map(Row::parse).collect()
}

/// The whole file.
fn text(rows: &[Row]) -> String {
    let mut text = "\
//! What each version of NCCL has of what is used here. Made by `cargo xtask nccl`, from the headers and the library of each wheel
//! (nvidia-nccl-cu13 on PyPI), and not by hand.

/// A version.
#[allow(dead_code, reason = \"what the declarations are compared with, in tests and by `cargo xtask nccl`\")]
pub(super) struct Row {
    /// NCCL's own number.
    pub version: i32,
    /// Of the wheel.
    pub sha256: &'static str,
    /// `NCCL_API_MAGIC`.
    pub magic: u32,
    /// Of `ncclUniqueId`.
    pub unique_id_bytes: usize,
    /// Of `ncclConfig_t`.
    pub config_bytes: usize,
    /// Where its fields are.
    pub config: [(&'static str, usize); 7],
}

/// All versions that do and have a wheel, the oldest first.
#[rustfmt::skip]
pub(super) const VERSIONS: &[Row] = &[
"
    .to_owned();
    for row in rows {
        let _ = writeln!(text, "{row}");
    }
    text + "];\n"
}
