//! Loads, stores, atomics and fences.
//!
//! Every access is checked against the bounds of device or shared memory and its natural alignment, and is a host atomic
//! at least as strong as the host's relaxed order, so that kernels on two workers are never a data race in Rust's sense.

use super::word::Word;
use crate::bulk;
use crate::context::{Context, fail, preemption_point, require};

/// Which memory an address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Device memory of any rank: a host address inside the machine's arena.
    Global,
    /// The block's dynamic shared memory: an offset in it.
    Shared,
}

/// An address in device or shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The memory.
    pub space: Space,
    /// The device address, or the offset in shared memory.
    pub at: u64,
}

/// How an access is ordered with others (PTX: `.weak`, `.relaxed`, `.acquire`, `.release`, `.acq_rel`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Not at all.
    Weak,
    /// Atomic, but orders nothing else.
    Relaxed,
    /// What was released before is seen after it.
    Acquire,
    /// What came before is seen by whoever acquires it.
    Release,
    /// Both.
    AcquireRelease,
}

/// For whom the order holds (PTX: `.cta`, `.gpu`, `.sys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Threads of the block.
    Block,
    /// Threads of the rank.
    Gpu,
    /// All ranks and hosts.
    System,
}

/// An order and its scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Strength {
    /// The order.
    pub order: Order,
    /// The scope.
    pub scope: Scope,
}

/// What an atomic read-modify-write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rmw {
    /// Adds, wrapping.
    Add,
    /// Keeps the smaller, unsigned.
    Min,
    /// Keeps the larger, unsigned.
    Max,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
    /// Replaces.
    Exchange,
}

/// Loads a word.
///
/// # Panics
///
/// Outside a simulated thread; out of bounds or misaligned (the kernel fails, at the caller's line).
#[inline]
#[track_caller]
pub fn load<W: Word>(a: Address, s: Strength) -> W {
    let context = require("load");
    let pointer = resolve(context, a, size_of::<W>(), size_of::<W>());
    ordered(context, s);
    // SAFETY: `resolve` checked bounds and alignment; all accesses to device and shared memory are atomic.
    unsafe { W::atomic_load(pointer, s.order) }
}

/// Stores a word.
///
/// # Panics
///
/// As [`load`].
#[inline]
#[track_caller]
pub fn store<W: Word>(a: Address, v: W, s: Strength) {
    let context = require("store");
    let pointer = resolve(context, a, size_of::<W>(), size_of::<W>());
    ordered(context, s);
    // SAFETY: as in `load`; the context is the running thread's.
    unsafe {
        v.atomic_store(pointer, s.order);
        (*context).dirty = true;
    }
}

/// Loads 16 bytes at a 16-byte boundary, as two 8-byte accesses.
///
/// # Panics
///
/// As [`load`].
#[inline]
#[track_caller]
pub fn load_x4(a: Address, s: Strength) -> [u32; 4] {
    let context = require("load_x4");
    let pointer = resolve(context, a, 16, 16);
    ordered(context, s);
    // SAFETY: as in `load`, for both halves of the 16 bytes.
    let (low, high) = unsafe { (u64::atomic_load(pointer, s.order), u64::atomic_load(pointer.add(8), s.order)) };
    [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32]
}

/// Stores 16 bytes at a 16-byte boundary, as two 8-byte accesses.
///
/// # Panics
///
/// As [`load`].
#[inline]
#[track_caller]
pub fn store_x4(a: Address, v: [u32; 4], s: Strength) {
    let context = require("store_x4");
    let pointer = resolve(context, a, 16, 16);
    ordered(context, s);
    // SAFETY: as in `load`, for both halves of the 16 bytes; the context is the running thread's.
    unsafe {
        (u64::from(v[0]) | u64::from(v[1]) << 32).atomic_store(pointer, s.order);
        (u64::from(v[2]) | u64::from(v[3]) << 32).atomic_store(pointer.add(8), s.order);
        (*context).dirty = true;
    }
}

