//! The simulator backend: every operation is a call into [`epoxide_sim::device`].
//!
//! Each function is `#[track_caller]`, so that reports name the kernel's own source line.
mod bulk;
mod convert;
mod fence;
mod memory;

use epoxide_sim::device::{self, PollWait, Reduce, Shuffle};

pub use bulk::*;
pub use convert::*;
pub use fence::*;
pub use memory::*;

pub fn thread_index() -> u32 {
    device::thread_index()
}
pub fn block_threads() -> u32 {
    device::block_threads()
}
pub fn block_index() -> u32 {
    device::block_index()
}
pub fn grid_blocks() -> u32 {
    device::grid_blocks()
}
/// Shared addresses are offsets in the block's dynamic shared memory.
pub fn shared_base() -> u32 {
    0
}
pub fn global_ns() -> u64 {
    device::clock_ns()
}
/// Launches of a stream come one after the other.
pub fn wait_for_the_one_before() {}
/// As above.
pub fn let_the_next_one_begin() {}
#[track_caller]
pub fn sleep_until(ns: u64) {
    device::sleep_until(ns);
}
#[track_caller]
pub fn poll_pause(what: &'static str, word: (u64, u32), peer: u32, expected: u64, seen: u64, deadline_ns: u64) {
    let (word, bytes) = (memory::global(word.0), word.1);
    device::poll_pause(PollWait { what, word, bytes, peer, expected, seen, deadline_ns: Some(deadline_ns) });
}

/// At every poll: virtual time may jump from one to the deadline.
pub fn asks_host(_age_ns: u32) -> bool {
    true
}

#[track_caller]
pub fn is_left_out() -> bool {
    device::is_left_out()
}

#[track_caller]
pub fn block_barrier() {
    device::barrier(0, 0);
}
#[track_caller]
pub fn block_barrier_or(predicate: bool) -> bool {
    device::barrier_or(0, predicate)
}
#[track_caller]
pub fn warp_sync(mask: u32) {
    device::warp_sync(mask);
}
#[track_caller]
pub fn shuffle_index(mask: u32, value: u32, lane: u32) -> u32 {
    device::shuffle(mask, Shuffle::Index, value, lane)
}
#[track_caller]
pub fn shuffle_xor(mask: u32, value: u32, flip: u32) -> u32 {
    device::shuffle(mask, Shuffle::Xor, value, flip)
}
#[track_caller]
pub fn shuffle_up(mask: u32, value: u32, distance: u32) -> u32 {
    device::shuffle(mask, Shuffle::Up, value, distance)
}
#[track_caller]
pub fn ballot(mask: u32, predicate: bool) -> u32 {
    device::ballot(mask, predicate)
}
#[track_caller]
pub fn match_any(mask: u32, value: u32) -> u32 {
    device::match_any(mask, value)
}
#[track_caller]
pub fn reduce_add(mask: u32, value: u32) -> u32 {
    device::reduce(mask, Reduce::Add, value)
}
#[track_caller]
pub fn reduce_min(mask: u32, value: u32) -> u32 {
    device::reduce(mask, Reduce::Min, value)
}
#[track_caller]
pub fn reduce_max(mask: u32, value: u32) -> u32 {
    device::reduce(mask, Reduce::Max, value)
}
