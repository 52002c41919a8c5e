//! The lint as a build script wants it: one call, one readable error, the line of Rust, and a way to approve numbers.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::backend::absolute;
use crate::compile::Purpose;
use crate::environment::{directive, refuse_nesting};
use crate::locate::locate;
use crate::names::ACCEPT;
use crate::{BuildError, Collectives, Finding, Ptx, PtxBuilder, Rule, lint};

impl PtxBuilder {
    /// Lints what was built, or the committed text in its place, and fails with everything that was found.
    ///
    /// `collectives` is the committed file of approved numbers of collectives. `EPOXIDE_PTX_ACCEPT_COLLECTIVES=1` in the
    /// environment writes it as the numbers are now: the first time, and whenever a number changed because its kernel did.
    ///
    /// # Errors
    ///
    /// [`BuildError::Lint`] with the findings, each with its line of Rust where the device toolchain is installed;
    /// [`BuildError::NoCollectives`] if there is no such file, [`BuildError::Counts`] if it cannot be read;
    /// [`BuildError::Truncated`]; [`BuildError::Io`].
    pub fn check(&self, ptx: &Ptx, collectives: impl AsRef<Path>) -> Result<(), BuildError> {
        let path = collectives.as_ref();
        directive(&format!("rerun-if-changed={}", path.display()));
        directive(&format!("rerun-if-env-changed={ACCEPT}"));
        let approved = if std::env::var_os(ACCEPT).is_some_and(|value| value == "1") {
            let now = Collectives::of_ptx(&ptx.text)?;
            now.write(path)?;
            now
        } else {
            let text = fs::read_to_string(path).map_err(|source| match source.kind() {
                ErrorKind::NotFound => BuildError::NoCollectives { path: path.to_owned() },
                _ => BuildError::Io { action: "read", path: path.to_owned(), source },
            })?;
            Collectives::parse(&text)?
        };
        let findings = self.lint(ptx, Some(&approved))?;
        if findings.is_empty() {
            return Ok(());
        }
        Err(BuildError::Lint { crate_dir: self.crate_dir.clone(), findings, collectives: path.to_owned() })
    }

    /// Lints as [`lint`](crate::lint()) does, but for `f64` where it [is allowed](PtxBuilder::allow_f64), and tells where in
    /// the Rust sources each finding is, as [`PtxBuilder::locate`] does.
    ///
    /// # Errors
    ///
    /// Those of [`lint`](crate::lint()).
    pub fn lint(&self, ptx: &Ptx, committed: Option<&Collectives>) -> Result<Vec<Finding>, BuildError> {
        let mut findings = lint(&ptx.text, committed)?;
        findings.retain(|finding| !self.allow_f64 || finding.rule != Rule::DoublePrecision);
        Ok(self.locate(findings))
    }

    /// Compiles the crate once more, with line tables, and tells where in the Rust sources each finding is; findings of one
    /// rule at one place become one. What ships has no line tables, so this is done only if there is a finding.
    ///
    /// Where the device toolchain is not installed, or the crate has changed since, the findings stay as they are.
    pub fn locate(&self, findings: Vec<Finding>) -> Vec<Finding> {
        let crate_dir = absolute(&self.crate_dir);
        if findings.is_empty() || refuse_nesting(&crate_dir).is_err() {
            return findings;
        }
        match self.compile(&crate_dir, Purpose::Explain) {
            Ok(explained) => locate(findings, &explained, &crate_dir),
            Err(_) => findings,
        }
    }
}
