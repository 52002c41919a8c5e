//! Bulk asynchronous copies and mbarriers (PTX ISA, "Asynchronous copies", `mbarrier`).
use core::arch::asm;

use super::fence_proxy_async_shared;

macro_rules! effect {
    ($text:literal $(, $($operand:tt)*)?) => {
        // SAFETY: the addresses are valid and multiples of 16 (8 for an mbarrier) by the contract of `bulk::Ring`; the
        // memory clobber stays.
        unsafe { asm!($text $(, $($operand)*)?, options(nostack, preserves_flags)) }
    };
}

/// Makes a fresh mbarrier visible to other threads and to the async proxy.
#[inline(always)]
pub fn mbarrier_init(at: u32, arrivals: u32) {
    effect!("mbarrier.init.shared::cta.b64 [{0}], {1};", in(reg32) at, in(reg32) arrivals);
    effect!("fence.mbarrier_init.release.cluster;");
    fence_proxy_async_shared();
}
#[inline(always)]
pub fn mbarrier_arrive_expect_tx(at: u32, bytes: u32) {
    effect!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{0}], {1};", in(reg32) at, in(reg32) bytes);
}
#[inline(always)]
pub fn mbarrier_try_wait(at: u32, parity: u32) -> bool {
    let done: u32;
    // SAFETY: tests (and may suspend on) an mbarrier that `mbarrier_init` made.
    unsafe {
        asm!("{{ .reg .pred P; mbarrier.try_wait.parity.shared::cta.b64 P, [{1}], {2}; selp.u32 {0}, 1, 0, P; }}",
            out(reg32) done, in(reg32) at, in(reg32) parity, options(nostack, preserves_flags));
    }
    done != 0
}
/// Evict-first: the source row is read once.
#[inline(always)]
pub fn bulk_load(to: u32, from: u64, bytes: u32, mbarrier: u32) {
    effect!("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [{0}], [{1}], {2}, [{3}], {4};",
        in(reg32) to, in(reg64) from, in(reg32) bytes, in(reg32) mbarrier, in(reg64) 0x12f0_0000_0000_0000u64);
}
/// Asks for bytes to be brought into the L2.
#[inline(always)]
pub fn bulk_prefetch(from: u64, bytes: u32) {
    effect!("cp.async.bulk.prefetch.L2.global [{0}], {1};", in(reg64) from, in(reg32) bytes);
}
#[inline(always)]
pub fn bulk_store(to: u64, from: u32, bytes: u32) {
    effect!("cp.async.bulk.global.shared::cta.bulk_group [{0}], [{1}], {2};", in(reg64) to, in(reg32) from, in(reg32) bytes);
}
#[inline(always)]
pub fn bulk_commit() {
    effect!("cp.async.bulk.commit_group;");
}
/// Waits until the sources of all this thread's bulk stores were read.
#[inline(always)]
pub fn bulk_wait_read() {
    effect!("cp.async.bulk.wait_group.read 0;");
}
/// Waits until the sources of all this thread's bulk stores were read, but for those of its last group.
#[inline(always)]
pub fn bulk_wait_read_but_last() {
    effect!("cp.async.bulk.wait_group.read 1;");
}
/// Waits until all this thread's bulk stores are complete and visible to it.
#[inline(always)]
pub fn bulk_wait_complete() {
    effect!("cp.async.bulk.wait_group 0;");
}
