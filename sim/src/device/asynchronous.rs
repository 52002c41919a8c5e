//! The asynchronous proxy: mbarriers and bulk copies.

use super::operation::{Address, BulkCopy, BulkReduction, Completion, Order, Rmw, Space, Strength};
use crate::engine::thread::context::{Context, attend, fail};
use crate::engine::thread::{bulk, mbarrier};

/// Makes an mbarrier at shared offset `at`, of 8 bytes, whose phases take `arrivals` arrivals.
///
/// # Panics
///
/// Outside a simulated thread; when `at` is misaligned or outside shared memory, or `arrivals` is not 1 to 1048575 (the
/// kernel fails).
#[track_caller]
pub fn mbarrier_init(at: u32, arrivals: u32) {
    mbarrier::init(attend("mbarrier_init"), at, arrivals);
}

/// Announces `expected` bytes that copies will deliver, and arrives `count` times.
///
/// # Panics
///
/// Outside a simulated thread; when no mbarrier is at `at`, `count` is 0 or more than the arrivals that its phase lacks, or
/// `s` is neither a release nor relaxed (the kernel fails).
#[track_caller]
pub fn mbarrier_arrive(at: u32, count: u32, expected: u32, s: Strength) {
    let context = attend("mbarrier_arrive");
    if !matches!(s.order, Order::Release | Order::Relaxed) {
        fail(context, format!("mbarrier_arrive at {at:#x} with {s:?}: the rule is a release, or relaxed"));
    }
    mbarrier::arrive(context, at, count, expected);
}

/// Returns whether the phase of `parity` is complete; when it is not, gives up the turn once and looks again.
///
/// # Panics
///
/// Outside a simulated thread; when no mbarrier is at `at`, `parity` is not 0 or 1, or `s` is neither an acquire nor relaxed
/// (the kernel fails).
#[track_caller]
pub fn mbarrier_try_wait(at: u32, parity: u32, s: Strength) -> bool {
    let context = attend("mbarrier_try_wait");
    if !matches!(s.order, Order::Acquire | Order::Relaxed) {
        fail(context, format!("mbarrier_try_wait at {at:#x} with {s:?}: the rule is an acquire, or relaxed"));
    }
    mbarrier::try_wait(context, at, parity)
}

/// Starts a bulk copy.
///
/// # Panics
///
/// Outside a simulated thread; when an address or `bytes` is no multiple of 16, a range is out of bounds, there is no such
/// mbarrier, or the spaces, the completion and the reduction are no copy that there is (the kernel fails).
#[track_caller]
pub fn bulk_copy(copy: BulkCopy) {
    let context = attend("bulk_copy");
    let BulkCopy { from, to, bytes, completion, reduction } = copy;
    match (from.space, to.space, completion, reduction) {
        (Space::Global, Space::Shared, Completion::Mbarrier(mbarrier), None) => {
            bulk::load(context, offset(context, to), from.at, bytes, mbarrier);
        }
        (Space::Shared, Space::Global, Completion::Group, _) if reduction.is_none_or(is_reduction) => {
            bulk::store(context, to.at, offset(context, from), bytes, reduction);
        }
        _ => fail(
            context,
            format!(
                "{copy:?}: the rule is from device to shared memory with an mbarrier, or from shared to device memory in a \
                 group, where alone words of 4 or 8 bytes may be combined"
            ),
        ),
    }
    // SAFETY: the context is the running thread's.
    unsafe { (*context).dirty = true };
}

/// Whether a bulk copy can combine words so.
fn is_reduction(BulkReduction { op, element }: BulkReduction) -> bool {
    op != Rmw::Exchange && (element == 4 || element == 8 && op != Rmw::AddF32)
}

/// An offset in shared memory, which is less than 4 GiB.
#[track_caller]
fn offset(context: *mut Context, a: Address) -> u32 {
    u32::try_from(a.at).unwrap_or_else(|_| fail(context, format!("shared offset {:#x} is out of bounds", a.at)))
}

/// Asks for `bytes` of device memory to be brought nearer (`cp.async.bulk.prefetch.L2`): checked like a copy's source, and
/// ordered with nothing.
///
/// # Panics
///
/// Outside a simulated thread; when `from` is no device address, it or `bytes` is no multiple of 16, or the range is out of
/// bounds (the kernel fails).
#[track_caller]
pub fn bulk_prefetch(from: Address, bytes: u32) {
    let context = attend("bulk_prefetch");
    if from.space != Space::Global {
        fail(context, format!("bulk_prefetch of {from:?}: the rule is a device address"));
    }
    bulk::prefetch(context, from.at, bytes);
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
