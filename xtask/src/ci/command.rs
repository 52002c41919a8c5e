//! How steps call cargo.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::step::Outcome;
use crate::kernels::root;

/// The host's cargo, at the root of the workspace.
pub fn host_cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Runs the host's cargo at the root of the workspace; what it says goes to the terminal.
pub fn cargo(args: &[&str]) -> Result<Outcome> {
    run(host_cargo().args(args))
}

pub fn run(command: &mut Command) -> Result<Outcome> {
    let line = announce(command);
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(Outcome::Passed)
}

/// Runs a command and returns what it printed, which goes to the terminal too, after the fact.
pub fn output(command: &mut Command) -> Result<String> {
    let line = announce(command);
    let out = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start `{line}`"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    print!("{text}");
    if !out.status.success() {
        bail!("`{line}` failed ({})", out.status);
    }
    Ok(text)
}

/// Prints a command as one would type it.
pub fn announce(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words: Vec<_> = [program].into_iter().chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    let line = words.join(" ");
    println!("$ {line}");
    line
}
