//! A line of the report, and how a piece of the machine does.
use serde::Serialize;

/// How a piece does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// It works.
    Ok,
    /// It works, but not for everything.
    Limited,
    /// It is here and does not work.
    No,
    /// It is not here, or cannot be seen.
    Absent,
}

/// A line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub check: &'static str,
    pub status: Status,
    pub finding: String,
    pub advice: Option<String>,
}

impl Check {
    /// A finding that needs no advice.
    pub fn new(check: &'static str, status: Status, finding: impl Into<String>) -> Self {
        Self { check, status, finding: finding.into(), advice: None }
    }
    /// Says what to do.
    #[must_use]
    pub fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}
