//! mbarrier objects: phases that complete when all arrivals and all announced bytes are in.
//!
//! An object is named by its offset in shared memory, as in PTX, but its state lives beside the block: kernels may not
//! look inside one, so no bytes are spent on it. After PTX ISA, "Parallel Synchronization and Communication: mbarrier".

use std::panic::Location;

use super::context::{Context, fail, suspend};
use crate::engine::block::barriers::Mbarrier;
use crate::engine::block::state::{BlockState, Waiting};

/// Makes the object at `at`.
#[track_caller]
pub(crate) fn init(context: *mut Context, at: u32, arrivals: u32) {
    // SAFETY: `context` is the running thread's; its worker holds no reference to the block while the thread runs.
    let state = unsafe { &mut *(*context).state };
    // SAFETY: as above.
    let shared_bytes = unsafe { (*context).shared_bytes };
    if !at.is_multiple_of(8) || u64::from(at) + 8 > shared_bytes {
        fail(
            context,
            format!("mbarrier_init at {at:#x}: the rule is 8-byte aligned and inside the block's {shared_bytes} bytes"),
        );
    }
    if arrivals == 0 || arrivals >= 1 << 20 {
        fail(context, format!("mbarrier_init at {at:#x} asks for {arrivals} arrivals, but the rule is: 1 to 1048575"));
    }
    state.mbarriers.retain(|object| object.at != at);
    state.mbarriers.push(Mbarrier::new(at, arrivals));
}

/// Announces `bytes` and arrives `count` times.
#[track_caller]
pub(crate) fn arrive(context: *mut Context, at: u32, count: u32, bytes: u32) {
    // SAFETY: as in `init`.
    let state = unsafe { &mut *(*context).state };
    let object = find(context, state, at);
    if object.pending == 0 {
        let arrivals = object.arrivals;
        fail(context, format!("mbarrier {at:#x} has all of its {arrivals} arrivals of this phase already"));
    }
    if count == 0 || count > object.pending {
        let pending = object.pending;
        fail(
            context,
            format!("{count} arrivals at mbarrier {at:#x}: the rule is 1 to {pending}, which its phase lacks"),
        );
    }
    object.bytes += i64::from(bytes);
    object.pending -= count;
    // SAFETY: as in `init`.
    unsafe { (*context).dirty = true };
    if object.complete_if_due() {
        state.wake_mbarrier_waiters();
    }
}

/// Whether the phase of `parity` is complete; gives up the turn once when it is not, and looks again.
#[track_caller]
pub(crate) fn try_wait(context: *mut Context, at: u32, parity: u32) -> bool {
    let location = Location::caller();
    if parity > 1 {
        fail(context, format!("mbarrier_try_wait at {at:#x} asks for parity {parity}, but the rule is: 0 or 1"));
    }
    if is_complete(context, at, parity) {
        return true;
    }
    // SAFETY: `context` is the running thread's, and the reference made here ends before the suspension.
    unsafe {
        let (state, thread) = (&mut *(*context).state, (*context).reins.thread());
        state.warps[(thread / 32) as usize].on_mbarrier |= 1 << (thread % 32);
        state.mbarrier_warps |= 1 << (thread / 32);
        suspend(context, Waiting::Mbarrier { at, parity, location });
    }
    is_complete(context, at, parity)
}

#[track_caller]
fn is_complete(context: *mut Context, at: u32, parity: u32) -> bool {
    // SAFETY: as in `init`.
    let state = unsafe { &mut *(*context).state };
    let object = find(context, state, at);
    let complete = object.phase & 1 != u64::from(parity);
    if complete {
        object.seen = object.phase;
    }
    complete
}

/// The object at `at`; a kernel that made none there fails.
#[track_caller]
pub(crate) fn find(context: *mut Context, state: &mut BlockState, at: u32) -> &mut Mbarrier {
    match state.mbarriers.iter_mut().position(|object| object.at == at) {
        Some(index) => &mut state.mbarriers[index],
        None => fail(context, format!("there is no mbarrier at shared offset {at:#x}: mbarrier_init makes one")),
    }
}
