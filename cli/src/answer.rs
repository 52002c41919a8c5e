//! What a command answers, or could not write.
use std::fmt::Display;

/// What a command prints, and whether its answer is a good one.
pub(crate) struct Answer {
    pub text: String,
    pub success: bool,
    /// What a reader must know of it who may not read it all, or not as text.
    pub notes: Vec<String>,
}

impl Answer {
    /// A good answer, of which nothing more must be known.
    pub fn good(text: String) -> Self {
        Self { text, success: true, notes: Vec::new() }
    }
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
