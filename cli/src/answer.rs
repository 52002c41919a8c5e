//! What a command answers, or could not write.
use std::fmt::Display;

/// What a command prints, and whether its answer is a good one.
pub(crate) struct Answer {
    pub text: String,
    pub success: bool,
}

/// A file that could not be written.
#[derive(Debug)]
pub(crate) struct Unwritten(pub String);

impl Display for Unwritten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unwritten {}
