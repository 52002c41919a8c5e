//! Fences: what a thread did before one is ordered with what it does after.

use std::sync::atomic::{self, Ordering};

use super::operation::{Fence, ProxySpace, Scope};
use crate::engine::thread::context::{attend, preemption_point};

/// Orders the thread's accesses before it with those after it, for the threads of `scope`.
///
/// # Panics
///
/// Outside a simulated thread.
#[inline]
#[track_caller]
pub fn fence(kind: Fence, scope: Scope) {
    let context = attend("fence");
    // The scope is for the memory checker: a host fence is for everyone.
    let _ = scope;
    // SAFETY: `context` is the running thread's, and no reference to it or the block is held here.
    unsafe { preemption_point(context) };
    atomic::fence(match kind {
        Fence::Acquire => Ordering::Acquire,
        Fence::Release => Ordering::Release,
        Fence::AcqRel => Ordering::AcqRel,
        Fence::SeqCst => Ordering::SeqCst,
    });
}

/// Orders the thread's own accesses to `space` with those of the asynchronous proxy (`fence.proxy.async`).
///
/// # Panics
///
/// Outside a simulated thread.
#[track_caller]
pub fn fence_proxy_async(space: ProxySpace) {
    attend("fence_proxy_async");
    // Bulk copies are ordinary host accesses here; the space is for the memory checker.
    let _ = space;
}

/// Makes the mbarriers that the thread has initialised known to the cluster and to the asynchronous proxy
/// (`fence.mbarrier_init.release.cluster`).
///
/// # Panics
///
/// Outside a simulated thread.
#[track_caller]
pub fn fence_mbarrier_init() {
    attend("fence_mbarrier_init");
}
