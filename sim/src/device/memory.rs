//! Loads, stores and atomics.
//!
//! Every access is checked: it lies in one live allocation, or in the block's shared memory, and is naturally aligned. It is a
//! host atomic at least as strong as the host's relaxed order, one of 16 bytes two of 8. So two of the same size never race in
//! Rust's sense; that two of different sizes meet only in some order is the launch's contract
//! ([`Actor::launch`](crate::Actor::launch)).

use super::time::is_left_out;
use super::word::Word;
use crate::context::{Context, fail, heed, preemption_point, require};

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
    let pointer = resolve::<false>(context, a, size_of::<W>(), size_of::<W>());
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
    let pointer = resolve::<true>(context, a, size_of::<W>(), size_of::<W>());
    if s.order == Order::Release && is_left_out() {
        return;
    }
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
    let pointer = resolve::<false>(context, a, 16, 16);
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
    let pointer = resolve::<true>(context, a, 16, 16);
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
    let pointer = resolve::<true>(context, a, size_of::<W>(), size_of::<W>());
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
    let pointer = resolve::<true>(context, a, size_of::<W>(), size_of::<W>());
    ordered(context, s);
    // SAFETY: as in `load`; the context is the running thread's.
    unsafe {
        let old = W::atomic_compare_exchange(pointer, expected, new);
        (*context).dirty |= old == expected;
        old
    }
}

/// An access with an order is where a thread of a seeded machine may lose its turn.
#[inline(always)]
#[track_caller]
fn ordered(context: *mut Context, s: Strength) {
    if s.order != Order::Weak {
        // SAFETY: `context` is the running thread's, and callers hold no reference to it or the block.
        unsafe { preemption_point(context) };
    }
}

/// Turns an address into a host pointer after checking it.
#[inline(always)]
#[track_caller]
fn resolve<const WRITES: bool>(context: *mut Context, a: Address, bytes: usize, align: usize) -> *mut u8 {
    let (bytes, misaligned) = (bytes as u64, a.at & (align as u64 - 1) != 0);
    // SAFETY: `context` is the running thread's, and of the reins everyone may make references.
    let reins = unsafe { &(*context).reins };
    if misaligned {
        refuse(context, a, bytes);
    }
    match a.space {
        Space::Global => {
            let last = if WRITES { &reins.written } else { &reins.read };
            if !last.holds(a.at, bytes) {
                // SAFETY: as above.
                match unsafe { (*context).owners.of(a.at) } {
                    Some(owner) if !reins.alarmed() && owner.holds(a.at, bytes) => last.become_like(owner),
                    _ => stumble(context, a, bytes),
                }
            }
            std::ptr::with_exposed_provenance_mut(a.at as usize)
        }
        Space::Shared => {
            if !reins.reaches_shared(a.at, bytes) {
                stumble(context, a, bytes);
            }
            // SAFETY: the offset was just compared with the size of the block's shared memory.
            unsafe { (*context).shared.add(a.at as usize) }
        }
    }
}

/// An access out of bounds, or one that an alarm stopped. Returns if that was for another turn.
#[cold]
#[inline(never)]
#[track_caller]
fn stumble(context: *mut Context, a: Address, bytes: u64) {
    // SAFETY: as in `resolve`; the arena is the machine's.
    let (reins, arena, shared_bytes) = unsafe { (&(*context).reins, &*(*context).arena, (*context).shared_bytes) };
    heed(context);
    let inside = match a.space {
        Space::Global => arena.extent_of(a.at, bytes).is_some(),
        Space::Shared => a.at < shared_bytes && bytes <= shared_bytes - a.at,
    };
    if !inside {
        refuse(context, a, bytes);
    }
    // What the alarm took away.
    reins.share(shared_bytes);
}

#[cold]
#[inline(never)]
#[track_caller]
fn refuse(context: *mut Context, a: Address, bytes: u64) -> ! {
    // SAFETY: as in `stumble`.
    let (arena, shared_bytes) = unsafe { (&*(*context).arena, (*context).shared_bytes) };
    let (what, limits) = match a.space {
        Space::Global => (format!("device address {:#x}", a.at), arena.whereabouts(a.at, bytes)),
        Space::Shared => (format!("shared offset {:#x}", a.at), format!("the block has {shared_bytes} bytes")),
    };
    if !a.at.is_multiple_of(bytes) {
        fail(context, format!("an access of {bytes} bytes at {what} is misaligned"));
    }
    fail(context, format!("an access of {bytes} bytes at {what} is out of bounds: {limits}"));
}
