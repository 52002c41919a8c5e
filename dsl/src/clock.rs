//! Clocks.
use crate::arch;

/// Returns nanoseconds of the device-wide clock (`%globaltimer`); virtual time on the simulator.
#[inline(always)]
pub fn global_ns() -> u64 {
    arch::global_ns()
}

/// Holds this thread until the device-wide clock has reached `ns`.
#[inline(always)]
#[track_caller]
pub fn sleep_until(ns: u64) {
    arch::sleep_until(ns);
}
