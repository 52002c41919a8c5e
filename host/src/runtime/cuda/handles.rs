//! By what other processes have memory of a GPU: file descriptors within a host, fabric handles within an NVLink domain.
//!
//! Fabric handles are asked for and not assumed: a driver may know them and not grant them, as where no IMEX channel is
//! (`/dev/nvidia-caps-imex-channels`). Not every `cuda.h` that cudarc is built for has them, so the functions are called by name with the handle's number.
use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use cudarc::driver::sys::{self, CUresult};

use super::driver::{check, symbol};
use crate::error::{Error, Result};
use crate::runtime::{FABRIC_BYTES, ToldMemory};

/// `cuMemExportToShareableHandle` and `cuMemImportFromShareableHandle`, with the type of the handle by number.
type Export = unsafe extern "C" fn(*mut c_void, sys::CUmemGenericAllocationHandle, c_int, u64) -> CUresult;
type Import = unsafe extern "C" fn(*mut sys::CUmemGenericAllocationHandle, *mut c_void, c_int) -> CUresult;

/// The kinds of handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handles {
    Descriptors,
    Fabric,
}

impl Handles {
    /// Its number in cuda.h.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Descriptors => 1,
            Self::Fabric => 8,
        }
    }

    /// What others are given of an allocation. The context is current.
    ///
    /// # Safety
    ///
    /// The handle is live, of memory that was made to be given away so.
    pub(super) unsafe fn export(self, handle: sys::CUmemGenericAllocationHandle) -> Result<ToldMemory> {
        let call = "cuMemExportToShareableHandle";
        // SAFETY: the type is that of cuda.h's declaration, in which an enumeration is an `int`.
        let export = unsafe { symbol::<Export>(c"cuMemExportToShareableHandle") }.ok_or_else(|| missing(call))?;
        let number = self.number() as c_int;
        match self {
            Self::Fabric => {
                let mut bytes = [0u8; FABRIC_BYTES];
                // SAFETY: of this type the handle is 64 bytes (cuda.h, `CUmemFabricHandle`); flags must be 0.
                check(call, unsafe { export(bytes.as_mut_ptr().cast(), handle, number, 0) })?;
                Ok(ToldMemory::Fabric(bytes))
            }
            Self::Descriptors => {
                let mut descriptor: RawFd = -1;
                // SAFETY: of this type the handle is a descriptor, an `int` (cuda.h); flags must be 0.
                check(call, unsafe { export((&raw mut descriptor).cast(), handle, number, 0) })?;
                // SAFETY: the driver has just opened it for the caller.
                let memory = unsafe { OwnedFd::from_raw_fd(descriptor) };
                // A program that this process starts has no part in it.
                let closed = rustix::io::fcntl_setfd(&memory, rustix::io::FdFlags::CLOEXEC);
                closed.map_err(|error| Error::Bootstrap { message: format!("a window's descriptor: {error}") })?;
                Ok(ToldMemory::Descriptor(memory))
            }
        }
    }
}

/// A handle of this process's for what another one gave. The context is current.
///
/// # Errors
///
/// [`Error::Cuda`].
pub(super) fn import(mut memory: ToldMemory) -> Result<sys::CUmemGenericAllocationHandle> {
    let call = "cuMemImportFromShareableHandle";
    // SAFETY: the type is that of cuda.h's declaration, in which an enumeration is an `int`.
    let import = unsafe { symbol::<Import>(c"cuMemImportFromShareableHandle") }.ok_or_else(|| missing(call))?;
    let (given, kind) = match &mut memory {
        // Of this type the handle is the descriptor itself, as a pointer (cuda.h).
        ToldMemory::Descriptor(fd) => (fd.as_raw_fd() as usize as *mut c_void, Handles::Descriptors),
        ToldMemory::Fabric(bytes) => (bytes.as_mut_ptr().cast(), Handles::Fabric),
    };
    let mut handle = 0;
    // SAFETY: a valid place for the answer; what was given is of that type, and lives until the call is over.
    check(call, unsafe { import(&mut handle, given, kind.number() as c_int) })?;
    Ok(handle)
}

fn missing(call: &'static str) -> Error {
    Error::Cuda { call, message: "the driver has no such function".into() }
}
