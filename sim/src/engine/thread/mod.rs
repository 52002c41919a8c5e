//! The thread that runs, and what it does to its block.

pub(crate) mod barrier;
pub(crate) mod bulk;
pub(crate) mod context;
pub(crate) mod mbarrier;
pub(crate) mod reins;
pub(crate) mod warp;
