//! The words that one access moves: 1, 2, 4 or 8 bytes, each one host atomic.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::device::{Order, Rmw};

/// A word of memory that an access moves at once: `u8`, `u16`, `u32` or `u64`.
pub trait Word: sealed::Atomic + Copy + PartialEq + std::fmt::Debug + 'static {}

pub(super) use sealed::Atomic;

mod sealed {
    use super::{Order, Rmw};

    /// How a word is moved. Nobody outside of this room can name it.
    pub trait Atomic: Sized {
        /// Loads.
        ///
        /// # Safety
        ///
        /// `from` is aligned and inside live memory whose every access is atomic.
        unsafe fn atomic_load(from: *mut u8, order: Order) -> Self;
        /// Stores.
        ///
        /// # Safety
        ///
        /// As for `atomic_load`.
        unsafe fn atomic_store(self, to: *mut u8, order: Order);
        /// Reads, modifies and writes; returns the old value.
        ///
        /// # Safety
        ///
        /// As for `atomic_load`.
        unsafe fn atomic_rmw(self, at: *mut u8, op: Rmw) -> Self;
        /// Stores `new` if the word is `expected`; returns the old value.
        ///
        /// # Safety
        ///
        /// As for `atomic_load`.
        unsafe fn atomic_compare_exchange(at: *mut u8, expected: Self, new: Self) -> Self;
    }
}

macro_rules! word {
    ($word:ty as $signed:ty, $atomic:ty) => {
        impl Word for $word {}
        impl Atomic for $word {
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
                // The host has no instruction for these.
                let update = |atomic: &$atomic, new: &dyn Fn($word) -> $word| match atomic.fetch_update(
                    order,
                    Ordering::Acquire,
                    |old| Some(new(old)),
                ) {
                    Ok(old) | Err(old) => old,
                };
                match op {
                    Rmw::Add => atomic.fetch_add(self, order),
                    Rmw::AddF32 => update(atomic, &|old| add_f32(old as u32, self as u32) as $word),
                    Rmw::Min => atomic.fetch_min(self, order),
                    Rmw::Max => atomic.fetch_max(self, order),
                    Rmw::MinSigned => update(atomic, &|old| (old as $signed).min(self as $signed) as $word),
                    Rmw::MaxSigned => update(atomic, &|old| (old as $signed).max(self as $signed) as $word),
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

word!(u8 as i8, AtomicU8);
word!(u16 as i16, AtomicU16);
word!(u32 as i32, AtomicU32);
word!(u64 as i64, AtomicU64);

/// Adds as the GPU's atomic on global memory does, which has no subnormal numbers (PTX ISA, `atom`).
fn add_f32(a: u32, b: u32) -> u32 {
    let flush = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
    flush(flush(f32::from_bits(a)) + flush(f32::from_bits(b))).to_bits()
}
