//! Tensors in a rank's device memory.
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use half::bf16;

use crate::comm::Comm;
use crate::error::{Error, Result};
use crate::pool::Block;

/// A number that a tensor holds.
///
/// # Safety
///
/// The type is plain bytes: no padding, every bit pattern valid.
pub unsafe trait Element: Copy + Send + Sync + 'static {
    /// Its name in messages.
    const NAME: &'static str;
}

macro_rules! element {
    ($($t:ty => $name:literal),*) => { $(
        // SAFETY: a primitive number, or a transparent wrapper of one.
        unsafe impl Element for $t {
            const NAME: &'static str = $name;
        }
    )* };
}
element!(u8 => "u8", u32 => "u32", u64 => "u64", i32 => "i32", i64 => "i64", f32 => "f32", bf16 => "bf16");

/// A type that `topk_idx` may have.
pub trait Index: Element + sealed::Sealed {
    /// The kernels' number for it.
    #[doc(hidden)]
    const KIND: u32;
}
impl Index for i32 {
    const KIND: u32 = epoxide_kernels::dispatch::index::I32;
}
impl Index for i64 {
    const KIND: u32 = epoxide_kernels::dispatch::index::I64;
}
impl Index for u32 {
    const KIND: u32 = epoxide_kernels::dispatch::index::U32;
}
mod sealed {
    pub trait Sealed {}
    impl Sealed for i32 {}
    impl Sealed for i64 {}
    impl Sealed for u32 {}
}

/// A one-dimensional array in a rank's device memory; rows of a matrix lie one after another.
///
/// Work on the rank's stream may still use a tensor that is dropped: its memory goes to later tensors of the rank, whose uses come
/// after on the same stream. The stream is that of the [`Comm`] that made it. Operations of this crate on another stream of the rank
/// ([`Comm::on_new_stream`]) hold the memory back until that stream has come by. Other work elsewhere, such as a kernel of the caller's own
/// on another stream, must be over before the tensor is dropped, or the tensor's stream must wait for it first. [`Comm::empty`] says when it goes back to the GPU.
#[derive(Debug)]
pub struct DeviceTensor<T: Element> {
    home: Home,
    /// Its memory, which may be a little more than the elements need.
    block: Block,
    len: u64,
    of: PhantomData<T>,
}

/// Whose a tensor is.
#[derive(Debug)]
pub(crate) struct Home {
    /// Its rank, on the stream in whose order its memory is used again.
    pub comm: Comm,
    /// The rank's other streams that have used it, a bit for each.
    others: AtomicU64,
}

impl Home {
    /// Notes that work on the stream of `comm`, of the same rank, uses the tensor.
    pub(crate) fn used_on(&self, comm: &Comm) {
        let stream = comm.inner().stream_number;
        if stream != self.comm.inner().stream_number {
            self.others.fetch_or(1 << stream, Ordering::Relaxed);
        }
    }
}

impl<T: Element> DeviceTensor<T> {
    pub(crate) fn new(comm: Comm, len: u64) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<T>() as u64);
        let bytes = bytes.ok_or_else(|| Error::argument("len", len, "a tensor's bytes must fit in 64 bits"))?;
        let inner = comm.inner();
        let block = inner.memory.take_block(bytes, inner.stream_number)?;
        Ok(Self { home: Home { comm, others: AtomicU64::new(0) }, block, len, of: PhantomData })
    }

    /// The rank and the stream that it belongs to.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

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
        self.block.address
    }

    /// Copies `values` to the start of the tensor, in stream order; returns when `values` may be reused.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when there are more values than elements.
    pub fn copy_from_host(&mut self, values: &[T]) -> Result<()> {
        // SAFETY: the tensor's own elements, borrowed alone here; what uses them on the device is on the rank's stream, or over.
        unsafe { write(&self.home.comm, self.block.address, self.len, values) }
    }

    /// Copies all elements to the host; waits for the stream.
    ///
    /// # Errors
    ///
    /// [`Error::HostMemory`] when the host has too little memory; [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
    pub fn to_vec(&self) -> Result<Vec<T>> {
        // SAFETY: the tensor's own elements.
        unsafe { read(&self.home.comm, self.block.address, self.len) }
    }
}

