//! Device memory: where it lies, whose it is, and the one door through which it is accessed.

mod access;
pub(crate) mod allocation;
pub(crate) mod arena;
pub(crate) mod door;
pub(crate) mod owner;
mod raw;
pub(crate) mod shared;
pub(crate) mod word;
