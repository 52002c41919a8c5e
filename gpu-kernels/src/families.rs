//! The kernels as PTX, by family: what is used together is loaded together, and nothing else.
//!
//! `ptx/families.txt` says which kernel is in which family; `cargo xtask ptx` makes the texts and the table below from it.

/// Kernels that are loaded together.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// The names of its kernels.
    pub entries: &'static [&'static str],
    /// Its kernels as PTX, for compute capability 9.0 and newer.
    pub ptx: &'static str,
}

impl Family {
    /// Names kernels and the text that has them.
    pub const fn new(name: &'static str, entries: &'static [&'static str], ptx: &'static str) -> Self {
        Self { name, entries, ptx }
    }
}

include!("../ptx/families.rs");
