//! Lends a rank its expert outputs back before the next dispatch: waits until every peer has read them.
//!
//! # Protocol
//!
//! `done[p]` at this rank carries the epoch of the last combine in which p's reads of this rank are over; `lent` is the epoch
//! of this rank's own last combine. When all are equal, nobody reads the expert outputs any more, and nobody will before
//! this rank's next combine: work that is stream-ordered after this kernel may write them.
//!
//! It is not an operation of the group: it has no epoch and no entry word, and ranks need not call it together.
use epoxide_dsl::prelude::*;

use crate::protocol::{Operation, SKIP_DONE, phase};

/// Arguments of [`lend`].
///
/// Launch contract: `op` describes windows laid out by `WindowLayout`; the rank's last operation was a combine.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct LendArgs {
    /// Flags, faults.
    pub op: Operation,
}

/// Waits for the done words; one block.
#[kernel(threads = 64)]
pub fn lend(args: LendArgs) {
    let op = &args.op;
    let epoch = op.lent.load_weak(0);
    let watch = wait::Watch::begin(op.fault, epoch);
    if op.skip & SKIP_DONE != 0 || watch.aborted(phase::DONE) {
        return;
    }
    let done = op.window().own(op.done);
    // A fault is filed by the wait itself; the host learns of it before it trusts what follows.
    let _ = watch.wait_until(phase::DONE, op.window().ranks, |peer| {
        let seen = done.load_acquire::<System>(u64::from(peer));
        wait::Poll { peer, expected: epoch, seen, ready: seen == epoch }
    });
}
