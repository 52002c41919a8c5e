//! Block barriers: 16 of them, each counting threads.

use std::panic::Location;

use super::context::{Context, fail, notice, suspend};
use crate::engine::block::state::Waiting;
use crate::engine::block::warp::bits;

/// Arrives at barrier `id` and waits until `threads` threads have (0: the whole block). A vote is or-ed over all.
#[track_caller]
pub(crate) fn arrive(context: *mut Context, id: u32, threads: u32, vote: Option<bool>) -> bool {
    notice(context);
    let location = Location::caller();
    // SAFETY: `context` is the running thread's (it came from `require`); its worker holds no reference to the block
    // while the thread runs, and the reference made here ends before the suspension.
    let (state, thread) = unsafe { (&mut *(*context).state, (*context).reins.thread()) };
    if id >= 16 {
        fail(context, format!("barrier {id} does not exist: a block has barriers 0 to 15"));
    }
    let expected = if threads == 0 { state.threads } else { threads };
    if expected % 32 != 0 || expected > state.threads {
        let rule = format!("a multiple of 32 and at most the block's {} threads", state.threads);
        fail(context, format!("barrier {id} is asked to wait for {expected} threads, but the rule is: {rule}"));
    }
    if expected > state.live {
        let left = state.live;
        fail(
            context,
            format!(
                "barrier {id} can never complete: it waits for {expected} threads and only {left} have not returned"
            ),
        );
    }
    let barrier = &mut state.barriers[id as usize];
    if barrier.arrived == 0 {
        barrier.expected = expected;
        barrier.votes = vote.is_some();
        barrier.vote = false;
        barrier.location = location;
    } else if barrier.expected != expected || barrier.votes != vote.is_some() {
        let kind = |votes| if votes { "barrier_or" } else { "barrier" };
        let message = format!(
            "{} {id} for {expected} threads meets {} {id} for {} threads, which began at {}",
            kind(vote.is_some()),
            kind(barrier.votes),
            barrier.expected,
            barrier.location
        );
        fail(context, message);
    }
    barrier.vote |= vote.unwrap_or(false);
    barrier.arrived += 1;
    let (warp, bit) = (thread / 32, 1u32 << (thread % 32));
    if barrier.arrived < expected {
        barrier.warps |= 1 << warp;
        barrier.lanes[warp as usize] |= bit;
        // SAFETY: `context` is the running thread's, and the reference to the block is not used after this point.
        unsafe { suspend(context, Waiting::Barrier { id, location }) };
        // SAFETY: as at the top. Only a phase with a vote changes the result, and that is the whole block's: the next one
        // cannot complete before this thread arrives again.
        return unsafe { (*(*context).state).barriers[id as usize].result };
    }
    barrier.arrived = 0;
    if barrier.votes {
        barrier.result = barrier.vote;
    }
    let result = barrier.vote;
    for warp in bits(std::mem::take(&mut barrier.warps)) {
        state.warps[warp as usize].ready |= std::mem::take(&mut barrier.lanes[warp as usize]);
        state.ready_warps |= 1 << warp;
    }
    result
}
