//! What can go wrong between a kernel crate and its PTX.
//!
//! Every variant names the thing it is about and says what to do next: most people who meet these errors have changed
//! one line of a kernel, and have never read this crate.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::names::{ACCEPT, MARKER, RECURSION_GUARD, TARGET};
use crate::{Finding, Rule};

/// An error of this crate.
///
/// It prints the same in both formats: a build script whose `main` returns it shows `{:?}`.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// There is no `rustup`, through which the device toolchain is started.
    #[error(
        "cannot start `rustup`, which runs the device toolchain {toolchain}: {source}; install it from https://rustup.rs, then: {install}"
    )]
    #[non_exhaustive]
    NoRustup {
        /// The device toolchain that was to run.
        toolchain: String,
        /// The command that installs the toolchain.
        install: String,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// The device toolchain is not installed.
    #[error("the device toolchain {toolchain} is not installed; install it with: {install}")]
    #[non_exhaustive]
    NoToolchain {
        /// The missing toolchain.
        toolchain: String,
        /// The command that installs it.
        install: String,
    },

    /// The device toolchain is there, without a component that it needs.
    #[error(
        "the device toolchain {toolchain} lacks {}; install with: {install}", .missing.join(", ")
    )]
    #[non_exhaustive]
    NoComponents {
        /// The toolchain.
        toolchain: String,
        /// The names of the missing components.
        missing: Vec<String>,
        /// The command that installs them.
        install: String,
    },

    /// The codegen backend's library is not where the caller said.
    #[error(
        "no codegen backend at {}: `Backend::CodegenNvvm` takes the path of librustc_codegen_nvvm", .path.display()
    )]
    #[non_exhaustive]
    NoBackend {
        /// Where it was looked for.
        path: PathBuf,
    },

    /// A build script asked for PTX from inside a build of PTX.
    #[error(
        "{} is being built by a PTX build of {outer} (the environment has {}): a kernel crate's own build script must return early when `epoxide_ptx_build::is_nested()`",
        .inner.display(), RECURSION_GUARD
    )]
    #[non_exhaustive]
    Nested {
        /// The crate that is being built for the device.
        outer: String,
        /// The crate that was asked for.
        inner: PathBuf,
    },

    /// The compiler refused the kernel crate.
    #[error("compiling {} for {} failed ({status}):\n{messages}", .crate_dir.display(), TARGET)]
    #[non_exhaustive]
    Compile {
        /// The kernel crate.
        crate_dir: PathBuf,
        /// How cargo ended.
        status: std::process::ExitStatus,
        /// The last lines that cargo wrote (all of them went to standard error as they came).
        messages: String,
    },

    /// The build went well and left no PTX, or more than one.
    #[error("expected one .ptx file in {}, found {found}: is {} a library crate?", .dir.display(), .crate_dir.display())]
    #[non_exhaustive]
    Artifact {
        /// Where the file was looked for.
        dir: PathBuf,
        /// How many there are.
        found: usize,
        /// The kernel crate.
        crate_dir: PathBuf,
    },

    /// The PTX has no kernel entry.
    #[error(
        "the PTX has no `.entry`: the crate needs a public function with #[kernel], in a module that its lib.rs declares"
    )]
    NoEntries,

    /// A kernel entry has no launch bounds, so it was not made by `#[kernel]`.
    #[error(
        "line {line}: the entry `{entry}` has no `// {} threads=N blocks_per_sm=N` line in its body: declare it with #[kernel]",
        MARKER
    )]
    #[non_exhaustive]
    NoMarker {
        /// The entry.
        entry: String,
        /// The line of the PTX, from 1.
        line: usize,
    },

    /// A kernel entry's launch bounds cannot be read, or contradict each other.
    #[error("line {line}: the entry `{entry}` has bad launch bounds, `{text}`: {rule}")]
    #[non_exhaustive]
    BadMarker {
        /// The entry.
        entry: String,
        /// The line of the PTX, from 1.
        line: usize,
        /// The line itself.
        text: String,
        /// What a marker must be.
        rule: &'static str,
    },

    /// PTX whose blocks do not close.
    #[error("line {line}: `{function}` has no end: the PTX is cut off")]
    #[non_exhaustive]
    Truncated {
        /// The function or entry.
        function: String,
        /// The line it starts at, from 1.
        line: usize,
    },

    /// A family of kernels breaks a rule.
    #[error("the family `{family}`: {rule}")]
    #[non_exhaustive]
    Family {
        /// The family.
        family: String,
        /// What is wrong with it.
        rule: String,
    },

    /// A kernel is in no family, although the crate's kernels have families.
    #[error("the kernel `{entry}` is in no family: name it in one, or make one for it")]
    #[non_exhaustive]
    NoFamily {
        /// The kernel.
        entry: String,
    },

    /// A line of a file of collective counts cannot be read.
    #[error("line {line} of the collective counts, `{text}`, is not `<entry> <kind> <count>`")]
    #[non_exhaustive]
    Counts {
        /// The line, from 1.
        line: usize,
        /// The line itself.
        text: String,
    },

    /// There is no file of collective counts.
    #[error(
        "there is no {}: {}=1 in the environment writes the numbers of collectives as they are now; read them, and commit the file",
        .path.display(), ACCEPT
    )]
    #[non_exhaustive]
    NoCollectives {
        /// Where it should be.
        path: PathBuf,
    },

    /// The PTX breaks rules.
    #[error("{}", lint_text(.crate_dir, .findings, .collectives))]
    #[non_exhaustive]
    Lint {
        /// The kernel crate.
        crate_dir: PathBuf,
        /// What was found.
        findings: Vec<Finding>,
        /// The file of collective counts.
        collectives: PathBuf,
    },

    /// There is no committed PTX.
    #[error(
        "cannot read {}: {source}: no PTX is committed yet; `EPOXIDE_PTX_REFRESH=1 cargo build` makes it, with the device toolchain ({install})",
        .path.display()
    )]
    #[non_exhaustive]
    NoCommitted {
        /// Where it should be.
        path: PathBuf,
        /// The command that installs the toolchain.
        install: String,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// The committed PTX was made from other sources than those at hand.
    #[error(
        "{} is stale: it was made from sources with hash {found}, and the sources now hash to {expected}; rebuild it, with the device toolchain ({install})",
        .path.display()
    )]
    #[non_exhaustive]
    Stale {
        /// The committed file.
        path: PathBuf,
        /// The hash of the sources now.
        expected: String,
        /// The hash in the file (`none` if it has no stamp).
        found: String,
        /// The command that installs the toolchain.
        install: String,
    },

    /// The committed PTX is not what the builder wrote: edited by hand, or merged.
    #[error("{} was changed after it was built (its text hash does not match): rebuild it", .path.display())]
    #[non_exhaustive]
    Edited {
        /// The committed file.
        path: PathBuf,
    },

    /// The committed PTX is not what its sources build to, and `EPOXIDE_PTX_REFRESH=check` asked.
    #[error("{} is not what its sources build to; EPOXIDE_PTX_REFRESH=1 writes it", .path.display())]
    #[non_exhaustive]
    Differs {
        /// The committed file.
        path: PathBuf,
    },

    /// A file or folder could not be read, written or found.
    #[error("cannot {action} {}: {source}", .path.display())]
    #[non_exhaustive]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// As it displays.
