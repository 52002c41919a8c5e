//! GPUs and NICs in numbers, each with where it comes from.
//!
//! Every number is a [`Figure`]: a value and its source. [`Gpu::named`] and [`Nic::named`] give the built-in ones;
//! [`Hardware::set`] overrides one by its key, which is how a file of overrides is read without this crate reading files.
mod catalogue;
mod figure;
mod machine;
mod parts;

pub use figure::{Figure, Unit};
pub use machine::Hardware;
pub use parts::{Gpu, Nic};
