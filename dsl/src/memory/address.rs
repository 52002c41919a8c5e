//! Addresses in device memory: of this GPU, and of windows.
use core::marker::PhantomData;

use super::{AtomicScalar, Index, Scalar, Scope, U32x4};
use crate::arch;
use crate::kernel::KernelArg;

macro_rules! address_type {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        #[repr(transparent)]
        pub struct $name<T> {
            address: u64,
            of: PhantomData<*const T>,
        }
        impl<T> Clone for $name<T> {
            #[inline(always)]
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<T> Copy for $name<T> {}
        // SAFETY: a transparent u64 (see `KernelArg` for u64); the pointee type is a phantom.
        unsafe impl<T: 'static> KernelArg for $name<T> {}
        // SAFETY: an address is a number; what may be done through it is the launch contract's business, on any thread.
        unsafe impl<T> Send for $name<T> {}
        // SAFETY: as for Send; the type has no interior state.
        unsafe impl<T> Sync for $name<T> {}

        impl<T> core::fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.address)
            }
        }

        impl<T> $name<T> {
            /// Makes a typed address from a device address.
            ///
            /// # Safety
            ///
            /// Every access made through the result is in bounds, aligned, and not in conflict with another one that no
            /// flag or barrier orders against it. Strong accesses to the same bytes are in no conflict; where they differ in
            /// size, they are.
            #[inline(always)]
            pub const unsafe fn from_raw(address: u64) -> Self {
                Self { address, of: PhantomData }
            }
            /// The device address.
            #[inline(always)]
            pub const fn address(self) -> u64 {
                self.address
            }
            /// The address of element `index`, counted in elements of `T`.
            #[inline(always)]
            pub fn at(self, index: impl Index) -> Self {
                Self {
                    address: self.address.wrapping_add(index.wide().wrapping_mul(size_of::<T>() as u64)),
                    of: PhantomData,
                }
            }
            /// The rows of a matrix that begins here, `stride` elements from one to the next.
            #[inline(always)]
            pub fn rows(self, stride: u32) -> Rows<Self> {
                Rows { first: self, stride }
            }
            /// The same memory, seen as elements of `U`.
            #[inline(always)]
            pub const fn cast<U>(self) -> $name<U> {
                $name { address: self.address, of: PhantomData }
            }
        }

        impl<T: Scalar> $name<T> {
            /// Loads element `index`, weakly.
            #[inline(always)]
            #[track_caller]
            pub fn load_weak(self, index: impl Index) -> T {
                T::from_bits(arch::Bits::load_weak(self.at(index).address))
            }
            /// Stores element `index`, weakly.
            #[inline(always)]
            #[track_caller]
            pub fn store_weak(self, index: impl Index, value: T) {
                arch::Bits::store_weak(self.at(index).address, value.to_bits());
            }
        }

        impl<T: AtomicScalar> $name<T> {
            /// Loads element `index`, relaxed at scope `S`.
            #[inline(always)]
            #[track_caller]
            pub fn load_relaxed<S: Scope>(self, index: impl Index) -> T {
                T::from_bits(arch::AtomicBits::load_relaxed::<S>(self.at(index).address))
            }
            /// Loads element `index`, acquiring at scope `S`.
            #[inline(always)]
            #[track_caller]
            pub fn load_acquire<S: Scope>(self, index: impl Index) -> T {
                T::from_bits(arch::AtomicBits::load_acquire::<S>(self.at(index).address))
            }
            /// Stores element `index`, relaxed at scope `S`.
            #[inline(always)]
            #[track_caller]
            pub fn store_relaxed<S: Scope>(self, index: impl Index, value: T) {
                arch::AtomicBits::store_relaxed::<S>(self.at(index).address, value.to_bits());
            }
            /// Stores element `index`, releasing at scope `S` everything this thread did or observed before.
            #[inline(always)]
            #[track_caller]
            pub fn store_release<S: Scope>(self, index: impl Index, value: T) {
                arch::AtomicBits::store_release::<S>(self.at(index).address, value.to_bits());
            }
            /// Adds to element `index`, acquiring and releasing at scope `S`; returns the value before.
            #[inline(always)]
            #[track_caller]
            pub fn fetch_add_acq_rel<S: Scope>(self, index: impl Index, value: T) -> T {
                T::from_bits(arch::AtomicBits::fetch_add_acq_rel::<S>(self.at(index).address, value.to_bits()))
            }
            /// Adds to element `index`, wrapping, releasing at scope `S` what this thread did before, and asks for no answer.
            #[inline(always)]
            #[track_caller]
            pub fn add_release<S: Scope>(self, index: impl Index, value: T) {
                arch::AtomicBits::add_release::<S>(self.at(index).address, value.to_bits());
            }
            /// Adds to element `index`, wrapping, relaxed at scope `S`, and asks for no answer.
            #[inline(always)]
            #[track_caller]
            pub fn add_relaxed<S: Scope>(self, index: impl Index, value: T) {
                arch::AtomicBits::add_relaxed::<S>(self.at(index).address, value.to_bits());
            }
            /// Lowers element `index` to `value` if that is smaller, relaxed at scope `S`; returns the value before.
            #[inline(always)]
            #[track_caller]
            pub fn fetch_min_relaxed<S: Scope>(self, index: impl Index, value: T) -> T {
                let address = self.at(index).address;
                T::from_bits(if T::SIGNED {
                    arch::AtomicBits::fetch_min_signed_relaxed::<S>(address, value.to_bits())
                } else {
                    arch::AtomicBits::fetch_min_relaxed::<S>(address, value.to_bits())
                })
            }
            /// Raises element `index` to `value` if that is larger, relaxed at scope `S`; returns the value before.
            #[inline(always)]
            #[track_caller]
            pub fn fetch_max_relaxed<S: Scope>(self, index: impl Index, value: T) -> T {
                let address = self.at(index).address;
                T::from_bits(if T::SIGNED {
                    arch::AtomicBits::fetch_max_signed_relaxed::<S>(address, value.to_bits())
                } else {
                    arch::AtomicBits::fetch_max_relaxed::<S>(address, value.to_bits())
                })
            }
            /// Replaces element `index` by `new` if it is `expected`, acquiring and releasing at scope `S`; returns the value before.
            #[inline(always)]
            #[track_caller]
            pub fn compare_exchange_acq_rel<S: Scope>(self, index: impl Index, expected: T, new: T) -> T {
                T::from_bits(arch::AtomicBits::compare_exchange_acq_rel::<S>(
                    self.at(index).address,
                    expected.to_bits(),
                    new.to_bits(),
                ))
            }
        }

        impl $name<f32> {
            /// Adds to element `index`, relaxed at scope `S`; returns the value before.
            ///
            /// The additions of several threads come in any order, and a sum of floats depends on its order: the result is not the
            /// same from run to run. What must be is added up by [`crate::warp::sum_f32`], [`crate::block::sum_f32`], or one thread.
            /// Subnormal numbers count as 0 and become 0, as the GPU does it (PTX ISA, `atom`).
            #[inline(always)]
            #[track_caller]
            pub fn fetch_add_relaxed<S: Scope>(self, index: impl Index, value: f32) -> f32 {
                arch::fetch_add_f32_relaxed::<S>(self.at(index).address, value)
            }
        }

        impl $name<U32x4> {
            /// Loads 16 bytes at vector `index`, weakly.
            #[inline(always)]
            #[track_caller]
            pub fn load_weak(self, index: impl Index) -> U32x4 {
                arch::load_weak_x4(self.at(index).address)
            }
            /// [`Self::load_weak`] of data that will not be read again here: it leaves no copy in the L1 cache.
            #[inline(always)]
            #[track_caller]
            pub fn load_weak_streaming(self, index: impl Index) -> U32x4 {
                arch::load_weak_streaming_x4(self.at(index).address)
            }
            /// Stores 16 bytes at vector `index`, weakly.
            #[inline(always)]
            #[track_caller]
            pub fn store_weak(self, index: impl Index, value: U32x4) {
                arch::store_weak_x4(self.at(index).address, value);
            }
        }
    };
}

