//! The compiler's run: the device toolchain's cargo on a kernel crate, for one of two purposes.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::backend::absolute;
use crate::builder::PROFILE;
use crate::environment::refuse_nesting;
use crate::names::{RECURSION_GUARD, TARGET};
use crate::toolchain::{Toolchain, command};
use crate::{BuildError, Ptx, PtxBuilder, finish};

/// What a text is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be run: the same text wherever it is built.
    Ship,
    /// To be read: with a line of source, by its path on this machine, for every instruction.
    Explain,
}

impl PtxBuilder {
    /// Compiles the crate and finishes its PTX. The compiler's messages go to standard error as they come.
    ///
    /// # Errors
    ///
    /// What [`PtxBuilder::check_toolchain`], [`PtxBuilder::source_hash`] and [`finish`] return, and [`crate::Families::check`] if
    /// there are families; [`BuildError::Nested`] inside another PTX build; [`BuildError::NoBackend`]; [`BuildError::Compile`]
    /// if the compiler refuses the crate; [`BuildError::Artifact`] if it leaves no PTX.
    pub fn build(&self) -> Result<Ptx, BuildError> {
        let crate_dir = absolute(&self.crate_dir);
        refuse_nesting(&crate_dir)?;
        // What is edited during the build makes its PTX stale, never fresh.
        let crates = self.crate_hashes()?;
        let raw = self.compile(&crate_dir, Purpose::Ship)?;
        // Only now there is a lock file for certain: cargo makes what is missing.
        let ptx = finish(&raw, &self.stamp(&crates, &self.resolved()?))?;
        if !self.families.is_empty() {
            self.families.check(&ptx)?;
        }
        Ok(ptx)
    }

    /// Compiles the crate and returns what LLVM wrote. What the compiler says goes to standard error, once.
    pub(crate) fn compile(&self, crate_dir: &Path, purpose: Purpose) -> Result<String, BuildError> {
        self.backend.check()?;
        let toolchain = Toolchain::find(&self.toolchain, &self.backend)?;
        let target = self.output_dir(crate_dir, purpose);
        let out = target.join(TARGET).join("release");
        // A file of a former name would be a second one; cargo puts back what is fresh.
        for stale in ptx_files(&out) {
            std::fs::remove_file(&stale).map_err(BuildError::io("remove", &stale))?;
        }
        self.run_cargo(crate_dir, &toolchain, &target, purpose)?;
        let files = ptx_files(&out);
        let [file] = files.as_slice() else {
            return Err(BuildError::Artifact { dir: out, found: files.len(), crate_dir: crate_dir.to_owned() });
        };
        std::fs::read_to_string(file).map_err(BuildError::io("read", file))
    }

    fn output_dir(&self, crate_dir: &Path, purpose: Purpose) -> PathBuf {
        let default = || match std::env::var_os("OUT_DIR") {
            Some(out) => PathBuf::from(out).join("epoxide-ptx"),
            None => crate_dir.join("target/epoxide-ptx"),
        };
        let dir = absolute(&self.target_dir.clone().unwrap_or_else(default));
        // A folder for each: cargo would take the text of the one for the other's.
        if purpose == Purpose::Ship { dir } else { dir.join("explain") }
    }

    /// Runs the device toolchain's cargo.
    fn run_cargo(
        &self,
        crate_dir: &Path,
        toolchain: &Toolchain,
        target: &Path,
        purpose: Purpose,
    ) -> Result<(), BuildError> {
        let mut cargo = command(&toolchain.name, "cargo");
        cargo.current_dir(crate_dir).args([
            "rustc",
            "--lib",
            "--crate-type",
            "cdylib",
            "--release",
            "--target",
            TARGET,
        ]);
        cargo.arg(self.backend.build_std()).arg("--target-dir").arg(target);
        for setting in PROFILE {
            cargo.arg("--config").arg(format!("profile.release.{setting}"));
        }
        if purpose == Purpose::Explain {
            cargo.args(["--config", "profile.release.debug=\"line-directives-only\""]);
        }
        if self.locked {
            cargo.arg("--locked");
        }
        cargo
            .env("CARGO_ENCODED_RUSTFLAGS", self.rustflags(crate_dir, toolchain, purpose))
            .env(RECURSION_GUARD, crate_dir);
        let start = BuildError::io("start the device toolchain in", crate_dir);
        let mut child = cargo.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(start)?;
        let aloud = purpose == Purpose::Ship;
        let messages = child.stderr.take().map(|pipe| relay(BufReader::new(pipe), aloud)).unwrap_or_default();
        let status = child.wait().map_err(BuildError::io("wait for the device toolchain in", crate_dir))?;
        if status.success() {
            Ok(())
        } else {
            Err(BuildError::Compile { crate_dir: crate_dir.to_owned(), status, messages })
        }
    }

    /// The flags for rustc, in cargo's encoding: separated by 0x1f, so that paths may have spaces.
    fn rustflags(&self, crate_dir: &Path, toolchain: &Toolchain, purpose: Purpose) -> OsString {
        let mut flags: Vec<OsString> =
            self.backend.rustflags(&self.arch, self.isa).into_iter().map(OsString::from).collect();
        let mut remap = |from: &Path, to: &str| {
            if purpose == Purpose::Explain {
                return;
            }
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(from);
            flag.push("=");
            flag.push(to);
            flags.push(flag);
        };
        // rustc takes the last prefix that fits, so the widest come first.
        if let Some(home) =
            std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cargo")))
        {
            remap(&home, "/cargo");
        }
        remap(&toolchain.sysroot, "/toolchain");
        for dir in self.sources.iter().map(|dir| absolute(dir)).chain([crate_dir.to_owned()]) {
            // Crates side by side, as in a workspace, keep their own names.
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            remap(&dir, &format!("/{name}"));
        }
        flags.join("\u{1f}".as_ref())
    }
}

/// Copies what the compiler says to standard error, line by line, if it is to be heard, and keeps the last lines.
fn relay(mut pipe: impl BufRead, aloud: bool) -> String {
    const KEPT: usize = 40;
    let mut lines = std::collections::VecDeque::with_capacity(KEPT);
    let mut line = Vec::new();
    while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line).into_owned();
        if aloud {
            // Not `stderr().write`: the test harness captures this and not that.
            eprint!("{text}");
        }
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(text);
        line.clear();
    }
    lines.into_iter().collect::<String>().trim_end().to_owned()
}

/// The PTX files of a folder; none if there is no such folder.
fn ptx_files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|ext| ext == "ptx")).collect()
}
