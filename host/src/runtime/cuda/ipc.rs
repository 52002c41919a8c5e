//! Windows between processes: memory that the driver exports as a file descriptor, which ranks of one host hand to each other; or as a fabric
//! handle, bytes that also go to another host of one NVLink domain.
//!
//! ```text
//! own process     cuMemCreate ──▶ cuMemExportToShareableHandle ──▶ fd ── Unix socket ──▶ every peer
//! a peer's        fd ──▶ cuMemImportFromShareableHandle ──▶ cuMemMap ──▶ cuMemSetAccess for its own GPU
//!
//! one reserved range of each process:   │ rank 0's │ rank 1's │ .. │      each at a multiple of the slot's bytes
//! ```
//!
//! Addresses are each process's own: a kernel has a table of them. Physical memory is there until nobody has it mapped, so a rank that
//! ends, in whatever way, leaves its window to those who still use it. Unmapping is done with the rank's own streams idle: what peers do
//! goes by their mappings. (CUDA driver API, "Virtual Memory Management".)
use std::ffi::c_int;
use std::sync::PoisonError;

use cudarc::driver::sys::{self, CUresult};

use super::context::free_bytes;
use super::driver::{Driver, check, check_for};
use super::exportable::exported_as;
use super::handles::{Handles, import};
use super::segments::map_handle;
use super::shared_window::{Ipc, IpcFacts, SharedWindow};
use super::{CudaDevice, CudaRuntime};
use crate::error::{Error, Result};
use crate::runtime::{Told, ToldMemory};

/// `CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED`.
const VIRTUAL_MEMORY: c_int = 102;
/// `CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED`.
const FILE_DESCRIPTORS: c_int = 103;
/// `CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED`; drivers of CUDA 12.3 and newer know it.
const FABRIC: c_int = 128;
/// `CU_DEVICE_ATTRIBUTE_MPS_ENABLED`; drivers of CUDA 12.2 and newer know it.
const MPS: c_int = 133;

impl CudaDevice {
    /// What other processes must know of this GPU to share memory with it by these handles.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a driver that does not have them, or does not grant them; [`Error::Cuda`].
    pub(crate) fn ipc_facts(&self, handles: Handles) -> Result<IpcFacts> {
        let (driver, device) = (Driver::get()?, self.context().device());
        let which = match handles {
            Handles::Descriptors => (FILE_DESCRIPTORS, "file descriptors of device memory"),
            Handles::Fabric => (FABRIC, "fabric handles"),
        };
        let refused = |rule: String| Error::argument("device", self.ordinal(), rule);
        for (attribute, what) in [(VIRTUAL_MEMORY, "virtual memory management"), which] {
            if driver.attribute(attribute, device) != Some(1) {
                let rule = format!(
                    "its driver has no {what}, by which processes share windows: run the ranks as threads of one process (LocalGroup::on_gpus)"
                );
                return Err(refused(rule));
            }
        }
        self.context().bind()?;
        let mut granule = 0;
        let mut plain = exported_as(device, handles.number());
        let which = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        // SAFETY: complete properties, and a valid place for the answer.
        let asked = unsafe { sys::cuMemGetAllocationGranularity(&mut granule, plain.as_mut_ptr(), which) };
        check_for("cuMemGetAllocationGranularity", asked, format_args!("GPU {}", self.ordinal()))?;
        if handles == Handles::Fabric {
            // What a driver knows it need not grant.
            grants(device, handles, granule).map_err(|error| {
                refused(format!("its driver knows fabric handles and grants none ({error}): is there an IMEX channel (/dev/nvidia-caps-imex-channels)?"))
            })?;
        }
        Ok(IpcFacts { uuid: driver.uuid(device)?, granule: (granule as u64).max(1) })
    }

    /// Whether the kernels of several processes run on it side by side: under MPS. None if the driver does not say.
    ///
    /// # Errors
    ///
    /// Those of a driver that does not start.
    pub(crate) fn is_under_mps(&self) -> Result<Option<bool>> {
        Ok(Driver::get()?.attribute(MPS, self.context().device()).map(|mps| mps != 0))
    }

    /// Checks that this GPU's kernels reach the memory of that GPU, if this process may use both: of one that it may not, the driver
    /// says nothing before memory of it is mapped.
    ///
    /// # Errors
    ///
    /// [`Error::NoPeerAccess`]; [`Error::Cuda`].
    pub(crate) fn check_reach(&self, uuid: &[u8; 16]) -> Result<()> {
        let driver = Driver::get()?;
        for number in 0..driver.devices() {
            let mut device = 0;
            // SAFETY: a valid place for the answer; the driver has so many devices.
            check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, number as c_int) })?;
            if device != self.context().device() && driver.uuid(device)? == *uuid {
                return self.context().check_reach(number, device);
            }
        }
        Ok(())
    }

    /// Takes the window whose own part lies there from the list, if there is one.
    pub(super) fn take_shared_window(&self, own: u64) -> Option<SharedWindow> {
        self.shared_windows.lock().unwrap_or_else(PoisonError::into_inner).remove(&own)
    }
}

impl CudaRuntime {
    /// Bytes of which a window is a whole number.
    pub(crate) fn window_granule(&self) -> u64 {
        self.ipc.as_ref().map_or(1, |ipc| ipc.granule)
    }

