//! A rank's memory: where it comes from, and who frees it.
use std::sync::Arc;

use super::mapped::Mapped;
use super::{cuda, sim};
use crate::error::Result;
use crate::pool;

/// Where a rank's memory for tensors comes from.
pub(crate) enum Segments {
    Sim(sim::SimSegments),
    Cuda(cuda::CudaSegments),
}

impl pool::Segments for Segments {
    fn extend(&mut self, end: u64, bytes: u64) -> Result<Option<pool::Block>> {
        match self {
            Self::Sim(segments) => segments.extend(end, bytes),
            Self::Cuda(segments) => segments.extend(end, bytes),
        }
    }

    fn segment(&mut self, bytes: u64) -> Result<pool::Block> {
        match self {
            Self::Sim(segments) => segments.segment(bytes),
            Self::Cuda(segments) => segments.segment(bytes),
        }
    }

    unsafe fn release(&mut self, segment: pool::Block) -> Result<()> {
        match self {
            // SAFETY: a segment of this object's, so of the runtime's that it stands for; unused, by the caller's promise.
            Self::Sim(segments) => unsafe { segments.release(segment) },
            // SAFETY: a segment of this object's, so of the runtime's that it stands for; unused, by the caller's promise.
            Self::Cuda(segments) => unsafe { segments.release(segment) },
        }
    }
}

/// Whose memory it is: frees what a rank allocated, also when the rank is gone.
pub(crate) enum Heap {
    Sim(epoxide_sim::Machine),
    Cuda(Arc<cuda::CudaDevice>),
}

impl Heap {
    /// Whether what is not freed stays until the process ends, whoever is gone; a simulated machine goes with the last who holds it.
    pub(crate) fn outlives_its_ranks(&self) -> bool {
        matches!(self, Self::Cuda(_))
    }

    /// Frees device memory. On a GPU it may wait for everything that runs there.
    ///
    /// # Safety
    ///
    /// A runtime of this device allocated it; no stream and no host code uses it any more, and it is freed once.
    pub(crate) unsafe fn free(&self, address: u64) -> Result<()> {
        match self {
            // SAFETY: nothing uses the memory any more, by the caller's promise, which is all that the machine asks.
            Self::Sim(machine) => Ok(unsafe { machine.free(address) }?),
            // SAFETY: `CudaDevice::free` asks of this device's memory what the caller promises.
            Self::Cuda(device) => unsafe { device.free(address) },
        }
    }

    /// Frees memory that host and device shared. On a GPU it may wait for everything that runs there.
    ///
    /// # Safety
    ///
    /// A runtime of this device allocated it as mapped memory; neither side uses it any more, and it is freed once.
    pub(crate) unsafe fn free_mapped(&self, mapped: Mapped) -> Result<()> {
        match self {
            // SAFETY: on a machine mapped memory is device memory at the same address, which neither side uses any more.
            Self::Sim(_) => unsafe { self.free(mapped.device) },
            // SAFETY: `CudaDevice::free_mapped` asks of mapped memory what the caller promises.
            Self::Cuda(device) => unsafe { device.free_mapped(mapped) },
        }
    }
}
