//! Kernels that measure others, or hold them up.
pub mod copy;
pub mod copy_words;
pub mod delay;
pub mod latencies;
pub mod links;
pub mod multiply;
