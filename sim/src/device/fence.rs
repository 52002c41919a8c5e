//! Fences: what a thread did before one is ordered with what it does after.

use std::sync::atomic::{self, Ordering};

use super::access::Scope;
use crate::context::{attend, preemption_point};

/// Which way a fence orders (PTX: `fence.acquire`, `.release`, `.acq_rel`, `.sc`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fence {
    /// What was released before a word that the thread has read is seen after the fence.
    Acquire,
    /// What came before the fence is seen by whoever acquires a word that the thread writes after it.
    Release,
    /// Both.
    AcqRel,
    /// Both, and all such fences are in one order.
    SeqCst,
}

/// Which memory's accesses a proxy fence orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxySpace {
    /// The block's shared memory (`fence.proxy.async.shared::cta`).
    Shared,
    /// Device memory (`fence.proxy.async.global`).
    Global,
    /// Both (`fence.proxy.async`).
    Both,
}

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
