//! Loads, stores and atomics.
//!
//! Every access is checked: it lies in one live allocation, or in the block's shared memory, and is naturally aligned. It is a
//! host atomic at least as strong as the host's relaxed order, a vector one for each of its elements. So two of the same size
//! never race in Rust's sense; that two of different sizes meet only in some order is the launch's contract
//! ([`Actor::launch`](crate::Actor::launch)).

use super::operation::{Address, Order, Rmw, Strength};
use super::time::is_left_out;
use crate::engine::thread::context::require;
use crate::memory::door::thread as door;
use crate::memory::word::Word;

/// Loads a word.
///
/// # Panics
///
/// Outside a simulated thread; out of bounds or misaligned (the kernel fails, at the caller's line).
#[inline]
#[track_caller]
pub fn load<W: Word>(a: Address, s: Strength) -> W {
    let [word] = door::load(require("load"), a, s);
    word
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
    door::store(context, a, [v], s);
}

/// Loads a vector of `N` words, 16 bytes at most, at a boundary of its size. Each word is an access of its own, in any order.
///
/// # Panics
///
/// As [`load`].
#[inline]
#[track_caller]
pub fn load_vector<W: Word, const N: usize>(a: Address, s: Strength) -> [W; N] {
    door::load(require("load_vector"), a, s)
}

/// Stores a vector of `N` words, 16 bytes at most, at a boundary of its size. Each word is an access of its own, in any order.
///
/// # Panics
///
/// As [`load`].
#[inline]
#[track_caller]
pub fn store_vector<W: Word, const N: usize>(a: Address, v: [W; N], s: Strength) {
    door::store(require("store_vector"), a, v, s);
}

/// Reads, modifies and writes a word at once; returns the old value. PTX has it for `u32` and `u64`.
///
/// # Panics
///
/// As [`load`]; for [`Rmw::AddF32`] of a word that is not of 4 bytes (the kernel fails).
#[inline]
#[track_caller]
pub fn rmw<W: Word>(a: Address, op: Rmw, v: W, s: Strength) -> W {
    door::rmw(require("rmw"), a, op, v, s)
}

/// Modifies a word at once, without a result: a reduction (PTX: `red`).
///
/// # Panics
///
/// As [`rmw`]; for [`Rmw::Exchange`], which is a store (the kernel fails).
#[inline]
#[track_caller]
pub fn red<W: Word>(a: Address, op: Rmw, v: W, s: Strength) {
    door::red(require("red"), a, op, v, s);
}

/// Stores `new` if the word is `expected`; returns the old value either way.
///
/// # Panics
///
/// As [`load`].
#[inline]
#[track_caller]
pub fn compare_exchange<W: Word>(a: Address, expected: W, new: W, s: Strength) -> W {
    door::compare_exchange(require("compare_exchange"), a, expected, new, s)
}
