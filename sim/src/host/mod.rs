//! What a rank's host thread calls: the machine, its actors, and device memory as the host sees it.

mod actor;
mod machine;
mod memory;
mod process;

pub use actor::Actor;
pub use machine::Machine;
