//! Lends a rank its expert outputs back before the next dispatch: waits until every peer has read them.
//!
//! # Protocol
//!
//! To `done[p]` at this rank p's blocks add their parts when their reads of this rank are over in a combine; `combines` is how many this rank has been
//! through. When all are so many wholes, nobody reads the expert outputs any more, and nobody will before
//! this rank's next combine: work that is stream-ordered after this kernel may write them.
//!
//! It is not an operation of the group: it has no epoch and no entry word, and ranks need not call it together.
use epoxide_dsl::prelude::*;

use crate::words::{Operation, Phase};

/// Arguments of [`lend`](crate::entries::lend).
///
/// Launch contract: `op` describes windows laid out by `WindowLayout`; the rank's last operation was a combine, or there was none.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct LendArgs {
    /// Flags, faults.
    pub op: Operation,
}

/// Waits for the done words; one block.
#[inline(always)]
pub(crate) fn run(args: &LendArgs) {
    let op = &args.op;
    let combine = op.combines.load_weak(0);
    let watch = wait::Watch::begin(op.fault, op.epoch.load_weak(0));
    // Behind a fault, which the host learns of before it trusts what follows, peers may still be reading.
    let lent = watch.unless_aborted(Phase::Done as u32);
    if let Err(stopped) = lent.and_then(|()| op.done.wait(op.window(), &watch, Phase::Done, combine)) {
        watch.file(stopped);
    }
}
