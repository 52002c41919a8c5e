//! Loads, stores and atomics.
//!
//! Every access is checked: it lies in one live allocation, or in the block's shared memory, and is naturally aligned. It is a
//! host atomic at least as strong as the host's relaxed order, a vector one for each of its elements. So two of the same size
//! never race in Rust's sense; that two of different sizes meet only in some order is the launch's contract
//! ([`Actor::launch`](crate::Actor::launch)).

use super::access::{Access, Kind};
use super::operation::{Address, Order, Rmw, Space, Strength};
use super::time::is_left_out;
use super::word::Word;
use crate::engine::thread::context::{Context, fail, heed, preemption_point, require};

/// Loads a word.
///
/// # Panics
///
/// Outside a simulated thread; out of bounds or misaligned (the kernel fails, at the caller's line).
#[inline]
#[track_caller]
pub fn load<W: Word>(a: Address, s: Strength) -> W {
    let context = require("load");
    let pointer = enter(context, Access::to::<W, 1>(a, Kind::Load, s));
    // SAFETY: `enter` checked bounds and alignment; all accesses to device and shared memory are atomic.
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
    if s.order == Order::Release && is_left_out() {
        return;
    }
    let pointer = enter(context, Access::to::<W, 1>(a, Kind::Store, s));
    // SAFETY: as in `load`; the context is the running thread's.
    unsafe {
        v.atomic_store(pointer, s.order);
        (*context).dirty = true;
    }
}

/// Loads a vector of `N` words, 16 bytes at most, at a boundary of its size. Each word is an access of its own, in any order.
///
/// # Panics
///
/// As [`load`].
#[inline]
#[track_caller]
pub fn load_vector<W: Word, const N: usize>(a: Address, s: Strength) -> [W; N] {
    let context = require("load_vector");
    let pointer = enter(context, Access::to::<W, N>(a, Kind::Load, s));
    // SAFETY: as in `load`, for each word of the vector.
    std::array::from_fn(|i| unsafe { W::atomic_load(pointer.add(i * size_of::<W>()), s.order) })
}

/// Stores a vector of `N` words, 16 bytes at most, at a boundary of its size. Each word is an access of its own, in any order.
///
/// # Panics
///
/// As [`load`].
#[inline]
#[track_caller]
pub fn store_vector<W: Word, const N: usize>(a: Address, v: [W; N], s: Strength) {
    let context = require("store_vector");
    let pointer = enter(context, Access::to::<W, N>(a, Kind::Store, s));
    for (i, word) in v.into_iter().enumerate() {
        // SAFETY: as in `load`, for each word of the vector.
        unsafe { word.atomic_store(pointer.add(i * size_of::<W>()), s.order) };
    }
    // SAFETY: the context is the running thread's.
    unsafe { (*context).dirty = true };
}

/// Reads, modifies and writes a word at once; returns the old value. PTX has it for `u32` and `u64`.
///
/// # Panics
///
/// As [`load`]; for [`Rmw::AddF32`] of a word that is not of 4 bytes (the kernel fails).
#[inline]
#[track_caller]
pub fn rmw<W: Word>(a: Address, op: Rmw, v: W, s: Strength) -> W {
    modify(require("rmw"), Access::to::<W, 1>(a, Kind::Rmw(op), s), op, v)
}

/// Modifies a word at once, without a result: a reduction (PTX: `red`).
///
/// # Panics
///
/// As [`rmw`]; for [`Rmw::Exchange`], which is a store (the kernel fails).
#[inline]
#[track_caller]
pub fn red<W: Word>(a: Address, op: Rmw, v: W, s: Strength) {
    let context = require("red");
    if op == Rmw::Exchange {
        fail(context, "red with Rmw::Exchange: the rule is an operation that combines; store replaces".to_string());
    }
    modify(context, Access::to::<W, 1>(a, Kind::Reduction(op), s), op, v);
}

#[inline(always)]
#[track_caller]
fn modify<W: Word>(context: *mut Context, access: Access, op: Rmw, v: W) -> W {
    if op == Rmw::AddF32 && size_of::<W>() != 4 {
        fail(context, format!("{access} with Rmw::AddF32: the rule is a word of 4 bytes"));
    }
    let pointer = enter(context, access);
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
    let pointer = enter(context, Access::to::<W, 1>(a, Kind::CompareExchange, s));
    // SAFETY: as in `load`; the context is the running thread's.
    unsafe {
        let old = W::atomic_compare_exchange(pointer, expected, new);
        (*context).dirty |= old == expected;
        old
    }
}

/// Every access comes through here: it is checked, may cost the thread its turn, and is where it says.
#[inline(always)]
#[track_caller]
fn enter(context: *mut Context, access: Access) -> *mut u8 {
    let pointer = resolve(context, access);
    if access.strength.order != Order::Weak {
        // An access with an order is where a thread of a seeded machine may lose its turn.
        // SAFETY: `context` is the running thread's, and callers hold no reference to it or the block.
        unsafe { preemption_point(context) };
    }
    pointer
}

/// Turns an address into a host pointer after checking it.
#[inline(always)]
#[track_caller]
fn resolve(context: *mut Context, access: Access) -> *mut u8 {
    let (a, bytes) = (access.address, u64::from(access.bytes));
    // SAFETY: `context` is the running thread's, and of the reins everyone may make references.
    let reins = unsafe { &(*context).reins };
    if a.at & (bytes - 1) != 0 {
        refuse(context, access);
    }
    match a.space {
        Space::Global => {
            let last = if access.kind == Kind::Load { &reins.read } else { &reins.written };
            if !last.holds(a.at, bytes) {
                // SAFETY: as above.
                match unsafe { (*context).owners.of(a.at) } {
                    Some(owner) if !reins.alarmed() && owner.holds(a.at, bytes) => last.become_like(owner),
                    _ => stumble(context, access),
                }
            }
            crate::memory::door::pointer(a.at)
        }
        Space::Shared => {
            if !reins.reaches_shared(a.at, bytes) {
                stumble(context, access);
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
fn stumble(context: *mut Context, access: Access) {
    let (a, bytes) = (access.address, u64::from(access.bytes));
    // SAFETY: as in `resolve`; the arena is the machine's.
    let (reins, arena, shared_bytes) = unsafe { (&(*context).reins, &*(*context).arena, (*context).shared_bytes) };
    heed(context);
    let inside = match a.space {
        Space::Global => arena.extent_of(a.at, bytes).is_some(),
        Space::Shared => a.at < shared_bytes && bytes <= shared_bytes - a.at,
    };
    if !inside {
        refuse(context, access);
    }
    // What the alarm took away.
    reins.share(shared_bytes);
}

#[cold]
#[inline(never)]
#[track_caller]
fn refuse(context: *mut Context, access: Access) -> ! {
    let (a, bytes) = (access.address, u64::from(access.bytes));
    // SAFETY: as in `stumble`.
    let (arena, shared_bytes) = unsafe { (&*(*context).arena, (*context).shared_bytes) };
    let (what, limits) = match a.space {
        Space::Global => (format!("device address {:#x}", a.at), arena.whereabouts(a.at, bytes)),
        Space::Shared => (format!("shared offset {:#x}", a.at), format!("the block has {shared_bytes} bytes")),
    };
    if !a.at.is_multiple_of(bytes) {
        fail(context, format!("{access} at {what} is misaligned"));
    }
    fail(context, format!("{access} at {what} is out of bounds: {limits}"));
}
