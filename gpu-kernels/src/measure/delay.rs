//! Holds a stream for a given time: tests use it to let ranks run at different speeds.
use epoxide_dsl::prelude::*;

/// Arguments of [`delay`].
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct DelayArgs {
    /// Nanoseconds.
    pub ns: u64,
}

/// Waits for `ns` nanoseconds of the device's clock.
#[kernel(threads = 32)]
pub fn delay(args: DelayArgs) {
    clock::sleep_until(clock::global_ns() + args.ns);
}
