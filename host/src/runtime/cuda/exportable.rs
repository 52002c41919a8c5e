//! Device memory that can be exported: what another library maps for ranks in other processes.
//!
//! Allocated by the driver's virtual memory management, one allocation at addresses of its own, with a handle that can be given away as a file
//! descriptor, and as a fabric handle where the driver grants them: then other hosts of one NVLink domain can have it.
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};

use super::CudaDevice;
use super::context::free_bytes;
use super::driver::{check, check_for};
use super::segments::{location, properties};
use crate::error::{Error, Result};

/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR` and `CU_MEM_HANDLE_TYPE_FABRIC` (cuda.h), by number: not every version that cudarc is built
/// for has the second.
const FILE_DESCRIPTOR: u32 = 1;
const FABRIC: u32 = 8;

/// Memory of one GPU. It stays until it is freed.
#[derive(Debug)]
pub(crate) struct ExportableMemory {
    device: Arc<CudaDevice>,
    address: u64,
    bytes: u64,
}

impl CudaDevice {
    /// Makes the GPU's context current on the calling thread.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    pub(crate) fn bind(&self) -> Result<()> {
        self.context().bind()
    }

    /// Bytes of which memory that can be exported is a whole number.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    pub(crate) fn exportable_granule(&self) -> Result<u64> {
        self.bind()?;
        let mut granule = 0;
        let mut plain = exported_as(self.context().device(), FILE_DESCRIPTOR);
        let which = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED;
        // SAFETY: complete properties, and a valid place for the answer.
        let asked = unsafe { sys::cuMemGetAllocationGranularity(&mut granule, plain.as_mut_ptr(), which) };
        check_for("cuMemGetAllocationGranularity", asked, format_args!("GPU {}", self.ordinal()))?;
        Ok((granule as u64).max(1))
    }

    /// Allocates memory that can be exported, a whole number of the driver's granules. `rank` and `what` are for the error.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`]; [`Error::Cuda`], also where the driver gives no such memory.
    pub(crate) fn allocate_exportable(
        self: &Arc<Self>,
        rank: u32,
        what: &'static str,
        bytes: u64,
    ) -> Result<ExportableMemory> {
        self.bind()?;
        let name = format_args!("GPU {}", self.ordinal()).to_string();
        let granule = self.exportable_granule()? as usize;
        let refused = || Error::OutOfMemory { rank, what, bytes, free: free_bytes() };
        let bytes = bytes.max(1).checked_next_multiple_of(granule as u64).ok_or_else(refused)?;
        let length = usize::try_from(bytes).map_err(|_| refused())?;
        let mut handle = 0;
        let mut create = |handle_types| {
            let properties = exported_as(self.context().device(), handle_types);
            // SAFETY: a valid place for the answer; complete properties; a whole number of granules; flags must be 0.
            unsafe { sys::cuMemCreate(&mut handle, length, properties.as_ptr(), 0) }
        };
        // Fabric handles are asked for and not assumed: a driver may know them and not grant them.
        let created = match create(FILE_DESCRIPTOR | FABRIC) {
            CUresult::CUDA_SUCCESS => CUresult::CUDA_SUCCESS,
            _ => create(FILE_DESCRIPTOR),
        };
        if created == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(refused());
        }
        check_for("cuMemCreate", created, &name)?;
        let mut address = 0;
        // SAFETY: a valid place for the answer; a whole number of granules, aligned to one; flags must be 0.
        let reserved = unsafe { sys::cuMemAddressReserve(&mut address, length, granule, 0, 0) };
        let mapped = check_for("cuMemAddressReserve", reserved, &name).and_then(|()| {
            // SAFETY: just reserved, as long as the memory of the handle.
            check_for("cuMemMap", unsafe { sys::cuMemMap(address, length, 0, handle, 0) }, &name)
        });
        // SAFETY: the handle of `cuMemCreate`, released once; what is mapped keeps the memory (driver API, `cuMemRelease`).
        let released = check("cuMemRelease", unsafe { sys::cuMemRelease(handle) });
        // From here on it is freed with what it has.
        let memory = ExportableMemory { device: Arc::clone(self), address, bytes };
        let open = mapped.and(released).and_then(|()| {
            let flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
            let access = sys::CUmemAccessDesc { location: location(self.context().device()), flags };
            // SAFETY: the range that was just mapped; one descriptor, of the GPU whose memory it is.
            check_for("cuMemSetAccess", unsafe { sys::cuMemSetAccess(address, length, &access, 1) }, &name)
        });
        match open {
            Ok(()) => Ok(memory),
            Err(error) => {
                if address != 0 {
                    // SAFETY: given to nobody. What was not mapped cannot be unmapped, and nobody is left to tell of that.
                    let _ = unsafe { memory.free() };
                }
                Err(error)
            }
        }
    }
}

impl ExportableMemory {
    /// Where it is.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// How long it is: what was asked for, rounded up.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives it back. Who has it mapped elsewhere keeps it there.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    ///
    /// # Safety
    ///
    /// Nothing uses these addresses any more, and it is called once.
    pub(crate) unsafe fn free(&self) -> Result<()> {
        self.device.bind()?;
        let (address, length) = (self.address, self.bytes as usize);
        let name = format_args!("GPU {}", self.device.ordinal()).to_string();
        // SAFETY: the whole of one mapping, which nothing uses any more, by the caller's promise.
        let unmapped = check_for("cuMemUnmap", unsafe { sys::cuMemUnmap(address, length) }, &name);
        // SAFETY: reserved as such, with nothing mapped in it; the driver refuses what still is.
        let freed = check_for("cuMemAddressFree", unsafe { sys::cuMemAddressFree(address, length) }, &name);
        unmapped.and(freed)
    }
}

/// Plain memory of the GPU that can be exported so. As the driver reads it: the two together are no value of cudarc's enumeration.
pub(super) fn exported_as(device: sys::CUdevice, handle_types: u32) -> MaybeUninit<sys::CUmemAllocationProp> {
    let mut properties = MaybeUninit::new(properties(device));
    // SAFETY: a field of an object of our own, an enumeration in C and so as wide as an int; it is aligned, because the struct is.
    unsafe { ptr::addr_of_mut!((*properties.as_mut_ptr()).requestedHandleTypes).cast::<u32>().write(handle_types) };
    properties
}
