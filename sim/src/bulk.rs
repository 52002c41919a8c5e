//! Bulk asynchronous copies between device memory and a block's shared memory (TMA, one-dimensional).
//!
//! In the fast mode a copy happens where it is issued. In the seeded modes it is kept, and happens at some later step:
//! at the latest when its mbarrier or its group is waited for and nothing else can run. A store's source is read then,
//! too, so a kernel that refills its stage without `bulk_wait(.., read_only)` sends the wrong bytes, like on hardware.

use std::panic::Location;

use crate::block::BlockState;
use crate::context::{Context, fail};
use crate::copies::{copy_words, read_words};
use crate::device::{BulkReduction, Order, Rmw, Word};
use crate::mbarrier;

/// A copy that was issued and has not happened.
pub(crate) struct PendingCopy {
    thread: u32,
    to: *mut u64,
    from: *const u64,
    bytes: u32,
    kind: Kind,
}

/// What a thread knows of its bulk stores.
#[derive(Clone, Copy, Default)]
pub(crate) struct Stores {
    /// How many groups it has committed.
    committed: u32,
    /// How many groups have had their sources read, as far as it has waited.
    read: u32,
    /// The group of its last store, and where that was issued.
    last: Option<(u32, &'static Location<'static>)>,
}

impl Stores {
    /// Where the last store was issued, if nobody waited until its source was read.
    pub(crate) fn in_flight(&self) -> Option<&'static Location<'static>> {
        self.last.and_then(|(group, location)| (group >= self.read).then_some(location))
    }
}

enum Kind {
    /// Into shared memory; delivers its bytes to this mbarrier.
    Load { mbarrier: u32 },
    /// Out of shared memory, in the thread's group of this number; the source as it was, once it has been read.
    Store { group: u32, snapshot: Option<Vec<u64>>, reduction: Option<BulkReduction> },
}

/// Copies `bytes` from device memory to shared memory.
#[track_caller]
pub(crate) fn load(context: *mut Context, shared_to: u32, global_from: u64, bytes: u32, mbarrier: u32) {
    let (shared, global) = check(context, shared_to, global_from, bytes, "bulk_load");
    // SAFETY: `context` is the running thread's; its worker holds no reference to the block while the thread runs.
    let (state, late, thread) = unsafe { (&mut *(*context).state, (*context).adversarial, (*context).reins.thread()) };
    mbarrier::find(context, state, mbarrier).load(Location::caller());
    if late {
        state.copies.push(PendingCopy { thread, to: shared, from: global, bytes, kind: Kind::Load { mbarrier } });
        return;
    }
    // SAFETY: `check` found both ranges inside live mappings of the right size and alignment.
    unsafe { copy_words(shared, global, bytes as usize / 8) };
    mbarrier::deliver(state, mbarrier, bytes);
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
    let (shared, global) = check(context, shared_from, global_to, bytes, "bulk_store");
    // SAFETY: as in `load`.
    let (state, late, thread) = unsafe { (&mut *(*context).state, (*context).adversarial, (*context).reins.thread()) };
    let stores = &mut state.tally(thread).stores;
    let group = stores.committed;
    stores.last = Some((group, Location::caller()));
    if late {
        let kind = Kind::Store { group, snapshot: None, reduction };
        state.copies.push(PendingCopy { thread, to: global, from: shared, bytes, kind });
        return;
    }
    // SAFETY: as in `load`.
    unsafe { put(global, shared, bytes as usize / 8, reduction) };
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
                        let mut words = vec![0; copy.bytes as usize / 8];
                        // SAFETY: `check` passed when the copy was issued, and the block's shared memory still lives.
                        unsafe { read_words(&mut words, copy.from) };
                        *snapshot = Some(words);
                    }
                    index += 1;
                } else {
                    complete(state, index);
                    // SAFETY: as in `load`. What the copy wrote, others may be polling.
                    unsafe { (*context).dirty = true };
                }
            }
            _ => index += 1,
        }
    }
}

/// Makes the pending copy `index` happen.
pub(crate) fn complete(state: &mut BlockState, index: usize) {
    let copy = state.copies.swap_remove(index);
    let words = copy.bytes as usize / 8;
    match copy.kind {
        Kind::Load { mbarrier } => {
            // SAFETY: `check` passed when the copy was issued; device memory and the block's shared memory still live.
            unsafe { copy_words(copy.to, copy.from, words) };
            mbarrier::deliver(state, mbarrier, copy.bytes);
        }
        // SAFETY: as above; a snapshot has the copy's length, and is this function's own.
        Kind::Store { snapshot: Some(mut snapshot), reduction, .. } => unsafe {
            put(copy.to, snapshot.as_mut_ptr(), words, reduction);
        },
        // SAFETY: as above.
        Kind::Store { snapshot: None, reduction, .. } => unsafe { put(copy.to, copy.from, words, reduction) },
    }
}

/// Writes `words` words to device memory, or combines them with what is there.
///
/// # Safety
///
/// As for `copy_words`.
unsafe fn put(to: *mut u64, from: *const u64, words: usize, reduction: Option<BulkReduction>) {
    // SAFETY: the caller's promise; an element lies in the word whose part it is.
    unsafe {
        match reduction {
            None => copy_words(to, from, words),
            Some(BulkReduction { op, element: 8 }) => combine::<u64>(to.cast(), from.cast(), words, op),
            Some(BulkReduction { op, .. }) => combine::<u32>(to.cast(), from.cast(), 2 * words, op),
        }
    }
}

/// Combines `count` elements with those at `to`, each at once.
///
/// # Safety
///
/// As for `copy_words`, of elements of `W`.
unsafe fn combine<W: Word>(to: *mut u8, from: *const u8, count: usize, op: Rmw) {
    for at in (0..count).map(|i| i * size_of::<W>()) {
        // SAFETY: the caller's promise.
        unsafe { W::atomic_load(from.add(at).cast_mut(), Order::Relaxed).atomic_rmw(to.add(at), op) };
    }
}

/// Checks a copy against its rules, and returns its shared and its device address.
#[track_caller]
#[inline]
fn check(context: *mut Context, shared: u32, global: u64, bytes: u32, name: &str) -> (*mut u64, *mut u64) {
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
    let global = check_global(context, global, bytes, name);
    if u64::from(shared) + u64::from(bytes) > shared_bytes {
        fail(
            context,
            format!(
                "{name} of {bytes} bytes at shared offset {shared:#x} is out of bounds: the block has {shared_bytes} bytes"
            ),
        );
    }
    // SAFETY: the offset was compared with the size of the block's shared memory.
    let shared = unsafe { memory.add(shared as usize) };
    (shared.cast(), global)
}

/// Checks the part of a copy that is device memory, and returns its address.
#[track_caller]
#[inline]
fn check_global(context: *mut Context, global: u64, bytes: u32, name: &str) -> *mut u64 {
    // SAFETY: `context` is the running thread's.
    let arena = unsafe { &*(*context).arena };
    if !(global | u64::from(bytes)).is_multiple_of(16) {
        fail(context, format!("{name} of {bytes} bytes, device address {global:#x}: the rule is multiples of 16"));
    }
    if arena.extent_of(global, u64::from(bytes)).is_none() {
        let where_it_is = arena.whereabouts(global, u64::from(bytes));
        fail(context, format!("{name} of {bytes} bytes at device address {global:#x} is out of bounds: {where_it_is}"));
    }
    std::ptr::with_exposed_provenance_mut(global as usize)
}
