//! Tensors of a rank, which its [`Comm`] makes.
use super::Comm;
use crate::error::Result;
use crate::tensor::{DeviceTensor, Element};

impl Comm {
    /// Allocates a tensor of `len` elements, with whatever was in the memory: if possible in what dropped tensors of this rank left,
    /// without a call to the driver.
    ///
    /// On a GPU, memory is added to what the rank has without waiting for anything that runs there, so this may be called while a
    /// peer waits for this rank. What dropped tensors left goes back to the GPU when a buffer is closed, when the group ends, and
    /// before a buffer is refused for want of memory; for want of a tensor's memory only if no other rank is on the GPU and this
    /// rank's stream is idle.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory); [`Error::InvalidArgument`](crate::Error::InvalidArgument) when the bytes do not fit in 64 bits.
    pub fn empty<T: Element>(&self, len: u64) -> Result<DeviceTensor<T>> {
        DeviceTensor::new(self.clone(), len)
    }

    /// Allocates a tensor and copies `values` into it.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn tensor<T: Element>(&self, values: &[T]) -> Result<DeviceTensor<T>> {
        let mut tensor = self.empty(values.len() as u64)?;
        tensor.copy_from_host(values)?;
        Ok(tensor)
    }
}