    /// Allocates the rank's own part of a window, in a range with room for everyone's. The context is current.
    pub(super) fn allocate_shared(&self, ipc: &Ipc, what: &'static str, bytes: u64) -> Result<u64> {
        let (rank, device) = (self.rank, self.device.context().device());
        let refused = || Error::OutOfMemory { rank, what, bytes, free: free_bytes() };
        let slot = bytes.max(1).checked_next_multiple_of(ipc.granule).ok_or_else(refused)?;
        let range = usize::try_from(slot).ok().and_then(|slot| slot.checked_mul(ipc.ranks as usize));
        let range = range.ok_or_else(refused)?;
        let mut base = 0;
        // SAFETY: a valid place for the answer; a whole number of granules; flags must be 0.
        self.check("cuMemAddressReserve", unsafe { sys::cuMemAddressReserve(&mut base, range, 0, 0, 0) })?;
        let mut window = SharedWindow { base, slot, mapped: vec![false; ipc.ranks as usize], exported: None };
        let own = window.at(ipc.rank);
        match create(device, own, slot, ipc.handles) {
            Ok(exported) => window.exported = exported,
            Err(error) => {
                // SAFETY: nobody knows of the range.
                let _ = unsafe { window.unmap() };
                return Err(self.place(error));
            }
        }
        if window.exported.is_none() {
            // SAFETY: as above.
            let _ = unsafe { window.unmap() };
            return Err(refused());
        }
        window.mapped[ipc.rank as usize] = true;
        self.device.shared_windows.lock().unwrap_or_else(PoisonError::into_inner).insert(own, window);
        Ok(own)
    }

    /// What peers are told of a window, from which they [find](Self::find) it.
    pub(crate) fn tell(&self, address: u64) -> Result<Told> {
        if self.ipc.is_none() {
            // Threads of one process have the same addresses.
            return Ok(Told { place: address, memory: None });
        }
        let mut windows = self.device.shared_windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.get_mut(&address);
        let told = window.and_then(|window| Some(Told { place: window.slot, memory: Some(window.exported.take()?) }));
        let rule = "a window that peers were not told of yet";
        told.ok_or_else(|| Error::argument("address", format_args!("{address:#x}"), rule))
    }

    /// Where this rank's kernels have what `rank` [told](Self::tell), beside its `own`.
    pub(crate) fn find(&self, own: u64, rank: u32, told: Told) -> Result<u64> {
        let Some(ipc) = self.ipc.as_deref() else { return Ok(told.place) };
        if rank == ipc.rank {
            return Ok(own);
        }
        let said = |message| Error::Bootstrap { message };
        let mut windows = self.device.shared_windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.get_mut(&own).ok_or_else(|| said(format!("rank {} has no such window", ipc.rank)))?;
        let memory = told.memory.ok_or_else(|| said(format!("rank {rank} handed over no device memory")))?;
        if told.place != window.slot {
            let (theirs, ours) = (told.place, window.slot);
            return Err(said(format!("rank {rank} has a window of {theirs} bytes, rank {} of {ours}", ipc.rank)));
        }
        self.bind()?;
        let (address, device) = (window.at(rank), self.device.context().device());
        let whose = |error| match self.place(error) {
            Error::Cuda { call, message } => {
                Error::Cuda { call, message: format!("{message}, mapping the window of rank {rank}") }
            }
            other => other,
        };
        let handle = import(memory).map_err(whose)?;
        // SAFETY: the handle was just made, of memory that its rank says is so long, which `cuMemMap` checks; this place of the range is
        // for `rank` alone, and nothing was mapped there.
        unsafe { map_handle(handle, &[device], address, window.slot) }.map_err(whose)?;
        window.mapped[rank as usize] = true;
        Ok(address)
    }
}

/// Maps new memory, and exports it; nothing if there is too little. The context is current.
fn create(device: sys::CUdevice, address: u64, bytes: u64, handles: Handles) -> Result<Option<ToldMemory>> {
    let mut handle = 0;
    let properties = exported_as(device, handles.number());
    // SAFETY: a valid place for the answer; complete properties; a whole number of granules; flags must be 0.
    match unsafe { sys::cuMemCreate(&mut handle, bytes as usize, properties.as_ptr(), 0) } {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => return Ok(None),
        created => check("cuMemCreate", created)?,
    }
    // SAFETY: just made, to be exported so.
    let exported = unsafe { handles.export(handle) }.inspect_err(|_| {
        // SAFETY: the handle was just made, and nothing is mapped by it.
        let _ = unsafe { sys::cuMemRelease(handle) };
    })?;
    // SAFETY: memory of that length, whose handle nobody uses any more; the caller has reserved the addresses, where nothing is mapped.
    unsafe { map_handle(handle, &[device], address, bytes) }?;
    Ok(Some(exported))
}

/// Whether the driver gives memory with such handles, tried with so little of it. The context is current.
fn grants(device: sys::CUdevice, handles: Handles, bytes: usize) -> Result<()> {
    let mut handle = 0;
    let properties = exported_as(device, handles.number());
    // SAFETY: a valid place for the answer; complete properties; a whole number of granules; flags must be 0.
    check("cuMemCreate", unsafe { sys::cuMemCreate(&mut handle, bytes, properties.as_ptr(), 0) })?;
    // SAFETY: just made, to be exported so.
    let exported = unsafe { handles.export(handle) };
    // SAFETY: the handle was just made, and nothing is mapped by it.
    check("cuMemRelease", unsafe { sys::cuMemRelease(handle) })?;
    exported.map(drop)
}
