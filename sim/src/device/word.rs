//! The words that one access moves: 1, 2, 4 or 8 bytes, each one host atomic.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::memory::{Order, Rmw};

mod sealed {
    pub trait Sealed {}
}

/// A word of memory that an access moves at once: `u8`, `u16`, `u32` or `u64`.
pub trait Word: sealed::Sealed + Copy + PartialEq + std::fmt::Debug + 'static {
    /// Loads.
    ///
    /// # Safety
    ///
    /// `from` is aligned and inside live memory whose every access is atomic.
    #[doc(hidden)]
    unsafe fn atomic_load(from: *mut u8, order: Order) -> Self;
    /// Stores.
    ///
    /// # Safety
    ///
    /// As for `atomic_load`.
    #[doc(hidden)]
    unsafe fn atomic_store(self, to: *mut u8, order: Order);
    /// Reads, modifies and writes; returns the old value.
    ///
    /// # Safety
    ///
    /// As for `atomic_load`.
    #[doc(hidden)]
    unsafe fn atomic_rmw(self, at: *mut u8, op: Rmw) -> Self;
    /// Stores `new` if the word is `expected`; returns the old value.
    ///
    /// # Safety
    ///
    /// As for `atomic_load`.
    #[doc(hidden)]
    unsafe fn atomic_compare_exchange(at: *mut u8, expected: Self, new: Self) -> Self;
}

macro_rules! word {
    ($word:ty, $atomic:ty) => {
        impl sealed::Sealed for $word {}
        impl Word for $word {
            #[inline(always)]
            unsafe fn atomic_load(from: *mut u8, order: Order) -> Self {
                // SAFETY: the caller vouches for alignment, life and atomicity, which is what `from_ptr` asks for.
                let atomic = unsafe { <$atomic>::from_ptr(from.cast()) };
                atomic.load(match order {
                    Order::Acquire | Order::AcquireRelease => Ordering::Acquire,
                    Order::Weak | Order::Relaxed | Order::Release => Ordering::Relaxed,
                })
            }
            #[inline(always)]
            unsafe fn atomic_store(self, to: *mut u8, order: Order) {
                // SAFETY: as in `atomic_load`.
                let atomic = unsafe { <$atomic>::from_ptr(to.cast()) };
                atomic.store(
                    self,
                    match order {
                        Order::Release | Order::AcquireRelease => Ordering::Release,
                        Order::Weak | Order::Relaxed | Order::Acquire => Ordering::Relaxed,
                    },
                );
            }
            #[inline(always)]
            unsafe fn atomic_rmw(self, at: *mut u8, op: Rmw) -> Self {
                // SAFETY: as in `atomic_load`.
                let atomic = unsafe { <$atomic>::from_ptr(at.cast()) };
                let order = Ordering::AcqRel;
                match op {
                    Rmw::Add => atomic.fetch_add(self, order),
                    Rmw::Min => atomic.fetch_min(self, order),
                    Rmw::Max => atomic.fetch_max(self, order),
                    Rmw::And => atomic.fetch_and(self, order),
                    Rmw::Or => atomic.fetch_or(self, order),
                    Rmw::Xor => atomic.fetch_xor(self, order),
                    Rmw::Exchange => atomic.swap(self, order),
                }
            }
            #[inline(always)]
            unsafe fn atomic_compare_exchange(at: *mut u8, expected: Self, new: Self) -> Self {
                // SAFETY: as in `atomic_load`.
                let atomic = unsafe { <$atomic>::from_ptr(at.cast()) };
                match atomic.compare_exchange(expected, new, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(old) | Err(old) => old,
                }
            }
        }
    };
}

word!(u8, AtomicU8);
word!(u16, AtomicU16);
word!(u32, AtomicU32);
word!(u64, AtomicU64);
