//! Accesses of simulated threads: words, vectors of words and atomics.
//!
//! What an access costs is one compare with the allocation that the worker's threads touched last; whoever must stop them takes
//! that away ([`Reins`](crate::engine::thread::reins::Reins)), so that the alarm is found here too.

use super::pointer;
use crate::device::{Address, Order, Rmw, Space, Strength};
use crate::engine::thread::context::{Context, fail, heed, preemption_point};
use crate::memory::access::{Access, Kind};
use crate::memory::word::Word;

/// Loads `N` words, each by itself.
#[inline(always)]
#[track_caller]
pub(crate) fn load<W: Word, const N: usize>(context: *mut Context, a: Address, s: Strength) -> [W; N] {
    let pointer = enter(context, Access::to::<W, N>(a, Kind::Load, s));
    // SAFETY: `enter` checked bounds and alignment of all words; all accesses to device and shared memory are atomic.
    std::array::from_fn(|i| unsafe { W::atomic_load(pointer.add(i * size_of::<W>()), s.order) })
}

/// Stores `N` words, each by itself.
#[inline(always)]
#[track_caller]
pub(crate) fn store<W: Word, const N: usize>(context: *mut Context, a: Address, v: [W; N], s: Strength) {
    let pointer = enter(context, Access::to::<W, N>(a, Kind::Store, s));
    for (i, word) in v.into_iter().enumerate() {
        // SAFETY: as in `load`.
        unsafe { word.atomic_store(pointer.add(i * size_of::<W>()), s.order) };
    }
    // SAFETY: the context is the running thread's.
    unsafe { (*context).dirty = true };
}

/// Reads, modifies and writes a word at once; returns the old value.
#[inline(always)]
#[track_caller]
pub(crate) fn rmw<W: Word>(context: *mut Context, a: Address, op: Rmw, v: W, s: Strength) -> W {
    modify(context, Access::to::<W, 1>(a, Kind::Rmw(op), s), op, v)
}

/// Modifies a word at once, and tells nobody what was there.
#[inline(always)]
#[track_caller]
pub(crate) fn red<W: Word>(context: *mut Context, a: Address, op: Rmw, v: W, s: Strength) {
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
#[inline(always)]
#[track_caller]
pub(crate) fn compare_exchange<W: Word>(context: *mut Context, a: Address, expected: W, new: W, s: Strength) -> W {
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
            pointer(a.at)
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
