//! How far everyone is: when time jumps, for how long the machine waits, and that nothing runs for ever.

pub(crate) mod clock;
pub(crate) mod lookout;
pub(crate) mod patience;
pub(crate) mod progress;
pub(crate) mod standstill;
pub(crate) mod watchdog;
