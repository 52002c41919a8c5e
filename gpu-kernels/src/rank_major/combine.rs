//! Combine: tokens' rows are pulled from fixed places; no word says that they were read.
use epoxide_dsl::prelude::*;

use super::args::CombineRankMajorArgs;
use crate::combine::{CombineArgs, Part, Parts, sum_parts};
use crate::layout::THREADS;
use crate::words::{Kind, Operation, Phase, no_routing};

/// Sums the rows. An instance that does not post entry words is a receive half: its send half has.
#[inline(always)]
pub(super) fn run<const POSTS: bool>(a: &CombineRankMajorArgs) {
    let op = &a.pull.op;
    let watch = wait::Watch::begin(op.fault, op.next_epoch());
    let posts = THREADS - op.window().peers;
    let post = |dispatch| {
        if POSTS && thread::block_index() == 0 && thread::index() >= posts {
            post(op, dispatch, &watch, Peer(thread::index() - posts), Kind::Combine);
        }
    };
    pull(a, &watch, Kind::Combine, post, a.pull);
}

/// How a token's rows are summed.
pub(super) trait Pulled: Copy {
    /// Sums from this warp's first part on, of parts that divide the tokens.
    fn sum(self, parts: Parts, first: Part);
}

impl Pulled for CombineArgs {
    #[inline(always)]
    fn sum(self, parts: Parts, first: Part) {
        sum_parts(&self, parts, first);
    }
}

/// Meets all ranks, in the combine of a dispatch of which some threads post the entry words now, if nobody has, and sums.
#[inline(always)]
pub(super) fn pull(
    a: &CombineRankMajorArgs,
    watch: &wait::Watch,
    kind: Kind,
    post: impl FnOnce(u64),
    rows: impl Pulled,
) {
    let op = &a.pull.op;
    let entered = enter(&a.pull, watch, kind, post);
    // The block has met, so all its threads know the epoch.
    let passes = thread::index() == THREADS - 1;
    let passed = passes.then(|| op.grid.pass(entered.is_err()));
    let ended = match entered {
        Ok((parts, first)) => {
            rows.sum(parts, first);
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

/// Whether a combine of this dispatch posts no entry words: behind a fault nothing is published. Per thread.
#[inline(always)]
pub(super) fn is_silent(dispatch: u64, watch: &wait::Watch) -> bool {
    dispatch == 0 || watch.is_aborted()
}

/// Posts the entry word of the combine of a dispatch at a peer: it may read this rank's expert outputs.
#[inline(always)]
pub(super) fn post(op: &Operation, dispatch: u64, watch: &wait::Watch, peer: Peer, kind: Kind) {
    let unless = || is_silent(dispatch, watch);
    op.entry.of_dispatch(dispatch).post_unless(op.window(), peer, watch.epoch(), kind, unless);
}

/// Meets all ranks. Returns how the tokens are divided, and this warp's first part.
#[inline(always)]
fn enter(
    a: &CombineArgs,
    watch: &wait::Watch,
    kind: Kind,
    post: impl FnOnce(u64),
) -> Result<(Parts, Part), fault::Stopped> {
    let window = a.op.window();
    let (look, dispatch) = (watch.look(), a.routing.load_weak(0));
    // The handle is this rank's own: it is on its way while the ranks meet.
    let parts = Parts::new(a.hidden, a.tokens);
    let first = parts.first(a);
    post(dispatch);
    no_routing(dispatch, a.slot, window, watch.found(look, Phase::Entry as u32)).settle()?;
    let entry = a.op.entry.of_dispatch(dispatch);
    let _met = entry.meet(window, watch, kind)?;
    Ok((parts, first))
}
