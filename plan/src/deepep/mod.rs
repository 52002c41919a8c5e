//! DeepEP V2's own arithmetic: SMs, queue pairs, channels, warps and bytes.
//!
//! A named alternative beside our model, so that both can be held against what DeepEP publishes. The formulas are those of its
//! main branch at dd758ca; the constants are its own. All that the planner knows of DeepEP V2 is in this module.
mod buffer;
mod rules;
mod setup;
mod steps;
mod warps;

pub use buffer::{Buffer, BufferBytes, workspace_bytes};
pub use setup::{NVLINK_SHARE, SM_READ, SM_WRITE, Setup};
pub use warps::Warps;

pub(crate) use rules::DeepEpV2;
pub(crate) use steps::counted_bytes;
