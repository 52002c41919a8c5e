//! A step of CI, and how it may end.

use anyhow::Result;

/// One step.
pub struct Step {
    pub name: &'static str,
    pub what: &'static str,
    pub run: fn() -> Result<Outcome>,
}

/// How a step ended, if it did not fail.
pub enum Outcome {
    Passed,
    /// It, or a part of it, could not run.
    Skipped(String),
}
