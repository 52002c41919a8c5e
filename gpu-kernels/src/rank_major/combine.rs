//! Combine: tokens' rows are pulled from fixed places; no word says that they were read.
use epoxide_dsl::prelude::*;

use super::args::CombineRankMajorArgs;
use crate::combine::{enter, sum_parts};
use crate::layout::THREADS;
use crate::words::Phase;

/// Sums the rows.
#[inline(always)]
pub(crate) fn run(a: &CombineRankMajorArgs) {
    let op = &a.pull.op;
    let watch = wait::Watch::begin(op.fault, op.next_epoch());
    let entered = enter(&a.pull, &watch);
    // The block has met, so all its threads know the epoch.
    let passes = thread::index() == THREADS - 1;
    let passed = passes.then(|| op.grid.pass(entered.is_err()));
    let ended = match entered {
        Ok((parts, first)) => {
            sum_parts(&a.pull, parts, first);
            // The loads of all its threads are over before the look.
            block::sync();
            watch.unless_aborted(Phase::End as u32)
        }
        Err(stopped) => Err(stopped),
    };
    let mut last = false;
    if let Some(passed) = passed {
        last = passed.is_last(op.grid);
        if last {
            if a.frees != 0 && passed.is_whole() {
                a.freed.store_weak(0, watch.epoch());
            }
            op.epoch.store_weak(0, watch.epoch());
        }
    }
    if let Err(stopped) = ended {
        watch.file_of_grid(stopped, block::any(last).get());
    }
}
