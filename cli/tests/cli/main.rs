//! The command as its users run it.
mod hardware;
mod plan;
mod refused;
mod sweeps;
mod written;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn epoxide(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_epoxide")).args(args).output().expect("the command was built")
}

/// What a good run prints.
fn prints(args: &[&str]) -> String {
    let output = epoxide(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What a bad run says: one error, exit code 2, nothing on standard output.
fn fails(args: &[&str]) -> String {
    let output = epoxide(args);
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    assert!(error.starts_with("error: ") && output.stdout.is_empty(), "{args:?}: {error}");
    error
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&prints(args)).expect("JSON")
}

/// A file of this test's own.
fn file(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).expect("the test's directory is writable");
    path
}

const ISSUE: &str = "plan --gpu h200 --nic cx7 --ranks 64 --per-node 8 --tokens 4096 --hidden 7168 --experts 256 --top-k 8 --format fp8";

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}
