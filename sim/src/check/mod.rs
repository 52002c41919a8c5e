//! What finds broken rules, and what it tells of them.
//!
//! An access out of bounds, a thread that returned too early, a machine in which all wait. The guards that lie between
//! allocations, so that who walks out of one is in nobody's, are the arena's.

pub(crate) mod bounds;
pub(crate) mod returned;
pub(crate) mod stall;
