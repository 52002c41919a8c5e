//! The runtime on a GPU, through the CUDA driver API.
//!
//! The driver is all it needs: the library is loaded at run time, and the kernels are PTX that the driver compiles. One
//! [`CudaDevice`] per GPU and process, one [`CudaRuntime`] per rank on it; every call makes the GPU's primary context current on
//! the calling thread and leaves it so.
//!
//! **Several ranks on one GPU** wait for each other while their kernels run, so nothing between the first launch and the last
//! may wait for a peer's kernel by accident:
//!
//! * kernels are loaded family by family, and their attributes set, by [`CudaRuntime::prepare`] (the caller's own by
//!   [`CudaRuntime::load_guests`]), never by a launch;
//! * streams are non-blocking, and no more than the GPU has hardware queues ([`budget`]);
//! * SMs are reserved beforehand, and one stays free ([`CudaDevice::reserve_sms`]);
//! * copies go through pinned memory and wait for events of their own stream ([`staging`]);
//! * memory for tensors, which come and go all the time, is mapped, not allocated ([`segments`]);
//! * what the driver frees only behind every running kernel (memory, pinned memory, modules) is freed explicitly
//!   by its owner, or with the last rank of a group, which waits for what all of them left on their streams; and not even then
//!   if a stream was left busy that nobody waits for ([`context`]). The context itself stays with the process.
//!
//! A kernel that faulted is reported by whatever call comes next, with the driver's name for it; such errors are sticky.
mod budget;
#[cfg(test)]
mod callers_streams;
mod context;
mod device;
mod driver;
mod driver_graphs;
mod event;
mod exportable;
mod graphs;
mod guests;
mod handles;
mod identity;
mod ipc;
mod kernels;
mod launch;
mod launch_early;
mod launched;
mod memory;
mod module;
mod pace;
mod segments;
mod shared_window;
mod staging;
mod stream;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::CUresult;

pub(crate) use self::budget::SmReservation;
pub(crate) use self::device::CudaDevice;
pub(crate) use self::event::CudaEvent;
pub(crate) use self::exportable::ExportableMemory;
pub(crate) use self::graphs::CudaGraph;
pub(crate) use self::handles::Handles;
pub(crate) use self::segments::CudaSegments;
pub(crate) use self::shared_window::{Ipc, IpcFacts};
pub(crate) use self::streams::LeftStreams;

use self::launched::Launched;
use self::module::Function;
use self::pace::Pace;
use self::staging::Staging;
use self::streams::Streams;
use crate::error::{Error, Result};

/// One rank on a GPU.
///
/// Dropping it destroys the streams that it still has and waits for nothing. Memory is the caller's to free.
#[derive(Debug)]
pub(crate) struct CudaRuntime {
    rank: u32,
    /// No launch begins before the one before it is over.
    apart: bool,
    streams: Streams,
    /// How far the host is ahead.
    pace: Pace,
    /// Taken by `Drop` alone.
    staging: Mutex<Option<Staging>>,
    /// Kernels that the rank has launched.
    launched: Launched,
    /// Kernels of the caller's own that the rank loaded, by name.
    guests: Mutex<BTreeMap<&'static str, Function>>,
    /// Where peers are other processes.
    ipc: Option<Box<Ipc>>,
    device: Arc<CudaDevice>,
}

impl CudaRuntime {
    /// Makes rank `rank` of those on `device`; the number is for error messages.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`] if the host has too little memory that can be pinned.
    pub(crate) fn new(device: Arc<CudaDevice>, rank: u32) -> Result<Self> {
        let staging = Mutex::new(Some(device.take_staging()?));
        let (streams, pace, guests) = (Streams::default(), Pace::default(), Mutex::default());
        let launched = Launched::default();
        Ok(Self { rank, apart: false, streams, pace, staging, launched, guests, ipc: None, device })
    }

    /// The same, whose peers are other processes.
    pub(crate) fn among_processes(mut self, ipc: Ipc) -> Self {
        self.ipc = Some(Box::new(ipc));
        self
    }

    /// Lets no launch begin before the one before it is over.
    pub(crate) fn keep_launches_apart(&mut self) {
        self.apart = true;
    }

    /// Whether no other rank is known to be on the GPU, of any group.
    pub(crate) fn has_its_gpu_alone(&self) -> bool {
        !self.apart && self.device.claimed_streams() == self.streams.count()
    }

    /// Whether its peers are other processes.
    pub(crate) fn is_among_processes(&self) -> bool {
        self.ipc.is_some()
    }

    /// The rank's number.
    pub(crate) fn rank(&self) -> u32 {
        self.rank
    }

    /// The GPU, which other ranks may share.
    pub(crate) fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }

    /// SMs of the device.
    pub(crate) fn sms(&self) -> u32 {
        self.device.sms()
    }

    /// Largest dynamic shared memory of a block.
    pub(crate) fn shared_bytes_per_block(&self) -> u32 {
        self.device.shared_bytes_per_block()
    }

    /// What the device is, in words.
    pub(crate) fn description(&self) -> String {
        let process = if self.is_among_processes() { ", a process of its own" } else { "" };
        self.device.description() + process
    }

    /// Takes the rank's streams, which may be busy, for whoever waits for their work. The rank uses none any more.
    pub(crate) fn leave_streams(&self) -> LeftStreams {
        self.streams.leave(self.device.context())
    }

    /// Makes the device's context current on the calling thread.
    fn bind(&self) -> Result<()> {
        self.device.context().bind().map_err(|error| self.place(error))
    }

    /// Turns a driver call's answer into a result that names this rank.
    fn check(&self, call: &'static str, result: CUresult) -> Result<()> {
        driver::check(call, result).map_err(|error| self.place(error))
    }

    /// Adds to a driver's error which rank met it, and on which GPU.
    fn place(&self, error: Error) -> Error {
        match error {
            Error::Cuda { call, message } => {
                Error::Cuda { call, message: format!("{message} [rank {}, GPU {}]", self.rank, self.device.ordinal()) }
            }
            other => other,
        }
    }
}

impl Drop for CudaRuntime {
    fn drop(&mut self) {
        drop(self.leave_streams());
        let staging = self.staging.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(staging) = staging.take() {
            self.device.return_staging(staging);
        }
    }
}
