//! Memory that NCCL allocates, for where the driver gives none that can be exported.
use std::ffi::c_void;

use super::library::Library;
use crate::error::Result;

/// Memory from `ncclMemAlloc`, of the device whose context was current.
#[derive(Debug)]
pub(crate) struct NcclMemory {
    library: Library,
    address: u64,
}

impl NcclMemory {
    /// Allocates memory of the current context's device.
    ///
    /// # Errors
    ///
    /// [`Error::Nccl`](crate::Error::Nccl).
    pub(crate) fn allocate(library: &Library, bytes: u64) -> Result<Self> {
        let address = library.functions().mem_alloc(usize::try_from(bytes).unwrap_or(usize::MAX))? as u64;
        Ok(Self { library: library.clone(), address })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Frees it. The device's context is current.
    ///
    /// # Errors
    ///
    /// [`Error::Nccl`](crate::Error::Nccl).
    ///
    /// # Safety
    ///
    /// Nothing uses it any more, and it is freed once.
    pub(crate) unsafe fn free(&self) -> Result<()> {
        // SAFETY: `allocate` got it from there; the rest is the caller's promise.
        unsafe { self.library.functions().mem_free(self.address as *mut c_void) }
    }
}
