//! Names by which texts, environments and other programs know this crate.

/// The target every backend compiles for.
pub const TARGET: &str = "nvptx64-nvidia-cuda";

/// The variable that is set, to the crate's folder, during a build of PTX.
pub const RECURSION_GUARD: &str = "EPOXIDE_PTX_BUILD";

/// The variable that makes [`crate::PtxBuilder::build_or_committed`] write the committed text, or insist on it.
pub(crate) const REFRESH: &str = "EPOXIDE_PTX_REFRESH";

/// The variable that makes [`crate::PtxBuilder::check`] write the numbers of collectives as they are.
pub(crate) const ACCEPT: &str = "EPOXIDE_PTX_ACCEPT_COLLECTIVES";

/// What the line starts with, after `// `, by which `#[kernel]` gives an entry its launch bounds.
pub(crate) const MARKER: &str = "epoxide-entry";