impl<T: Element> Drop for DeviceTensor<T> {
    fn drop(&mut self) {
        let inner = self.home.comm.inner();
        let others = *self.home.others.get_mut();
        inner.memory.put_block(std::mem::take(&mut self.block), inner.stream_number, others);
    }
}

/// Copies `values` to a device address with room for `len` elements, in stream order.
///
/// # Errors
///
/// [`Error::InvalidArgument`] when there are more; [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
///
/// # Safety
///
/// `address` is of `len` elements of the rank's own device memory, which until this returns only work on the rank's stream touches.
pub(crate) unsafe fn write<T: Element>(comm: &Comm, address: u64, len: u64, values: &[T]) -> Result<()> {
    if values.len() as u64 > len {
        let (value, rule) = (format!("{} elements", values.len()), format!("the tensor has {len}"));
        return Err(Error::argument("values", value, rule));
    }
    let inner = comm.inner();
    // SAFETY: memory of `len` elements that only the rank's stream uses, by the caller's promise; the values are no more, as just checked.
    unsafe { inner.runtime.copy_to_device(address, as_bytes(values), inner.stream) }
}

/// Copies `len` elements at a device address to the host; waits for the stream.
///
/// # Errors
///
/// [`Error::HostMemory`]; [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
///
/// # Safety
///
/// As [`read_into`].
pub(crate) unsafe fn read<T: Element>(comm: &Comm, address: u64, len: u64) -> Result<Vec<T>> {
    let mut values = Vec::new();
    // SAFETY: elements that may be read, by the caller's promise.
    unsafe { read_into(comm, address, len, &mut values)? };
    Ok(values)
}

/// [`read`] in place of what `values` holds, in its memory if that is enough.
///
/// # Errors
///
/// As [`read`].
///
/// # Safety
///
/// `address` is of `len` elements of device memory that the rank may read, which until this returns nobody writes but work on the rank's
/// stream. They are what that work left, or whatever was there.
pub(crate) unsafe fn read_into<T: Element>(comm: &Comm, address: u64, len: u64, values: &mut Vec<T>) -> Result<()> {
    let inner = comm.inner();
    values.clear();
    reserve("a copy of device memory", len, values)?;
    // It fits: that many elements have room.
    let len = len as usize;
    // SAFETY: `len` elements of capacity, every bit pattern of `Element` is valid, and zeroing initialises them.
    let bytes = unsafe {
        std::ptr::write_bytes(values.as_mut_ptr(), 0, len);
        values.set_len(len);
        std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), len * size_of::<T>())
    };
    // SAFETY: memory of `len` elements that nobody else writes now, by the caller's promise.
    unsafe { inner.runtime.copy_to_host(bytes, address, inner.stream) }
}

/// Makes room in an empty vector for `len` elements; an error where the host has not got it, in place of the end of the process.
pub(crate) fn reserve<T>(what: &'static str, len: u64, values: &mut Vec<T>) -> Result<()> {
    let room = usize::try_from(len).is_ok_and(|len| values.try_reserve_exact(len).is_ok());
    if room { Ok(()) } else { Err(Error::HostMemory { what, bytes: len.saturating_mul(size_of::<T>() as u64) }) }
}

/// `len` times `value`, with [`reserve`]'s error.
pub(crate) fn filled<T: Clone>(what: &'static str, len: usize, value: T) -> Result<Vec<T>> {
    let mut filled = Vec::new();
    reserve(what, len as u64, &mut filled)?;
    filled.resize(len, value);
    Ok(filled)
}

/// The bytes of plain numbers.
pub(crate) fn as_bytes<T: Element>(values: &[T]) -> &[u8] {
    // SAFETY: `Element` has no padding, so all its bytes are initialised; u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}
