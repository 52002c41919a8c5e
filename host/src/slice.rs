//! Parts of tensors, borrowed: what operations take.
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use crate::comm::Comm;
use crate::error::{Error, Result};
use crate::tensor::{DeviceTensor, Element, Home, read, write};

/// Elements of a [`DeviceTensor`] that lie one after another, for an operation to read. A whole tensor is one: operations take
/// `&tensor` as well.
///
/// Where rows of a matrix begin, the address must be a multiple of 16 bytes, which every tensor's is; rows of a multiple of 16 bytes may so
/// be cut out anywhere. Indices and weights begin at any element.
///
/// ```
/// # use epoxide::{bf16, LocalGroup, Mode};
/// # LocalGroup::simulated(1, Mode::Fast { workers: 1 })?.run(|comm| {
/// let x = comm.tensor(&[bf16::ONE; 4 * 64])?; // 4 rows
/// let first_two = x.prefix(2 * 64)?;
/// let third = x.slice(2 * 64..3 * 64)?;
/// assert_eq!((first_two.len(), third.address()), (128, x.address() + 256));
/// # Ok(()) })?;
/// # Ok::<(), epoxide::Error>(())
/// ```
#[derive(Debug)]
pub struct DeviceSlice<'a, T: Element> {
    home: &'a Home,
    address: u64,
    len: u64,
    of: PhantomData<&'a DeviceTensor<T>>,
}

/// [`DeviceSlice`], for an operation to write.
#[derive(Debug)]
pub struct DeviceSliceMut<'a, T: Element> {
    home: &'a Home,
    address: u64,
    len: u64,
    of: PhantomData<&'a mut DeviceTensor<T>>,
}

impl<T: Element> Clone for DeviceSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Element> Copy for DeviceSlice<'_, T> {}

impl<'a, T: Element> From<&'a DeviceTensor<T>> for DeviceSlice<'a, T> {
    fn from(tensor: &'a DeviceTensor<T>) -> Self {
        Self { home: tensor.home(), address: tensor.address(), len: tensor.len(), of: PhantomData }
    }
}

impl<'a, T: Element> From<&'a mut DeviceTensor<T>> for DeviceSliceMut<'a, T> {
    fn from(tensor: &'a mut DeviceTensor<T>) -> Self {
        let (address, len) = (tensor.address(), tensor.len());
        Self { home: tensor.home(), address, len, of: PhantomData }
    }
}

impl<'a, T: Element> From<&'a mut DeviceSliceMut<'_, T>> for DeviceSliceMut<'a, T> {
    fn from(slice: &'a mut DeviceSliceMut<'_, T>) -> Self {
        Self { home: slice.home, address: slice.address, len: slice.len, of: PhantomData }
    }
}

impl<T: Element> DeviceTensor<T> {
    /// The elements of a range.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when the range ends before it begins, or beyond the tensor.
    pub fn slice(&self, range: impl RangeBounds<u64>) -> Result<DeviceSlice<'_, T>> {
        DeviceSlice::from(self).slice(range)
    }

    /// The first `len` elements.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when there are not as many.
    pub fn prefix(&self, len: u64) -> Result<DeviceSlice<'_, T>> {
        self.slice(..len)
    }

    /// [`Self::slice`], to be written.
    ///
    /// # Errors
    ///
    /// As [`Self::slice`].
    pub fn slice_mut(&mut self, range: impl RangeBounds<u64>) -> Result<DeviceSliceMut<'_, T>> {
        DeviceSliceMut::from(self).into_slice(range)
    }

    /// [`Self::prefix`], to be written.
    ///
    /// # Errors
    ///
    /// As [`Self::prefix`].
    pub fn prefix_mut(&mut self, len: u64) -> Result<DeviceSliceMut<'_, T>> {
        self.slice_mut(..len)
    }
}

impl<'a, T: Element> DeviceSlice<'a, T> {
    /// Elements.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The elements of a range of these.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when the range ends before it begins, or beyond the slice.
    pub fn slice(self, range: impl RangeBounds<u64>) -> Result<DeviceSlice<'a, T>> {
        let (start, len) = within(self.len, range)?;
        Ok(Self { address: self.address + start * size_of::<T>() as u64, len, ..self })
    }

    /// None of another type, of the same rank.
    pub(crate) fn no_elements<U: Element>(self) -> DeviceSlice<'a, U> {
        DeviceSlice { home: self.home, address: 0, len: 0, of: PhantomData }
    }

    /// Copies all elements to the host; waits for the stream.
    ///
    /// # Errors
    ///
    /// As [`DeviceTensor::to_vec`].
    pub fn to_vec(&self) -> Result<Vec<T>> {
        // SAFETY: elements of a tensor that is borrowed: it is there, and what writes them is on the rank's stream, or over.
        unsafe { read(&self.home.comm, self.address, self.len) }
    }
}

