//! How rows lie in a buffer, as options say it: the same words in the command and in the examples, which take this file too.
use clap::ValueEnum;
use epoxide::Layout;

/// The layouts that a buffer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BufferLayout {
    /// One row per token and rank, by source
    Compact,
    /// One row per token and expert, contiguous by expert, each expert's rows from a multiple of --alignment on
    #[value(alias = "expert-contiguous")]
    Expand,
}

impl BufferLayout {
    /// The library's, whose experts' rows are padded to multiples of `alignment`, or not at all.
    pub fn layout(self, alignment: Option<u32>) -> Layout {
        match self {
            Self::Compact => Layout::Compact,
            Self::Expand => Layout::ExpertContiguous { alignment: alignment.unwrap_or(1) },
        }
    }
}

/// Refuses an alignment with which nothing would be aligned.
///
/// # Errors
///
/// That there is one, and no layout that has it.
pub fn check_alignment(alignment: Option<u32>, expands: bool) -> Result<(), &'static str> {
    if alignment.is_some() && !expands {
        return Err("--alignment: only the expanded layout pads an expert's rows (--layout expand)");
    }
    Ok(())
}
