//! An array in device memory that somebody else owns, described so that another library's tensor can be made over it.
use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeBounds;

use epoxide_dsl::memory::Global;
use epoxide_dsl::prelude::{Bf16, E4m3};

use crate::error::{Error, Result};
use crate::slice::within;

/// What an array's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// bfloat16.
    Bf16,
    /// FP8 with 4 bits of exponent and 3 of mantissa, without infinities.
    E4m3,
    /// IEEE 754 single precision.
    F32,
    /// Bytes that nobody here looks into.
    U8,
    /// Signed 32-bit.
    I32,
    /// Unsigned 32-bit.
    U32,
    /// Unsigned 64-bit.
    U64,
}

impl DType {
    /// Bytes of an element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::E4m3 | Self::U8 => 1,
            Self::Bf16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::U64 => 8,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::E4m3 => "e4m3",
            Self::F32 => "f32",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::U64 => "u64",
        })
    }
}

/// A type that kernels of the DSL have for a [`DType`].
pub trait ViewElement: sealed::Sealed {
    /// Which one.
    const DTYPE: DType;
}
mod sealed {
    pub trait Sealed {}
}
macro_rules! elements {
    ($($t:ty => $dtype:ident),*) => { $(
        impl sealed::Sealed for $t {}
        impl ViewElement for $t {
            const DTYPE: DType = DType::$dtype;
        }
    )* };
}
elements!(Bf16 => Bf16, E4m3 => E4m3, u8 => U8, f32 => F32, i32 => I32, u32 => U32, u64 => U64);

/// An array of one to three dimensions in device memory: where it is, of what, in what shape. It owns nothing.
///
/// It is enough to make a tensor of another library over it, without a copy: address, [`DType`], shape, and strides in elements. Such a
/// tensor must not free the memory (cudarc's `CudaSlice` made by `upgrade_device_ptr` is to be leaked), and its work is on the rank's stream
/// ([`Comm::cuda_stream`](crate::Comm::cuda_stream)) or ordered with it by events. For a kernel of the DSL it is a [`Global`].
///
/// The lifetime is that of a borrow of what the memory belongs to, so that no operation can be called meanwhile that takes it away. An
/// address or a [`Global`] made from a view is not bound by it.
///
/// ```
/// use epoxide::{Config, DType, DispatchInput, ElasticBuffer, LocalGroup, Mode, WireFormat, bf16};
///
/// LocalGroup::simulated(1, Mode::Fast { workers: 0 })?.run(|comm| {
///     let mut buffer = ElasticBuffer::new(&comm, Config::new(2, 1, 384, 5).with_format(WireFormat::Fp8))?;
///     let (x, idx) = (comm.tensor(&[bf16::ONE; 2 * 384])?, comm.tensor(&[0i64, 1])?);
///     let handle = buffer.dispatch(&DispatchInput::new(2, &x, &idx, &comm.tensor(&[1.0f32; 2])?))?;
///     let rows = u64::from(buffer.recv_counts(&handle)?.rows);
///     let arrays = buffer.recv_arrays(&handle)?;
///     // Codes, and three scales of each row, whose rows are a multiple of 16 bytes apart; of the two that came.
///     let (codes, scales) = (arrays.x.rows(..rows)?, arrays.scales.expect("FP8 has scales").rows(..rows)?);
///     assert_eq!((codes.dtype(), codes.shape(), codes.strides()), (DType::E4m3, &[2, 384][..], &[384, 1][..]));
///     assert_eq!((scales.dtype(), scales.shape(), scales.strides()), (DType::F32, &[2, 3][..], &[4, 1][..]));
///     assert!(codes.is_contiguous() && !scales.is_contiguous() && codes.address() % 16 == 0);
///     buffer.close()
/// })?;
/// # Ok::<(), epoxide::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View<'b> {
    address: u64,
    dtype: DType,
    /// With as many dimensions as the array has; the others are 1.
    shape: [u64; 3],
    strides: [u64; 3],
    dimensions: usize,
    of: PhantomData<&'b ()>,
}

