//! Where arrays lie in a block's dynamic shared memory: one description, which the kernel and its launcher both follow.
//!
//! ```
//! use epoxide_dsl::prelude::*;
//!
//! /// What a block keeps in shared memory.
//! pub struct Scratch {
//!     pub row: SharedArray<U32x4>,
//!     pub sums: SharedArray<f32>,
//!     /// All of it: what the launch asks for.
//!     pub bytes: u32,
//! }
//!
//! pub const fn scratch(vectors: u32) -> Scratch {
//!     let mut layout = SharedLayout::new();
//!     Scratch { row: layout.array(vectors), sums: layout.array(block::REDUCTION_WORDS), bytes: layout.bytes() }
//! }
//!
//! const SMALL: Scratch = scratch(10);
//! assert_eq!((SMALL.row.offset(), SMALL.sums.offset(), SMALL.bytes), (0, 160, 288));
//! ```
//!
//! In the kernel `scratch(n).row.address()` is a [`Shared`]; on the host `scratch(n).bytes` goes to the launch.
use core::marker::PhantomData;

use crate::memory::Shared;

/// Hands out the block's dynamic shared memory from its beginning, array by array.
#[derive(Clone, Copy, Debug, Default)]
pub struct SharedLayout {
    bytes: u32,
}

/// An array's place in the block's dynamic shared memory.
pub struct SharedArray<T> {
    offset: u32,
    of: PhantomData<*const T>,
}
impl<T> Clone for SharedArray<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for SharedArray<T> {}

impl<T> core::fmt::Debug for SharedArray<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SharedArray({:#x})", self.offset)
    }
}

/// The dynamic shared memory begins at a multiple of this, so nothing in it can be aligned to more.
const MOST_ALIGNED: u32 = 128;

impl SharedLayout {
    /// Begins with nothing.
    #[inline(always)]
    pub const fn new() -> Self {
        Self { bytes: 0 }
    }

    /// Places `n` elements after what there is, aligned as one access of an element wants it: to its size, if that is a power of two.
    ///
    /// A layout beyond 4 GiB is one of [`u32::MAX`] bytes, which no launch is given.
    #[inline(always)]
    pub const fn array<T>(&mut self, n: u32) -> SharedArray<T> {
        let size = size_of::<T>() as u32;
        let align = if size == 0 { 1 } else { 1 << size.trailing_zeros() };
        self.place(n, align)
    }

    /// [`Self::array`], aligned to a multiple of `ALIGN` bytes: 16 where bulk copies read or write.
    #[inline(always)]
    pub const fn array_aligned<T, const ALIGN: u32>(&mut self, n: u32) -> SharedArray<T> {
        const { assert!(ALIGN.is_power_of_two() && ALIGN <= MOST_ALIGNED, "an alignment is a power of two up to 128") };
        self.place(n, ALIGN)
    }

    #[inline(always)]
    const fn place<T>(&mut self, n: u32, align: u32) -> SharedArray<T> {
        let align = if align < MOST_ALIGNED { align } else { MOST_ALIGNED };
        // Saturating, because nothing in a kernel may panic. What saturates at the first step stays there: it is all ones, and
        // no array that is placed after it can come to lie lower.
        let offset = match self.bytes.checked_add(align - 1) {
            Some(up) => up & !(align - 1),
            None => u32::MAX,
        };
        self.bytes = offset.saturating_add(n.saturating_mul(size_of::<T>() as u32));
        SharedArray { offset, of: PhantomData }
    }

    /// Bytes of all that was placed: what the launch asks for.
    #[inline(always)]
    pub const fn bytes(&self) -> u32 {
        self.bytes
    }
}

impl<T> SharedArray<T> {
    /// Bytes from the beginning of the block's dynamic shared memory.
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        self.offset
    }

    /// The array's address, in the kernel.
    #[inline(always)]
    pub fn address(self) -> Shared<T> {
        Shared::dynamic(self.offset)
    }
}
