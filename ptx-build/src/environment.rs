//! The environment of the inner cargo: nothing of the outer one's may reach it.
//!
//! A build script, a test or `cargo run` is started with dozens of variables that steer cargo, rustc and rustup.
//! Inherited by another cargo, `RUSTUP_TOOLCHAIN` silently picks the host's toolchain, `CARGO_ENCODED_RUSTFLAGS` drops
//! the flags that make the PTX right, a wrapper caches what it should not, and a jobserver waits for a pipe that is gone.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use crate::BuildError;
use crate::names::RECURSION_GUARD;

/// Tells whether this process runs inside a build of PTX, as the build script of a kernel crate does.
///
/// Such a script has nothing to build, and [`crate::PtxBuilder::build`] refuses to.
pub fn is_nested() -> bool {
    std::env::var_os(RECURSION_GUARD).is_some()
}

/// Refuses to build inside a build.
pub(crate) fn refuse_nesting(crate_dir: &Path) -> Result<(), BuildError> {
    match std::env::var_os(RECURSION_GUARD) {
        None => Ok(()),
        Some(outer) => {
            Err(BuildError::Nested { outer: outer.to_string_lossy().into_owned(), inner: crate_dir.to_owned() })
        }
    }
}

/// Tells cargo something, if a build script is running.
pub(crate) fn directive(text: &str) {
    if std::env::var_os("OUT_DIR").is_some() {
        println!("cargo::{}", text.replace('\n', " "));
    }
}

/// Removes every variable from a command's environment that could steer its cargo, rustc or rustup.
pub(crate) fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| steers(name)) {
        command.env_remove(name);
    }
    // Empty, these switch off wrappers from the user's cargo configuration too.
    command.env("RUSTC_WRAPPER", "").env("RUSTC_WORKSPACE_WRAPPER", "");
}

/// Tells whether a variable steers what cargo builds, as opposed to where it finds registries and how it draws.
fn steers(name: &OsStr) -> bool {
    const KEPT: [&str; 6] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_TERM_"];
    // What cargo sets for build scripts, and make for its children.
    const EXACT: [&str; 14] = [
        "OUT_DIR",
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
        "NUM_JOBS",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "MAKEFLAGS",
        "MFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUSTUP_TOOLCHAIN_SOURCE",
        "RUST_RECURSION_COUNT",
    ];
    let Some(name) = name.to_str() else {
        return false;
    };
    let starts = |prefix: &str| name.starts_with(prefix);
    let cargo = name == "CARGO" || (starts("CARGO_") && !KEPT.iter().any(|kept| starts(kept)));
    cargo || starts("RUSTC") || starts("RUSTDOC") || starts("DEP_") || EXACT.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_goes_and_what_finds_registries_stays() {
        for name in [
            "RUSTUP_TOOLCHAIN",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_BOOTSTRAP",
            "RUSTFLAGS",
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "CARGO_MAKEFLAGS",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_TARGET_NVPTX64_NVIDIA_CUDA_RUSTFLAGS",
            "CARGO_PKG_NAME",
            "CARGO_MANIFEST_DIR",
            "CARGO_CFG_TARGET_ARCH",
            "OUT_DIR",
            "TARGET",
            "MAKEFLAGS",
            "CARGO_INCREMENTAL",
            "CARGO_UNSTABLE_BUILD_STD",
        ] {
            assert!(steers(OsStr::new(name)), "{name}");
        }
        for name in [
            "PATH",
            "HOME",
            "CARGO_HOME",
            "RUSTUP_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_HTTP_PROXY",
            "CARGO_REGISTRIES_X_INDEX",
            "CARGO_TERM_COLOR",
            "http_proxy",
            "RUSTUP_DIST_SERVER",
            "RUST_BACKTRACE",
        ] {
            assert!(!steers(OsStr::new(name)), "{name}");
        }
    }
}
