//! The simulator backend: every operation is a call into [`epoxide_sim::device`].
//!
//! Each function is `#[track_caller]`, so that reports name the kernel's own source line.
mod bulk;
mod fence;
mod memory;

use epoxide_sim::device::{self, Order, PollWait, Reduce, Shuffle, Strength};

pub use bulk::*;
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
#[track_caller]
pub fn sleep_until(ns: u64) {
    device::sleep_until(ns);
}
#[track_caller]
pub fn poll_pause(what: &'static str, word: (u64, u32), peer: u32, expected: u64, seen: u64, deadline_ns: u64) {
    let (word, bytes) = (memory::global(word.0), word.1);
    device::poll_pause(PollWait { what, word, bytes, peer, expected, seen, deadline_ns: Some(deadline_ns) });
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

pub fn bf16_from_f32(x: f32) -> u16 {
    crate::float::software_bf16(x)
}
pub fn e4m3x4_from_f32(x: [f32; 4]) -> u32 {
    u32::from_le_bytes(x.map(crate::float::software_e4m3))
}
pub fn max_u16x2(a: u32, b: u32) -> u32 {
    let high = (a >> 16).max(b >> 16);
    high << 16 | (a & 0xffff).max(b & 0xffff)
}
pub fn bf16x2_from_f32(low: f32, high: f32) -> u32 {
    u32::from(crate::float::software_bf16(high)) << 16 | u32::from(crate::float::software_bf16(low))
}
pub fn e4m3x2_from_f32(low: f32, high: f32) -> u16 {
    u16::from(crate::float::software_e4m3(low)) | u16::from(crate::float::software_e4m3(high)) << 8
}

pub fn sqrt_rn(x: f32) -> f32 {
    x.sqrt()
}
pub fn rcp_rn(x: f32) -> f32 {
    1.0 / x
}
/// One rounding, with or without an instruction for it: `mul_add` is that by definition.
pub fn fma_rn(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

/// A weak access.
const WEAK: Strength = Strength { order: Order::Weak, scope: device::Scope::Block };
