//! Bulk asynchronous copies between device memory and a block's shared memory (TMA, one-dimensional).
//!
//! In the fast mode a copy happens where it is issued. In the seeded modes it is kept, and happens at some later step:
//! at the latest when its mbarrier or its group is waited for and nothing else can run. A store's source is read then,
//! too, so a kernel that refills its stage without `bulk_wait(.., read_only)` sends the wrong bytes, like on hardware.

use std::panic::Location;

use super::context::{Context, fail};
use super::mbarrier;
use crate::device::BulkReduction;
use crate::engine::block::bulk::{Kind, PendingCopy};
use crate::memory::door::Ends;

/// Copies `bytes` from device memory to shared memory.
#[track_caller]
pub(crate) fn load(context: *mut Context, shared_to: u32, global_from: u64, bytes: u32, mbarrier: u32) {
    let ends = check(context, shared_to, global_from, bytes, "bulk_load");
    // SAFETY: `context` is the running thread's; its worker holds no reference to the block while the thread runs.
    let (state, late, thread) = unsafe { (&mut *(*context).state, (*context).adversarial, (*context).reins.thread()) };
    mbarrier::find(context, state, mbarrier).load(Location::caller());
    if late {
        state.copies.push(PendingCopy { thread, ends, bytes, kind: Kind::Load { mbarrier } });
        return;
    }
    // SAFETY: `check` found both ends in live memory just now.
    unsafe { ends.load() };
    state.deliver(mbarrier, bytes);
}

/// Copies `bytes` from shared memory to device memory, in the thread's open group.
#[track_caller]
pub(crate) fn store(
    context: *mut Context,
    global_to: u64,
    shared_from: u32,
    bytes: u32,
    reduction: Option<BulkReduction>,
) {
    let ends = check(context, shared_from, global_to, bytes, "bulk_store");
    // SAFETY: as in `load`.
    let (state, late, thread) = unsafe { (&mut *(*context).state, (*context).adversarial, (*context).reins.thread()) };
    let stores = &mut state.tally(thread).stores;
    let group = stores.committed;
    stores.last = Some((group, Location::caller()));
    if late {
        let kind = Kind::Store { group, snapshot: None, reduction };
        state.copies.push(PendingCopy { thread, ends, bytes, kind });
        return;
    }
    // SAFETY: as in `load`.
    unsafe { ends.store(reduction) };
}

/// Checks what a prefetch asks for, which is all that it does.
#[track_caller]
pub(crate) fn prefetch(context: *mut Context, global: u64, bytes: u32) {
    check_global(context, global, bytes, "bulk_prefetch");
}

/// Closes the thread's open group.
pub(crate) fn commit(context: *mut Context) {
    // SAFETY: as in `load`.
    unsafe {
        let thread = (*context).reins.thread();
        (*(*context).state).tally(thread).stores.committed += 1;
    }
}

/// Waits until at most `groups_left` of the thread's newest groups are under way; `read_only`: until their sources were
/// read.
pub(crate) fn wait(context: *mut Context, groups_left: u32, read_only: bool) {
    // SAFETY: as in `load`.
    let (state, thread) = unsafe { (&mut *(*context).state, (*context).reins.thread()) };
    let stores = &mut state.tally(thread).stores;
    let committed = stores.committed;
    stores.read = stores.read.max(committed.saturating_sub(groups_left));
    let mut index = 0;
    while index < state.copies.len() {
        let copy = &mut state.copies[index];
        match &mut copy.kind {
            Kind::Store { group, snapshot, .. }
                if copy.thread == thread && u64::from(*group) + u64::from(groups_left) < u64::from(committed) =>
            {
                if read_only {
                    if snapshot.is_none() {
                        // SAFETY: `check` passed when the copy was issued, and the block's shared memory still lives.
                        *snapshot = Some(unsafe { copy.ends.read_source() });
                    }
                    index += 1;
                } else {
                    state.complete_copy(index);
                    // SAFETY: as in `load`. What the copy wrote, others may be polling.
                    unsafe { (*context).dirty = true };
                }
            }
            _ => index += 1,
        }
    }
}

/// Checks a copy against its rules, and returns its ends.
#[track_caller]
#[inline]
fn check(context: *mut Context, shared: u32, global: u64, bytes: u32, name: &str) -> Ends {
    // SAFETY: `context` is the running thread's.
    let (memory, shared_bytes) = unsafe { ((*context).shared, (*context).shared_bytes) };
    if !(u64::from(shared) | global | u64::from(bytes)).is_multiple_of(16) {
        fail(
            context,
            format!(
                "{name} of {bytes} bytes, shared offset {shared:#x}, device address {global:#x}: the rule is multiples of 16"
            ),
        );
    }
    check_global(context, global, bytes, name);
    if u64::from(shared) + u64::from(bytes) > shared_bytes {
        fail(
            context,
            format!(
                "{name} of {bytes} bytes at shared offset {shared:#x} is out of bounds: the block has {shared_bytes} bytes"
            ),
        );
    }
    // SAFETY: both ranges were just found inside live memory, on multiples of 16.
    unsafe { Ends::new(global, memory.add(shared as usize), bytes) }
}

/// Checks the part of a copy that is device memory.
#[track_caller]
#[inline]
fn check_global(context: *mut Context, global: u64, bytes: u32, name: &str) {
    // SAFETY: `context` is the running thread's.
    let arena = unsafe { &*(*context).arena };
    if !(global | u64::from(bytes)).is_multiple_of(16) {
        fail(context, format!("{name} of {bytes} bytes, device address {global:#x}: the rule is multiples of 16"));
    }
    if arena.extent_of(global, u64::from(bytes)).is_none() {
        let where_it_is = arena.whereabouts(global, u64::from(bytes));
        fail(context, format!("{name} of {bytes} bytes at device address {global:#x} is out of bounds: {where_it_is}"));
    }
}
