//! Device memory: where it lies, whose it is, and every access to it.

pub(crate) mod arena;
pub(crate) mod copies;
pub(crate) mod owner;
