//! Fences between accesses, and between the generic and the async proxy (PTX ISA, `membar`/`fence`, "Proxies").
use core::arch::asm;

use crate::memory::{Scope, ScopeKind};

/// Which way a fence orders.
#[derive(Clone, Copy, Debug)]
pub enum FenceKind {
    Acquire,
    Release,
    AcqRel,
}

macro_rules! fence {
    ($text:literal) => {
        // SAFETY: a fence touches no memory; the memory clobber stays, so that no access moves across it.
        unsafe { asm!($text, options(nostack, preserves_flags)) }
    };
}

/// `fence.acquire` and `fence.release` came with PTX ISA 8.6; the fence for both is one for each.
#[inline(always)]
pub fn fence<S: Scope>(_kind: FenceKind) {
    match S::KIND {
        ScopeKind::Block => fence!("fence.acq_rel.cta;"),
        ScopeKind::Gpu => fence!("fence.acq_rel.gpu;"),
        ScopeKind::System => fence!("fence.acq_rel.sys;"),
    }
}
/// Orders this thread's accesses to shared memory with later bulk copies.
#[inline(always)]
pub fn fence_proxy_async_shared() {
    fence!("fence.proxy.async.shared::cta;");
}
/// Orders this thread's accesses to global memory, and what they have acquired, with bulk copies.
#[inline(always)]
pub fn fence_proxy_async_global() {
    fence!("fence.proxy.async.global;");
}
