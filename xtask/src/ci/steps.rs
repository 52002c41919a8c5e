//! The steps of CI, in the order they run: what is quick and often wrong comes first.
//!
//! Calls of cargo have `--locked` (but for `candle`, which says why), so that what is checked is what `Cargo.lock` says.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::command::{announce, cargo, host_cargo, output, run, target};
use super::package;
use super::step::{Outcome, Step};
use crate::kernels::{builder, root};
use crate::nccl::{self, Checked};
use crate::{assemble, circles, families, ptx};

/// Set by `.ci/run`, to the reason, when the device toolchain is missing because rustup's server is out of reach.
const NO_DEVICE_TOOLCHAIN: &str = "EPOXIDE_CI_NO_DEVICE_TOOLCHAIN";

/// Every step.
pub const STEPS: &[Step] = &[
    Step { name: "fmt", what: "the sources are formatted", run: || cargo(&["fmt", "--all", "--check"]) },
    Step {
        name: "clippy",
        what: "clippy has no warning",
        run: || cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    },
    Step {
        name: "circles",
        what: "no files use each other, around, but those that are known",
        run: || passed(circles::run(&circles::Args::default())),
    },
    Step { name: "hash", what: "the committed PTX was made from these sources", run: || passed(ptx::check_hash()) },
    Step { name: "lint", what: "the committed PTX keeps the rules", run: || passed(ptx::check_lint()) },
    Step { name: "ptx", what: "the kernels build to the committed PTX", run: rebuild },
    Step {
        name: "assemble",
        what: "ptxas takes the PTX, with no spill and no stack frame, and no kernel grew",
        run: assembly,
    },
    Step {
        name: "nccl",
        what: "the newest NCCL is what its table says, by its headers and its library",
        run: nccl_table,
    },
    Step { name: "test", what: "the tests pass", run: tests },
    Step { name: "doc", what: "the documentation builds without a warning", run: doc },
    Step { name: "examples", what: "the main job ends verified, in both formats", run: examples },
    Step {
        name: "output",
        what: "programs end in time, quietly for a reader that leaves, loudly on a full disk",
        run: outputs,
    },
    Step { name: "bench", what: "every benchmark runs, once", run: bench },
    Step { name: "custom-kernel", what: "the kernel of a user's own is right, and its PTX fresh", run: custom_kernel },
    Step { name: "candle", what: "the library builds beside candle's cudarc features", run: candle },
    Step {
        name: "package",
        what: "the crates are whole as they would be published, licences included",
        run: package::package,
    },
];

fn passed(result: Result<()>) -> Result<Outcome> {
    result.map(|()| Outcome::Passed)
}

/// The last line of what a program printed.
fn last_line(text: &str) -> &str {
    text.trim_end().lines().next_back().unwrap_or_default()
}

/// Rebuilds the PTX where the device toolchain is installed. It is an error where it is not, but for a developer and where
/// the server that has it is out of reach.
fn rebuild() -> Result<Outcome> {
    let error = match builder(&families::read()?).check_toolchain() {
        Ok(()) => return passed(ptx::check_text()),
        Err(error) => error,
    };
    let reason = std::env::var(NO_DEVICE_TOOLCHAIN).unwrap_or_default();
    match (error.is_missing_toolchain(), std::env::var_os("CI")) {
        (true, None) => Ok(Outcome::Skipped(format!("THE PTX WAS NOT REBUILT: {error}"))),
        (true, Some(_)) if !reason.is_empty() => {
            Ok(Outcome::Skipped(format!("THE PTX WAS NOT REBUILT: {reason}: {error}")))
        }
        _ => Err(error.into()),
    }
}

/// Assembles the PTX where there is an assembler.
fn assembly() -> Result<Outcome> {
    const WHY: &str = "no ptxas in EPOXIDE_PTXAS or PATH; it is in `pip download --no-deps nvidia-cuda-nvcc==13.0.*`";
    match assemble::is_there() {
        true => passed(assemble::run(&assemble::Args::default())),
        false if std::env::var_os("CI").is_some() => bail!(WHY),
        false => Ok(Outcome::Skipped(format!("THE PTX WAS NOT ASSEMBLED: {WHY}"))),
    }
}