/// The rows of a matrix in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Rows<A> {
    first: A,
    stride: u32,
}

macro_rules! rows {
    ($($name:ident),*) => { $(
        impl<T> Rows<$name<T>> {
            /// Where row `row` begins.
            #[inline(always)]
            pub fn row(self, row: impl Index) -> $name<T> {
                self.first.at(row.wide().wrapping_mul(self.stride as u64))
            }
        }
    )* };
}
rows!(Global, Symmetric);

/// An address or none: what an argument holds that may be absent. Nothing is added to none, and nothing is accessed through it.
#[repr(transparent)]
#[derive(Debug)]
pub struct Optional<T> {
    address: Global<T>,
}
impl<T> Clone for Optional<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Optional<T> {}
// SAFETY: a transparent `Global`.
unsafe impl<T: 'static> KernelArg for Optional<T> {}

impl<T> Optional<T> {
    /// An address.
    #[inline(always)]
    pub const fn some(address: Global<T>) -> Self {
        Self { address }
    }
    /// No address.
    #[inline(always)]
    pub const fn none() -> Self {
        Self { address: Global { address: 0, of: PhantomData } }
    }
    /// The address, if there is one.
    #[inline(always)]
    pub fn get(self) -> Option<Global<T>> {
        (self.address.address != 0).then_some(self.address)
    }
}

address_type!(Global, "An address in this GPU's global memory.");
address_type!(Symmetric, "An address in a symmetric window: memory that peers write or read.");

impl<T> Symmetric<T> {
    /// The same address as plain global memory, for a rank's own reads after its waits.
    #[inline(always)]
    pub const fn as_global(self) -> Global<T> {
        Global { address: self.address, of: PhantomData }
    }
}

impl Symmetric<u64> {
    /// Stores a word that says that what was before this launch is over: what this rank read and wrote in kernels and copies before it on its stream. It publishes nothing
    /// that this kernel does.
    ///
    /// On a GPU it is relaxed. A kernel begins, or goes on behind `griddepcontrol.wait`, when all memory operations of what came before are performed; so what peers load
    /// behind the word is there, and what they store changes nothing that was to be read. It is how GPUs work, and what the barriers rest on with which all-reduces of PyTorch and vLLM
    /// begin; the PTX memory model promises it of a release alone, which takes 1.7 us. On the simulator it is one.
    #[inline(always)]
    #[track_caller]
    pub fn store_behind_launch(self, word: u64) {
        arch::store_behind_launch(self.address, word);
    }
}

impl Global<u8> {
    /// Asks for `bytes`, a multiple of 16 as the address is, to be brought into the L2 (`cp.async.bulk.prefetch.L2`). A hint: the
    /// loads that follow may wait less.
    #[inline(always)]
    #[track_caller]
    pub fn prefetch(self, bytes: u32) {
        arch::bulk_prefetch(self.address, bytes);
    }
}
