//! Who returned too early: although others wait for him, or with a bulk copy in flight.

use std::panic::Location;

use crate::engine::block::barriers::Mbarrier;
use crate::engine::block::state::BlockState;
use crate::engine::block::warp::{bits, ranges};

/// The rule that `thread` broke by returning, which it has just done, and the line that tells most of it.
pub(crate) fn broken_by(state: &BlockState, thread: u32) -> Option<(String, &'static Location<'static>)> {
    missed_in_warp(state, thread)
        .or_else(|| missed_at_barrier(state, thread))
        .or_else(|| store_in_flight(state, thread))
        .or_else(|| load_in_flight(state))
}

/// Lanes of its warp wait for it in a collective.
fn missed_in_warp(state: &BlockState, thread: u32) -> Option<(String, &'static Location<'static>)> {
    let (warp, bit) = (thread / 32, 1u32 << (thread % 32));
    let meet = state.warps[warp as usize].meets.iter().find(|meet| meet.mask & bit != 0)?;
    let message = format!(
        "lane {} of warp {warp} returned, but lanes {} of its warp wait for it in {} with mask {:#010x}",
        thread % 32,
        ranges(bits(meet.arrived)),
        meet.op.name(),
        meet.mask
    );
    Some((message, meet.location))
}

/// A barrier waits for more threads than are left.
fn missed_at_barrier(state: &BlockState, thread: u32) -> Option<(String, &'static Location<'static>)> {
    let mut begun = state.barriers.iter().enumerate().filter(|(_, barrier)| barrier.arrived > 0);
    let (id, barrier) = begun.find(|(_, barrier)| barrier.expected > state.live)?;
    let message = format!(
        "thread {thread} returned, but barrier {id} waits for {} threads: {} have arrived and only {} are left",
        barrier.expected, barrier.arrived, state.live
    );
    Some((message, barrier.location))
}

/// Its last bulk store may still read shared memory.
fn store_in_flight(state: &BlockState, thread: u32) -> Option<(String, &'static Location<'static>)> {
    let location = state.tallies.get(thread as usize)?.stores.in_flight()?;
    let message = format!(
        "thread {thread} returned with a bulk store in flight, whose source in shared memory may still be read: \
         bulk_wait(0, ..) comes after the last one"
    );
    Some((message, location))
}

/// It was the block's last thread, and a bulk load may still write shared memory.
fn load_in_flight(state: &BlockState) -> Option<(String, &'static Location<'static>)> {
    if state.live != 0 {
        return None;
    }
    let (at, location) = state.mbarriers.iter().find_map(Mbarrier::in_flight)?;
    let message = format!(
        "the block ended with a bulk load in flight, which may still write its shared memory: nobody waited for \
         mbarrier {at:#x} after it"
    );
    Some((message, location))
}