impl<'a, T: Element> DeviceSliceMut<'a, T> {
    /// Elements.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The same elements, to be read.
    pub fn as_slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { home: self.home, address: self.address, len: self.len, of: PhantomData }
    }

    /// The elements of a range of these.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when the range ends before it begins, or beyond the slice.
    pub fn slice_mut(&mut self, range: impl RangeBounds<u64>) -> Result<DeviceSliceMut<'_, T>> {
        DeviceSliceMut::from(self).into_slice(range)
    }

    /// [`Self::slice_mut`] that keeps the whole borrow.
    fn into_slice(self, range: impl RangeBounds<u64>) -> Result<Self> {
        let (start, len) = within(self.len, range)?;
        Ok(Self { address: self.address + start * size_of::<T>() as u64, len, ..self })
    }

    /// The first `at` elements and the others.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when there are not as many.
    pub fn split_at(self, at: u64) -> Result<(Self, Self)> {
        let (home, address, len, of) = (self.home, self.address, self.len, PhantomData);
        within(len, ..at)?;
        let second = address + at * size_of::<T>() as u64;
        Ok((Self { home, address, len: at, of }, Self { home, address: second, len: len - at, of }))
    }

    /// Copies `values` to the first elements, in stream order; returns when `values` may be reused.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when there are more values than elements.
    pub fn copy_from_host(&mut self, values: &[T]) -> Result<()> {
        // SAFETY: elements of a tensor, borrowed alone here; what uses them on the device is on the rank's stream, or over.
        unsafe { write(&self.home.comm, self.address, self.len, values) }
    }
}

/// The range as its start and length, if there are `len` elements.
pub(crate) fn within(len: u64, range: impl RangeBounds<u64>) -> Result<(u64, u64)> {
    // Saturated, a bound is beyond any tensor.
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    if start > end || end > len {
        let rule = format!("begins before it ends, within the {len} elements");
        return Err(Error::argument("range", format!("{start}..{end}"), rule));
    }
    Ok((start, end - start))
}

/// Checks that a tensor belongs to the rank that uses it: its memory is on that device, and reused in that rank's order. It is then used on
/// the stream of `comm`.
pub(crate) fn check_rank<T: Element>(argument: &'static str, slice: DeviceSlice<'_, T>, comm: &Comm) -> Result<()> {
    let home = slice.home;
    if home.comm.is(comm) {
        home.used_on(comm);
        return Ok(());
    }
    let value = format!("a tensor of rank {} on {}", home.comm.rank(), home.comm.device());
    Err(Error::argument(argument, value, "made by the Comm of this buffer's rank, or a clone of it"))
}

/// Checks that rows begin where the kernels can read or write them.
pub(crate) fn check_address(argument: &'static str, address: u64) -> Result<()> {
    check_aligned(argument, address, 16)
}

/// Checks that an address is a multiple of `alignment`.
pub(crate) fn check_aligned(argument: &'static str, address: u64, alignment: u64) -> Result<()> {
    if address.is_multiple_of(alignment) {
        return Ok(());
    }
    Err(Error::argument(argument, format!("{address:#x}"), format!("the address is a multiple of {alignment}")))
}

/// Checks that there are at least `needed` elements.
pub(crate) fn check_len<T: Element>(
    argument: &'static str,
    region: &'static str,
    slice: DeviceSlice<'_, T>,
    needed: u64,
) -> Result<()> {
    if slice.len >= needed {
        return Ok(());
    }
    let size = size_of::<T>() as u64;
    let needed = needed.saturating_mul(size);
    Err(Error::BufferTooSmall { argument, region, needed, total: needed, given: slice.len * size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_range_is_counted() {
        assert_eq!(within(8, ..).unwrap(), (0, 8));
        assert_eq!(within(8, 3..).unwrap(), (3, 5));
        assert_eq!(within(8, 3..=7).unwrap(), (3, 5));
        assert_eq!(within(8, ..8).unwrap(), (0, 8));
        assert_eq!(within(8, 8..8).unwrap(), (8, 0));
        assert_eq!(within(8, (Bound::Excluded(2), Bound::Unbounded)).unwrap(), (3, 5));
    }

    #[test]
    fn a_range_beyond_the_elements_is_refused() {
        for range in [(0, 9), (9, 9), (5, 4), (0, u64::MAX)] {
            let refused = within(8, range.0..range.1).unwrap_err();
            assert!(matches!(refused, Error::InvalidArgument { argument: "range", .. }), "{refused}");
        }
        within(8, 0..=u64::MAX).unwrap_err();
        within(8, (Bound::Excluded(u64::MAX), Bound::Unbounded)).unwrap_err();
    }
}