impl View<'_> {
    /// `len` elements, one after another.
    pub(crate) fn vector(address: u64, dtype: DType, len: u64) -> Self {
        Self { address, dtype, shape: [len, 1, 1], strides: [1; 3], dimensions: 1, of: PhantomData }
    }

    /// `rows` times `columns` elements, `stride` from one row to the next.
    pub(crate) fn matrix(address: u64, dtype: DType, [rows, columns]: [u64; 2], stride: u64) -> Self {
        Self { address, dtype, shape: [rows, columns, 1], strides: [stride, 1, 1], dimensions: 2, of: PhantomData }
    }

    /// `rows` times `columns` elements, the rows of a column one after another, `stride` from one column to the next.
    pub(crate) fn columns(address: u64, dtype: DType, [rows, columns]: [u64; 2], stride: u64) -> Self {
        Self { strides: [1, stride, 1], ..Self::matrix(address, dtype, [rows, columns], 1) }
    }

    /// So many matrices like this one, `stride` from one to the next: with a dimension more, in front.
    pub(crate) fn stacked(self, matrices: u64, stride: u64) -> Self {
        let ([rows, columns, _], [next_row, next_column, _]) = (self.shape, self.strides);
        let (shape, strides) = ([matrices, rows, columns], [stride, next_row, next_column]);
        Self { shape, strides, dimensions: self.dimensions + 1, ..self }
    }

    /// The same elements by `slabs` equal numbers of rows, or of elements where there is one dimension: with a dimension more, in front.
    pub(crate) fn in_slabs(self, slabs: u64) -> Self {
        let [rows, columns, _] = self.shape;
        let (of_slab, [stride, next, _]) = (rows.checked_div(slabs).unwrap_or(0), self.strides);
        let (shape, strides) = ([slabs, of_slab, columns], [of_slab * stride, stride, next]);
        Self { shape, strides, dimensions: self.dimensions + 1, ..self }
    }

    /// The device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// What the elements are.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Elements in each dimension, of which there are one to three.
    pub fn shape(&self) -> &[u64] {
        &self.shape[..self.dimensions]
    }

    /// Elements from one to the next in each dimension.
    pub fn strides(&self) -> &[u64] {
        &self.strides[..self.dimensions]
    }

    /// Elements in all.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Whether the elements lie one after another, without a gap.
    pub fn is_contiguous(&self) -> bool {
        let inner = |dimension: usize| self.shape[dimension + 1..].iter().product::<u64>();
        (0..self.dimensions).all(|d| self.shape[d] <= 1 || self.strides[d] == inner(d))
    }

    /// The rows of a range (elements, where there is one dimension; slabs, where there are three): those that were received, say, or those of an expert.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when the range ends before it begins, or beyond the view.
    pub fn rows(&self, range: impl RangeBounds<u64>) -> Result<Self> {
        let (start, rows) = within(self.shape[0], range)?;
        let address = self.address + start * self.strides[0] * self.dtype.bytes();
        let [_, columns, depth] = self.shape;
        Ok(Self { address, shape: [rows, columns, depth], ..*self })
    }

    /// The address for a kernel of the DSL. What the kernel does there is for whoever launches it to answer for.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when the elements are of another type.
    pub fn global<T: ViewElement>(&self) -> Result<Global<T>> {
        if self.dtype != T::DTYPE {
            return Err(Error::argument("dtype", T::DTYPE, format!("the array's elements are {}", self.dtype)));
        }
        // SAFETY: an address of such elements. Nothing on the host accesses through it, and a kernel does under its launch's contract, which is
        // unsafe to enter.
        Ok(unsafe { Global::from_raw(self.address) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_matrix_keep_its_columns_and_move_by_its_stride() {
        let matrix = View::matrix(0x1000, DType::F32, [10, 3], 4);
        assert_eq!((matrix.shape(), matrix.strides(), matrix.elements()), (&[10, 3][..], &[4, 1][..], 30));
        assert!(!matrix.is_contiguous() && View::matrix(0, DType::F32, [10, 4], 4).is_contiguous());
        let rows = matrix.rows(2..7).unwrap();
        assert_eq!((rows.address(), rows.shape(), rows.strides()), (0x1000 + 2 * 4 * 4, &[5, 3][..], &[4, 1][..]));
        let refused = matrix.rows(..11).unwrap_err().to_string();
        assert_eq!(refused, "range = 0..11: begins before it ends, within the 10 elements");
        // Ten rows in five slabs of two.
        let slabs = matrix.in_slabs(5);
        assert_eq!((slabs.shape(), slabs.strides(), slabs.elements()), (&[5, 2, 3][..], &[8, 4, 1][..], 30));
        assert!(!slabs.is_contiguous() && View::matrix(0, DType::F32, [10, 4], 4).in_slabs(5).is_contiguous());
        let third = slabs.rows(2..3).unwrap();
        assert_eq!((third.address(), third.shape()), (0x1000 + 2 * 8 * 4, &[1, 2, 3][..]));
        // By column.
        let columns = View::columns(0x1000, DType::F32, [10, 3], 12);
        assert_eq!((columns.shape(), columns.strides(), columns.is_contiguous()), (&[10, 3][..], &[1, 12][..], false));
        let rows = columns.rows(2..7).unwrap();
        assert_eq!((rows.address(), rows.shape(), rows.strides()), (0x1000 + 2 * 4, &[5, 3][..], &[1, 12][..]));
        let stacked = columns.stacked(5, 36);
        assert_eq!((stacked.shape(), stacked.strides()), (&[5, 10, 3][..], &[36, 1, 12][..]));
        assert_eq!(stacked.rows(2..3).unwrap().address(), 0x1000 + 2 * 36 * 4);
        let vector = View::vector(0, DType::U32, 10).in_slabs(5);
        assert_eq!((vector.shape(), vector.strides(), vector.is_contiguous()), (&[5, 2][..], &[2, 1][..], true));
        let vector = View::vector(0x1000, DType::U64, 10).rows(3..).unwrap();
        assert_eq!((vector.address(), vector.shape(), vector.strides()), (0x1018, &[7][..], &[1][..]));
    }

    #[test]
    fn an_address_is_of_the_type_that_is_there() {
        let view = View::vector(0x40, DType::Bf16, 8);
        assert_eq!(view.global::<Bf16>().unwrap().address(), 0x40);
        assert_eq!(view.global::<f32>().unwrap_err().to_string(), "dtype = f32: the array's elements are bf16");
        fn sizes<T: ViewElement>() -> (u64, u64) {
            (T::DTYPE.bytes(), size_of::<T>() as u64)
        }
        for (said, is) in
            [sizes::<Bf16>(), sizes::<E4m3>(), sizes::<f32>(), sizes::<i32>(), sizes::<u32>(), sizes::<u64>()]
        {
            assert_eq!(said, is);
        }
    }
}
