//! What a buffer takes, region by region.
use std::fmt;

use crate::layouts::RegionBytes;

/// Where a buffer's regions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Basis {
    /// The layouts by which `epoxide` allocates: what its `bytes_needed` says.
    Exact,
    /// The design, for what is not built yet: several domains, more ranks.
    Projection,
    /// DeepEP V2's formulas.
    DeepEpV2,
}

/// What a buffer takes on the rank that needs most. `Display` prints a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedBytes {
    /// Where the regions come from.
    pub basis: Basis,
    /// All regions. DeepEP V2's dispatch and combine lie over each other.
    pub regions: Vec<RegionBytes>,
    /// Bytes of the symmetric window.
    pub window: u64,
    /// Bytes that no peer touches.
    pub private: u64,
}

impl PlannedBytes {
    /// Window and private memory together.
    pub fn total(&self) -> u64 {
        self.window.saturating_add(self.private)
    }

    /// Whether the library does not allocate this yet.
    pub fn is_projection(&self) -> bool {
        self.basis == Basis::Projection
    }
}

impl fmt::Display for PlannedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for region in &self.regions {
            let kind = if region.symmetric { "window " } else { "private" };
            writeln!(f, "{kind}  {:<24} {:>16}", region.name, region.bytes)?;
        }
        let basis = match self.basis {
            Basis::Exact => "",
            Basis::Projection => "projection",
            Basis::DeepEpV2 => "DeepEP V2",
        };
        write!(f, "total    {basis:<24} {:>16}", self.total())
    }
}
