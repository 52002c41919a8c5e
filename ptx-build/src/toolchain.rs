//! The device toolchain: which it is, whether it is there, and how to get it.
//!
//! It is named here and not left to `rust-toolchain.toml`, because an inner cargo obeys the `RUSTUP_TOOLCHAIN` of the
//! outer one before it reads any file. Nothing here installs anything.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::environment::clean;
use crate::{Backend, BuildError};

/// The nightly that device code is compiled with, by default.
pub const DEVICE_TOOLCHAIN: &str = "nightly-2026-10-30";

/// The components the device toolchain needs, beyond rustup's minimal profile.
pub const COMPONENTS: [&str; 3] = ["rust-src", "llvm-tools", "llvm-bitcode-linker"];

/// The command that installs a device toolchain.
pub(crate) fn install_command(toolchain: &str) -> String {
    format!("rustup toolchain install {toolchain} --profile minimal --component {}", COMPONENTS.join(","))
}

/// Makes a command that runs a program of the toolchain in a clean environment.
pub(crate) fn command(toolchain: &str, program: &str) -> Command {
    let mut command = Command::new("rustup");
    clean(&mut command);
    // rustup must say that the toolchain is missing, not download it.
    command.env("RUSTUP_AUTO_INSTALL", "0").args(["run", toolchain, program]).stdin(Stdio::null());
    command
}

/// An installed device toolchain.
#[derive(Debug)]
pub(crate) struct Toolchain {
    pub(crate) name: String,
    pub(crate) sysroot: PathBuf,
}

impl Toolchain {
    /// Finds the toolchain and what it needs for a backend.
    pub(crate) fn find(name: &str, backend: &Backend) -> Result<Self, BuildError> {
        let install = || install_command(name);
        let no_rustup = |source| BuildError::NoRustup { toolchain: name.to_owned(), install: install(), source };
        let out =
            command(name, "rustc").args(["--print", "sysroot", "--print", "host-tuple"]).output().map_err(no_rustup)?;
        let text = String::from_utf8_lossy(&out.stdout);
        let mut lines = text.lines();
        let (Some(sysroot), Some(host), true) = (lines.next(), lines.next(), out.status.success()) else {
            return Err(BuildError::NoToolchain { toolchain: name.to_owned(), install: install() });
        };
        let sysroot = PathBuf::from(sysroot);
        let tools = sysroot.join("lib/rustlib").join(host).join("bin");
        let exists =
            |dir: &Path, program: &str| dir.join(format!("{program}{}", std::env::consts::EXE_SUFFIX)).is_file();
        let present = [
            sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file(),
            ["opt", "llc", "llvm-link"].iter().all(|tool| exists(&tools, tool)),
            exists(&tools.join("self-contained"), "llvm-bitcode-linker"),
        ];
        let missing: Vec<_> = COMPONENTS
            .iter()
            .zip(present)
            .filter(|(component, present)| !present && backend.needs(component))
            .map(|(component, _)| (*component).to_owned())
            .collect();
        if missing.is_empty() {
            Ok(Self { name: name.to_owned(), sysroot })
        } else {
            Err(BuildError::NoComponents { toolchain: name.to_owned(), missing, install: install() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_toolchain_says_what_to_install() {
        let error = Toolchain::find("nightly-2015-05-16", &Backend::Rustc).expect_err("before Rust 1.0 came rustup");
        assert!(error.is_missing_toolchain());
        let install = "rustup toolchain install nightly-2015-05-16 --profile minimal --component rust-src,llvm-tools,llvm-bitcode-linker";
        assert!(error.to_string().ends_with(install), "{error}");
    }
}
