//! Bulk copies and mbarriers, as the simulator is asked for them.
use epoxide_sim::device::{self, BulkCopy, Completion, Order, ProxySpace, Scope, Strength};

use super::memory::{global, shared};

/// How an mbarrier's operations are ordered where PTX is told nothing else.
const fn in_block(order: Order) -> Strength {
    Strength { order, scope: Scope::Block }
}

#[track_caller]
pub fn mbarrier_init(at: u32, arrivals: u32) {
    device::mbarrier_init(at, arrivals);
    device::fence_mbarrier_init();
    device::fence_proxy_async(ProxySpace::Shared);
}
#[track_caller]
pub fn mbarrier_arrive_expect_tx(at: u32, bytes: u32) {
    device::mbarrier_arrive(at, 1, bytes, in_block(Order::Release));
}
#[track_caller]
pub fn mbarrier_try_wait(at: u32, parity: u32) -> bool {
    device::mbarrier_try_wait(at, parity, in_block(Order::Acquire))
}
#[track_caller]
pub fn bulk_load(to: u32, from: u64, bytes: u32, mbarrier: u32) {
    let completion = Completion::Mbarrier(mbarrier);
    device::bulk_copy(BulkCopy { from: global(from), to: shared(to), bytes, completion, reduction: None });
}
/// A hint, which has no effect that a kernel could see; its bounds are checked.
#[track_caller]
pub fn bulk_prefetch(from: u64, bytes: u32) {
    device::bulk_prefetch(global(from), bytes);
}
#[track_caller]
pub fn bulk_store(to: u64, from: u32, bytes: u32) {
    let completion = Completion::Group;
    device::bulk_copy(BulkCopy { from: shared(from), to: global(to), bytes, completion, reduction: None });
}
#[track_caller]
pub fn bulk_commit() {
    device::bulk_commit();
}
#[track_caller]
pub fn bulk_wait_read() {
    device::bulk_wait(0, true);
}
#[track_caller]
pub fn bulk_wait_read_but_last() {
    device::bulk_wait(1, true);
}
#[track_caller]
pub fn bulk_wait_complete() {
    device::bulk_wait(0, false);
}