/// Reads, modifies and writes a word at once; returns the old value. PTX has it for `u32` and `u64`.
///
/// # Panics
///
/// As [`load`].
#[inline]
#[track_caller]
pub fn rmw<W: Word>(a: Address, op: Rmw, v: W, s: Strength) -> W {
    let context = require("rmw");
    let pointer = resolve(context, a, size_of::<W>(), size_of::<W>());
    ordered(context, s);
    // SAFETY: as in `load`; the context is the running thread's.
    unsafe {
        let old = v.atomic_rmw(pointer, op);
        // An exchange that finds its own value, or an addition of 0, is how some kernels poll: it changes nothing.
        (*context).dirty |= W::atomic_load(pointer, Order::Relaxed) != old;
        old
    }
}

/// Stores `new` if the word is `expected`; returns the old value either way.
///
/// # Panics
///
/// As [`load`].
#[inline]
#[track_caller]
pub fn compare_exchange<W: Word>(a: Address, expected: W, new: W, s: Strength) -> W {
    let context = require("compare_exchange");
    let pointer = resolve(context, a, size_of::<W>(), size_of::<W>());
    ordered(context, s);
    // SAFETY: as in `load`; the context is the running thread's.
    unsafe {
        let old = W::atomic_compare_exchange(pointer, expected, new);
        (*context).dirty |= old == expected;
        old
    }
}

/// Orders the thread's accesses before it with those after it.
///
/// # Panics
///
/// Outside a simulated thread.
#[inline]
#[track_caller]
pub fn fence(s: Strength) {
    use std::sync::atomic::{Ordering, fence};
    let context = require("fence");
    ordered(context, s);
    match s.order {
        Order::Weak | Order::Relaxed => {}
        Order::Acquire => fence(Ordering::Acquire),
        Order::Release => fence(Ordering::Release),
        Order::AcquireRelease => fence(Ordering::AcqRel),
    }
}

/// An access with an order is where a thread of a seeded machine may lose its turn.
#[inline(always)]
fn ordered(context: *mut Context, s: Strength) {
    if s.order != Order::Weak {
        // SAFETY: `context` is the running thread's, and callers hold no reference to it or the block.
        unsafe { preemption_point(context) };
    }
}

/// Turns an address into a host pointer after checking it.
#[inline(always)]
#[track_caller]
fn resolve(context: *mut Context, a: Address, bytes: usize, align: usize) -> *mut u8 {
    let (bytes, misaligned) = (bytes as u64, a.at & (align as u64 - 1) != 0);
    // SAFETY: `context` is the running thread's.
    let (base, length, memory, shared_bytes) =
        unsafe { ((*context).arena_base, (*context).arena_bytes, (*context).shared, (*context).shared_bytes) };
    match a.space {
        Space::Global => {
            // The arena is never smaller than a word, so this one compare also refuses addresses below it.
            if a.at.wrapping_sub(base) > length - bytes || misaligned {
                refuse(context, a, bytes);
            }
            std::ptr::with_exposed_provenance_mut(a.at as usize)
        }
        Space::Shared => {
            if a.at >= shared_bytes || bytes > shared_bytes - a.at || misaligned {
                refuse(context, a, bytes);
            }
            // SAFETY: the offset was just compared with the size of the block's shared memory.
            unsafe { memory.add(a.at as usize) }
        }
    }
}

#[cold]
#[inline(never)]
#[track_caller]
fn refuse(context: *mut Context, a: Address, bytes: u64) -> ! {
    let what = match a.space {
        Space::Global => format!("device address {:#x}", a.at),
        Space::Shared => format!("shared offset {:#x}", a.at),
    };
    // SAFETY: `context` is the running thread's.
    let shared_bytes = unsafe { (*context).shared_bytes };
    let limits = match a.space {
        Space::Global => bulk::arena(context),
        Space::Shared => format!("the block has {shared_bytes} bytes"),
    };
    if !a.at.is_multiple_of(bytes) {
        fail(context, format!("an access of {bytes} bytes at {what} is misaligned"));
    }
    fail(context, format!("an access of {bytes} bytes at {what} is out of bounds: {limits}"));
}
