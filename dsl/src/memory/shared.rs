//! Addresses in the block's shared memory.
use core::marker::PhantomData;

use super::{Scalar, U32x4};
use crate::arch;

/// An address in the block's dynamic shared memory.
pub struct Shared<T> {
    address: u32,
    of: PhantomData<*const T>,
}
impl<T> Clone for Shared<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}

impl<T> core::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Shared({:#x})", self.address)
    }
}

impl<T> Shared<T> {
    /// The address `bytes` into the dynamic shared memory that the launch gave the block; it begins at a multiple of 128.
    #[inline(always)]
    pub fn dynamic(bytes: u32) -> Self {
        Self { address: arch::shared_base().wrapping_add(bytes), of: PhantomData }
    }
    /// The address in the shared window.
    #[inline(always)]
    pub fn address(self) -> u32 {
        self.address
    }
    /// The address of element `index`, counted in elements of `T`.
    #[inline(always)]
    pub fn at(self, index: u32) -> Self {
        Self { address: self.address.wrapping_add(index.wrapping_mul(size_of::<T>() as u32)), of: PhantomData }
    }
    /// The same memory, seen as elements of `U`.
    #[inline(always)]
    pub fn cast<U>(self) -> Shared<U> {
        Shared { address: self.address, of: PhantomData }
    }
}

impl<T: Scalar> Shared<T> {
    /// Loads element `index`, weakly.
    #[inline(always)]
    #[track_caller]
    pub fn load_weak(self, index: u32) -> T {
        T::from_bits(arch::Bits::load_shared(self.at(index).address))
    }
    /// Stores element `index`, weakly.
    #[inline(always)]
    #[track_caller]
    pub fn store_weak(self, index: u32, value: T) {
        arch::Bits::store_shared(self.at(index).address, value.to_bits());
    }
}

impl Shared<u32> {
    /// Adds to element `index`, relaxed at block scope; returns the value before.
    #[inline(always)]
    #[track_caller]
    pub fn fetch_add_relaxed(self, index: u32, value: u32) -> u32 {
        arch::shared_add_u32(self.at(index).address, value)
    }
    /// Sets the bits of `value` in element `index`, relaxed at block scope; returns the value before.
    #[inline(always)]
    #[track_caller]
    pub fn fetch_or_relaxed(self, index: u32, value: u32) -> u32 {
        arch::shared_or_u32(self.at(index).address, value)
    }
    /// Lowers element `index` to `value` if that is smaller, relaxed at block scope; returns the value before.
    #[inline(always)]
    #[track_caller]
    pub fn fetch_min_relaxed(self, index: u32, value: u32) -> u32 {
        arch::shared_min_u32(self.at(index).address, value)
    }
    /// Raises element `index` to `value` if that is larger, relaxed at block scope; returns the value before.
    #[inline(always)]
    #[track_caller]
    pub fn fetch_max_relaxed(self, index: u32, value: u32) -> u32 {
        arch::shared_max_u32(self.at(index).address, value)
    }
}

impl Shared<U32x4> {
    /// Loads 16 bytes at vector `index`, weakly.
    #[inline(always)]
    #[track_caller]
    pub fn load_weak(self, index: u32) -> U32x4 {
        arch::load_shared_x4(self.at(index).address)
    }
    /// Stores 16 bytes at vector `index`, weakly.
    #[inline(always)]
    #[track_caller]
    pub fn store_weak(self, index: u32, value: U32x4) {
        arch::store_shared_x4(self.at(index).address, value);
    }
}
