//! Device memory, memory that host and device share, and copies.
//!
//! What takes an address is unsafe: nothing here can check it beyond what the driver does, which refuses ranges that it did not
//! allocate.
use std::ptr;
use std::sync::PoisonError;

use cudarc::driver::sys::{self, CUresult};

use epoxide_plan::RegionBytes;

use super::context::free_bytes;
use super::driver::check_for;
use super::staging::Staging;
use super::streams::handle;
use super::{CudaDevice, CudaRuntime, CudaSegments};
use crate::error::{Error, Result};
use crate::runtime::Mapped;

/// A size as the driver takes it. What does not fit, it cannot allocate or copy either, and will refuse.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl CudaDevice {
    /// Frees device memory. May wait for everything that runs on the device.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    ///
    /// # Safety
    ///
    /// `address` is from [`CudaRuntime::allocate`] on this device; no stream uses the memory any more, and it is freed once.
    pub(crate) unsafe fn free(&self, address: u64) -> Result<()> {
        self.context().bind()?;
        if let Some(window) = self.take_shared_window(address) {
            // SAFETY: nothing on this GPU uses it any more, by the caller's promise, and it is gone from the list.
            return unsafe { window.unmap() };
        }
        // SAFETY: `cuMemAlloc` gave this address, and the caller promises that nothing uses the memory and that this is its one end.
        check_for("cuMemFree", unsafe { sys::cuMemFree_v2(address) }, format_args!("GPU {}", self.ordinal()))
    }

    /// Frees memory that host and device shared. May wait for everything that runs on the device.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    ///
    /// # Safety
    ///
    /// `mapped` is from [`CudaRuntime::allocate_mapped`] on this device; neither side uses it any more, and it is freed once.
    pub(crate) unsafe fn free_mapped(&self, mapped: Mapped) -> Result<()> {
        self.context().bind()?;
        // SAFETY: `cuMemHostAlloc` gave this address, and the caller promises that neither side uses it and that this is its one end.
        let freed = unsafe { sys::cuMemFreeHost(mapped.host.cast()) };
        check_for("cuMemFreeHost", freed, format_args!("GPU {}", self.ordinal()))
    }
}

impl CudaRuntime {
    /// Allocates device memory, at a multiple of 256 bytes; `what` is for the error. Nothing is allocated as one byte, so that
    /// every address is one.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`], with what is free; [`Error::Cuda`].
    pub(crate) fn allocate(&self, what: &'static str, bytes: u64, regions: &[RegionBytes]) -> Result<u64> {
        self.bind()?;
        if let Some(ipc) = self.ipc.as_ref().filter(|_| regions.iter().any(|region| region.symmetric)) {
            return self.allocate_shared(ipc, what, bytes);
        }
        let mut address = 0;
        // SAFETY: the context is current; a valid place for the answer. (Alignment: CUDA C++ Programming Guide, "Device Memory
        // Accesses": what the driver allocates is aligned to at least 256 bytes.)
        let allocated = unsafe { sys::cuMemAlloc_v2(&mut address, length(bytes.max(1))) };
        if allocated == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(Error::OutOfMemory { rank: self.rank, what, bytes, free: free_bytes() });
        }
        self.check("cuMemAlloc", allocated)?;
        Ok(address)
    }

    /// Where the rank's memory for tensors comes from.
    pub(crate) fn segments(&self) -> CudaSegments {
        let device = &self.device;
        CudaSegments::new(self.rank, device.context(), device.accessors(), device.memory_bytes())
    }

    /// Whether no other rank is on the GPU and no other GPU reaches its memory: giving memory back may wait for everything that
    /// runs there.
    pub(crate) fn gives_back_alone(&self) -> bool {
        self.device.claimed_streams() == self.streams.count() && self.device.accessors().len() == 1
    }

    /// Allocates memory that host and device share, zeroed.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`], when the host has too little memory that can be pinned.
    pub(crate) fn allocate_mapped(&self, bytes: u64) -> Result<Mapped> {
        self.bind()?;
        let (mut host, mut device) = (ptr::null_mut(), 0);
        let (length, flags) = (length(bytes.max(1)), sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP);
        // SAFETY: the context is current; a valid place for the answer.
        self.check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut host, length, flags) })?;
        // SAFETY: `length` bytes were just allocated, and nobody else knows of them yet.
        unsafe { host.write_bytes(0, length) };
        // SAFETY: allocated with `DEVICEMAP`, as this call requires; a valid place for the answer; flags must be 0.
        let mapped = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut device, host, 0) };
        if let Err(error) = self.check("cuMemHostGetDevicePointer", mapped) {
            // SAFETY: allocated above, and given to nobody.
            let _ = unsafe { sys::cuMemFreeHost(host) };
            return Err(error);
        }
        Ok(Mapped { host: host.cast(), device })
    }

    /// Copies to the device in stream order; returns when the copy is done, so that `from` may be reused.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    ///
    /// # Safety
    ///
    /// As for [`Runtime::copy_to_device`](crate::runtime::Runtime::copy_to_device).
    pub(crate) unsafe fn copy_to_device(&self, to: u64, from: &[u8], stream: u64) -> Result<()> {
        // First the work before it: a copy that waits for its stream in a copy engine's queue, which streams share, could
        // hold up a rank that this one waits for.
        self.synchronize(stream)?;
        let stream = handle(stream);
        // SAFETY: the context is current; the caller may write `from.len()` bytes at `to` in the order of `stream`.
        self.with_staging(|staging| unsafe { staging.copy_to_device(to, from, stream) })
    }

    /// Copies to the host in stream order; returns when `to` is filled.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    ///
    /// # Safety
    ///
    /// As for [`Runtime::copy_to_host`](crate::runtime::Runtime::copy_to_host).
    pub(crate) unsafe fn copy_to_host(&self, to: &mut [u8], from: u64, stream: u64) -> Result<()> {
        // As in `copy_to_device`.
        self.synchronize(stream)?;
        let stream = handle(stream);
        // SAFETY: the context is current; the caller may read `to.len()` bytes at `from` in the order of `stream`.
        self.with_staging(|staging| unsafe { staging.copy_to_host(to, from, stream) })
    }

    /// Sets bytes, enqueued.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    ///
    /// # Safety
    ///
    /// As for [`Runtime::fill`](crate::runtime::Runtime::fill).
    pub(crate) unsafe fn fill(&self, to: u64, byte: u8, bytes: u64, stream: u64) -> Result<()> {
        let stream = handle(stream);
        self.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: `bytes` of device memory that the caller promises to be its to write in the order of this live stream.
        let filled = unsafe { sys::cuMemsetD8Async(to, byte, length(bytes), stream) };
        self.check("cuMemsetD8Async", filled)
    }

    /// Runs a copy with this rank's staging buffer and the context current; the failure names the rank.
    fn with_staging(&self, copy: impl FnOnce(&mut Staging) -> Result<()>) -> Result<()> {
        self.bind()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        match staging.as_mut() {
            Some(staging) => copy(staging).map_err(|error| self.place(error)),
            None => unreachable!("only `Drop` takes the staging buffer"),
        }
    }
}
