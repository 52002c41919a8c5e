//! Which GPU it is, whoever asks and by whatever number.
use std::ffi::{CStr, c_char, c_int};

use cudarc::driver::sys;

use super::CudaDevice;
use super::driver::check_for;
use crate::error::Result;

impl CudaDevice {
    /// Where the GPU is on its host's bus, such as `0000:18:00.0`: the same in every process, whatever CUDA_VISIBLE_DEVICES is there.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`](crate::Error::Cuda).
    pub(crate) fn on_bus(&self) -> Result<String> {
        let mut text: [c_char; 32] = [0; 32];
        // SAFETY: the driver writes at most the 31 characters that it is told, so that a NUL stays behind them.
        let asked = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), 31 as c_int, self.context().device()) };
        check_for("cuDeviceGetPCIBusId", asked, format_args!("GPU {}", self.ordinal()))?;
        // SAFETY: the last byte of `text` is zero.
        Ok(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
    }
}
