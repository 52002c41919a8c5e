//! The rules of our protocol. For one NVLink domain it is what the library does; for several it is designed, not built.
mod bytes;
mod rules;
mod steps;

pub(crate) use rules::{Ours, SM_HEADROOM};
pub(crate) use steps::{combine, dispatch, row_bytes};
