//! The asynchronous proxy: mbarriers and bulk copies.

use crate::context::attend;
use crate::{bulk, mbarrier};

/// Makes an mbarrier at shared offset `at` whose phases take `arrivals` arrivals.
///
/// # Panics
///
/// Outside a simulated thread; when `at` is misaligned or outside shared memory, or `arrivals` is not 1 to 1048575 (the
/// kernel fails).
#[track_caller]
pub fn mbarrier_init(at: u32, arrivals: u32) {
    mbarrier::init(attend("mbarrier_init"), at, arrivals);
}

/// Announces `bytes` that copies will deliver, and arrives.
///
/// # Panics
///
/// Outside a simulated thread; when no mbarrier is at `at`, or it has all arrivals of its phase (the kernel fails).
#[track_caller]
pub fn mbarrier_arrive_expect_tx(at: u32, bytes: u32) {
    mbarrier::arrive_expect_tx(attend("mbarrier_arrive_expect_tx"), at, bytes);
}

/// Returns whether the phase of `parity` is complete; when it is not, gives up the turn once and looks again.
///
/// # Panics
///
/// Outside a simulated thread; when no mbarrier is at `at`, or `parity` is not 0 or 1 (the kernel fails).
#[track_caller]
pub fn mbarrier_try_wait(at: u32, parity: u32) -> bool {
    mbarrier::try_wait(attend("mbarrier_try_wait"), at, parity)
}

/// Starts a copy of `bytes` from device memory to shared memory; its bytes count towards `mbarrier`.
///
/// # Panics
///
/// Outside a simulated thread; when an address or `bytes` is no multiple of 16, a range is out of bounds, or there is no
/// such mbarrier (the kernel fails).
#[track_caller]
pub fn bulk_load(shared_to: u32, global_from: u64, bytes: u32, mbarrier: u32) {
    let context = attend("bulk_load");
    bulk::load(context, shared_to, global_from, bytes, mbarrier);
    // SAFETY: the context is the running thread's.
    unsafe { (*context).dirty = true };
}

/// Starts a copy of `bytes` from shared memory to device memory, in the thread's open group.
///
/// # Panics
///
/// Outside a simulated thread; when an address or `bytes` is no multiple of 16, or a range is out of bounds (the kernel
/// fails).
#[track_caller]
pub fn bulk_store(global_to: u64, shared_from: u32, bytes: u32) {
    let context = attend("bulk_store");
    bulk::store(context, global_to, shared_from, bytes);
    // SAFETY: the context is the running thread's.
    unsafe { (*context).dirty = true };
}

/// Closes the thread's open group of bulk stores.
///
/// # Panics
///
/// Outside a simulated thread.
#[track_caller]
pub fn bulk_commit() {
    bulk::commit(attend("bulk_commit"));
}

/// Waits until at most the newest `groups_left` of the thread's groups are under way; with `read_only`, until their
/// sources were read and may be reused.
///
/// # Panics
///
/// Outside a simulated thread.
#[track_caller]
pub fn bulk_wait(groups_left: u32, read_only: bool) {
    bulk::wait(attend("bulk_wait"), groups_left, read_only);
}