impl fmt::Debug for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl BuildError {
    /// Tells whether the device toolchain, or a part of it, is what is missing.
    pub fn is_missing_toolchain(&self) -> bool {
        matches!(self, Self::NoRustup { .. } | Self::NoToolchain { .. } | Self::NoComponents { .. })
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

/// All findings, one per line.
fn lint_text(crate_dir: &Path, findings: &[Finding], collectives: &Path) -> String {
    let mut text = format!("{} finding(s) in the PTX of {}:", findings.len(), crate_dir.display());
    findings.iter().for_each(|finding| text += &format!("\n{finding}"));
    if findings.iter().any(|finding| finding.rule == Rule::CollectiveCount) {
        let file = collectives.display();
        text += &format!(
            "\nif a number changed because its kernel did, {ACCEPT}=1 in the environment writes {file}: read its diff"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_scripts_main_shows_what_a_person_can_read() {
        let error = || -> Result<(), Box<dyn std::error::Error>> {
            let (family, rule) = ("a".to_owned(), "it has no kernel".to_owned());
            Err(BuildError::Family { family, rule }.into())
        };
        // What the standard library prints of a `main` that returns an error.
        let shown = format!("Error: {:?}", error().expect_err("it is one"));
        assert_eq!(shown, "Error: the family `a`: it has no kernel");
    }
}