/// Compares the newest NCCL's headers and library with the table, where its wheel can be had.
fn nccl_table() -> Result<Outcome> {
    Ok(match nccl::check()? {
        Checked::Same => Outcome::Passed,
        Checked::OutOfReach(why) => Outcome::Skipped(format!("NCCL WAS NOT COMPARED WITH ITS TABLE: {why}")),
    })
}

/// Runs the tests. Those of the documentation, which rustdoc compiles for one crate after the other, run beside the others, of which some wait; what they say
/// comes behind.
fn tests() -> Result<Outcome> {
    const TEST: [&str; 4] = ["test", "--locked", "--workspace", "--no-fail-fast"];
    cargo(&[&TEST[..], &["--no-run"]].concat())?;
    thread::scope(|scope| {
        let documentation = scope.spawn(|| host_cargo().args(TEST).arg("--doc").output());
        let ran = cargo(&[&TEST[..], &["--tests"]].concat());
        let said = documentation.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let said = said.context("cannot start the tests of the documentation")?;
        print!("{}{}", String::from_utf8_lossy(&said.stderr), String::from_utf8_lossy(&said.stdout));
        if !said.status.success() {
            bail!("the tests of the documentation failed ({})", said.status);
        }
        ran
    })
}

fn doc() -> Result<Outcome> {
    // The documentation's flags are not the compiler's: nothing is compiled again for them.
    run(host_cargo().args(["doc", "--locked", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Runs `moe_layer` in both formats, `engine` and `raw_pointers`, compiled as a release is. The last line of each is its verdict.
fn examples() -> Result<Outcome> {
    const RUN: [&str; 7] = ["run", "--locked", "--profile", "ci", "-p", "epoxide", "--example"];
    const RUNS: [&[&str]; 4] = [
        &["moe_layer", "--", "--format", "bf16"],
        &["moe_layer", "--", "--format", "fp8"],
        &["engine", "--", "--device", "sim", "--ranks", "3"],
        &["raw_pointers", "--", "--device", "sim", "--ranks", "3"],
    ];
    for line in RUNS {
        let text = output(host_cargo().args(RUN).args(line))?;
        let verdict = last_line(&text);
        if verdict != "verified" {
            bail!("{} ends with `{verdict}`, not with `verified`", line.join(" "));
        }
    }
    Ok(Outcome::Passed)
}

/// A program by its file; what it is run with, and how long it may take at most.
const PROGRAMS: [(&str, &[&str], u64); 6] = [
    ("debug/epoxide", &["plan", "--json"], 60),
    ("debug/epoxide", &["plan", "--nic", "cx7", "--ranks", "64", "--simulate"], 60),
    ("ci/examples/moe_layer", &["--tokens", "16"], 300),
    ("ci/examples/engine", &["--device", "sim"], 300),
    ("ci/examples/raw_pointers", &["--device", "sim"], 300),
    ("debug/examples/bandwidth", &["--device", "sim", "--ranks", "2", "--tokens", "4", "--hidden", "64"], 300),
];

/// Runs programs with a reader that has left (`| true`) and on a full disk (`> /dev/full`). The first is no error; the second is one,
/// of one line and no panic. Both end in time (`timeout`).
///
/// How they are optimised makes no difference to that: they are those that the steps before built, for the same packages, so that their features are the
/// same and nothing is compiled again.
fn outputs() -> Result<Outcome> {
    cargo(&["build", "--locked", "--workspace", "--bin", "epoxide", "--example", "bandwidth"])?;
    let built = ["build", "--locked", "--profile", "ci", "-p", "epoxide"];
    cargo(&[&built[..], &["--example", "moe_layer", "--example", "engine", "--example", "raw_pointers"]].concat())?;
    for (file, args, seconds) in PROGRAMS {
        let program = || {
            let mut command = Command::new(target().join(file));
            command.current_dir(root()).args(args).stderr(Stdio::piped());
            command
        };
        let (reader, writer) = std::io::pipe().context("a pipe")?;
        drop(reader);
        let (code, said) = within(seconds, program().stdout(writer))?;
        if code != Some(0) || !said.is_empty() {
            bail!("with a reader that has left: exit code {code:?}, and `{said}`");
        }
        let full = fs::OpenOptions::new().write(true).open("/dev/full").context("/dev/full")?;
        let (code, said) = within(seconds, program().stdout(full))?;
        if code != Some(1) || !said.starts_with("error: cannot write to standard output: ") || said.lines().count() != 1
        {
            bail!("on a full disk: exit code {code:?}, and `{said}`");
        }
    }
    Ok(Outcome::Passed)
}

/// Runs a program that must end within so many seconds: its exit code, and what it wrote to standard error.
fn within(seconds: u64, command: &mut Command) -> Result<(Option<i32>, String)> {
    let line = announce(command);
    let mut child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > Duration::from_secs(seconds) {
            child.kill().and_then(|()| child.wait()).with_context(|| format!("`{line}` cannot be ended"))?;
            bail!("`{line}` has not ended after {seconds} s");
        }
        thread::sleep(Duration::from_millis(5));
    };
    let mut said = String::new();
    // A few lines at most, which a pipe holds while nobody reads.
    child.stderr.take().context("standard error is a pipe")?.read_to_string(&mut said)?;
    Ok((status.code(), said))
}

/// Runs every case of every benchmark once, which is criterion's `--test`. Tests and programs would not know the flag, so
/// benchmarks alone are run. They are optimised as the examples are, with what was compiled for those.
fn bench() -> Result<Outcome> {
    cargo(&["bench", "--locked", "--profile", "ci", "-p", "epoxide", "--benches", "--", "--test"])
}

/// Checks the example that people copy: does with a copy of it, outside of the repository, what its README says, and what its author does. Where it lies,
/// the same files are but for the paths to Epoxide, which are in one place, and which cargo resolves there.
fn custom_kernel() -> Result<Outcome> {
    let dir = root().join("examples/custom-kernel");
    run(host_cargo().current_dir(&dir).args(["tree", "--locked", "--quiet"]).stdout(Stdio::null()))?;
    let copy = std::env::temp_dir().join(format!("epoxide-{}-my-kernel", std::process::id()));
    copy_files(&dir, &copy).with_context(|| copy.display().to_string())?;
    let manifest = copy.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
    let text = text.replace("\"../../", &format!("\"{}/", root().display()));
    fs::write(&manifest, text).with_context(|| manifest.display().to_string())?;
    let checked = copied_kernel(&copy);
    fs::remove_dir_all(&copy).with_context(|| copy.display().to_string())?;
    checked.context("a copy of custom-kernel outside of the repository")
}

/// Checks a copy of the example: a workspace of its own.
fn copied_kernel(copy: &Path) -> Result<Outcome> {
    let inside = |args: &[&str]| {
        let mut command = host_cargo();
        // Where the device toolchain is installed, PTX other than the committed is an error of the build script; where it is
        // not, stale PTX always is.
        command.current_dir(copy).args(args).env("EPOXIDE_PTX_REFRESH", "check");
        command.env("CARGO_TARGET_DIR", target().join("custom-kernel"));
        command
    };
    run(&mut inside(&["fmt", "--all", "--check"]))?;
    // For clippy cargo runs the build script apart: once is enough.
    let mut clippy = inside(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    run(clippy.env("EPOXIDE_PTX_REFRESH", "0"))?;
    run(&mut inside(&["test", "--locked", "--workspace"]))?;
    let text = output(&mut inside(&["run", "--locked"]))?;
    // Its README: compared with plain Rust. Its exit code says the same, and is checked already.
    if !text.lines().any(|line| line.contains(": 0 of ") && line.ends_with(" elements differ")) {
        bail!("custom-kernel does not say that 0 elements differ from plain Rust");
    }
    Ok(Outcome::Passed)
}

/// Copies a folder, but for what is hidden and what cargo made.
fn copy_files(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "target" || name.to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy_files(&entry.path(), &to.join(name))?;
        } else {
            fs::copy(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}

/// Checks the crate that has candle's cudarc features beside ours, with the workspace's versions of everything shared.
fn candle() -> Result<Outcome> {
    let dir = root().join("xtask/candle-features");
    let lock = "Cargo.lock";
    // Not `--locked`: cargo adds to the workspace's lock file what candle's features bring.
    fs::copy(root().join(lock), dir.join(lock)).context("xtask/candle-features/Cargo.lock")?;
    let target = target().join("candle-features");
    run(host_cargo().arg("check").arg("--manifest-path").arg(dir.join("Cargo.toml")).arg("--target-dir").arg(target))
}
