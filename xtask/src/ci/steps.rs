//! The steps of CI, in the order they run: what is quick and often wrong comes first.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Outcome, Step};
use crate::kernels::{builder, root};
use crate::{assemble, ptx};

/// Every step.
pub const STEPS: &[Step] = &[
    Step { name: "fmt", what: "the sources are formatted", run: || cargo(&["fmt", "--all", "--check"]) },
    Step {
        name: "clippy",
        what: "clippy has no warning",
        run: || cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    },
    Step { name: "hash", what: "the committed PTX was made from these sources", run: || passed(ptx::check_hash()) },
    Step { name: "lint", what: "the committed PTX keeps the rules", run: || passed(ptx::check_lint()) },
    Step { name: "ptx", what: "the kernels build to the committed PTX", run: rebuild },
    Step { name: "assemble", what: "ptxas takes the PTX, with no spill and no stack frame", run: assembly },
    Step { name: "test", what: "the tests pass", run: || cargo(&["test", "--workspace"]) },
    Step { name: "doc", what: "the documentation builds without a warning", run: doc },
    Step {
        name: "examples",
        what: "the main job ends verified",
        run: || cargo(&["run", "--release", "--example", "moe_layer"]),
    },
    Step { name: "bench", what: "the benchmarks build", run: || cargo(&["bench", "--workspace", "--no-run"]) },
    Step { name: "candle", what: "the library builds beside candle's cudarc features", run: candle },
    Step {
        name: "package",
        what: "the crates build from what would be published",
        // What would be published is checked, not whether it is committed.
        run: || cargo(&["package", "--workspace", "--exclude", "xtask", "--allow-dirty"]),
    },
];

fn passed(result: Result<()>) -> Result<Outcome> {
    result.map(|()| Outcome::Passed)
}

/// Runs the host's cargo at the root of the workspace; what it says goes to the terminal.
fn cargo(args: &[&str]) -> Result<Outcome> {
    run(Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).args(args))
}

fn run(command: &mut Command) -> Result<Outcome> {
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let line = format!("cargo {}", args.join(" "));
    println!("$ {line}");
    let status = command.current_dir(root()).status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(Outcome::Passed)
}

/// Rebuilds the PTX where the device toolchain is installed.
fn rebuild() -> Result<Outcome> {
    match builder().check_toolchain() {
        Ok(()) => passed(ptx::check_text()),
        Err(error) => Ok(Outcome::Skipped(format!("THE PTX WAS NOT REBUILT: {error}"))),
    }
}

/// Assembles the PTX where there is an assembler.
fn assembly() -> Result<Outcome> {
    const WHY: &str = "no ptxas in EPOXIDE_PTXAS or PATH; it is in `pip download --no-deps nvidia-cuda-nvcc==13.0.*`";
    match assemble::find() {
        Some(_) => passed(assemble::run(&assemble::Args::default())),
        None if std::env::var_os("CI").is_some() => bail!(WHY),
        None => Ok(Outcome::Skipped(format!("THE PTX WAS NOT ASSEMBLED: {WHY}"))),
    }
}

fn doc() -> Result<Outcome> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    run(command.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Checks the crate that has candle's cudarc features beside ours, with the workspace's versions of everything shared.
fn candle() -> Result<Outcome> {
    let dir = root().join("xtask/candle-features");
    let lock = "Cargo.lock";
    fs::copy(root().join(lock), dir.join(lock)).context("xtask/candle-features/Cargo.lock")?;
    let target = root().join("target/candle-features");
    let manifest = dir.join("Cargo.toml");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    run(command.arg("check").arg("--manifest-path").arg(manifest).arg("--target-dir").arg(target))
}
