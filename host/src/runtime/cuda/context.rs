//! The primary context of a GPU: what every other handle belongs to, shared with the CUDA runtime and with other libraries.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use cudarc::driver::sys::{self, CUresult};

use super::driver::{Handle, check, check_for};
use crate::error::{Error, Result};

/// The retained primary context of one GPU. It is released with the process, however many groups come and go: where contexts were made and
/// destroyed all the time, the thread in which the driver waits for its GPU read null (driver 580, one of some hundred groups of eight
/// ranks), and a new context takes as long as all else of a group.
///
/// It is the *primary* one because memory, streams and events that a framework made (candle, a CUDA runtime library) live
/// there, and are valid here without a word.
#[derive(Debug)]
pub(super) struct PrimaryContext {
    ordinal: u32,
    device: sys::CUdevice,
    context: Handle<sys::CUctx_st>,
    /// Whether work may still run that nobody waits for any more.
    abandoned: AtomicBool,
}

impl PrimaryContext {
    /// Retains the primary context of `device`, whose number is `ordinal`: every time, since a program may have reset it between two.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`](crate::Error::Cuda).
    pub(super) fn retain(ordinal: u32, device: sys::CUdevice) -> Result<Arc<Self>> {
        let mut context = std::ptr::null_mut();
        // SAFETY: a valid place for the answer; the caller got `device` from `cuDeviceGet`, and a wrong one is an error.
        let retained = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
        check_for("cuDevicePrimaryCtxRetain", retained, format_args!("GPU {ordinal}"))?;
        Ok(Arc::new(Self { ordinal, device, context: Handle(context), abandoned: AtomicBool::new(false) }))
    }

    /// The number of the GPU.
    pub(super) fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The driver's handle of the GPU.
    pub(super) fn device(&self) -> sys::CUdevice {
        self.device
    }

    /// The driver's handle.
    pub(super) fn raw(&self) -> sys::CUcontext {
        self.context.0
    }

    /// Lets kernels of this context access what the context of another GPU has allocated, and will allocate.
    ///
    /// # Errors
    ///
    /// [`Error::NoPeerAccess`] if the GPUs do not reach each other, or have no atomics between them;
    /// [`Error::Cuda`].
    pub(super) fn reach(&self, peer: &Self) -> Result<()> {
        self.check_reach(peer.ordinal, peer.device)?;
        self.bind()?;
        // SAFETY: the context of this GPU is current, the other one is retained as long as `peer` lives; flags must be 0.
        match unsafe { sys::cuCtxEnablePeerAccess(peer.context.0, 0) } {
            // By an earlier group, or by a framework beside us.
            CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            enabled => {
                check_for("cuCtxEnablePeerAccess", enabled, format_args!("GPU {} to {}", self.ordinal, peer.ordinal))
            }
        }
    }

    /// Checks that kernels of this GPU can access the memory of GPU `to`, the driver's `peer`, with atomics. It needs no context there.
    ///
    /// # Errors
    ///
    /// As [`Self::reach`].
    pub(super) fn check_reach(&self, to: u32, peer: sys::CUdevice) -> Result<()> {
        let lacking = |reason: &str| Err(Error::NoPeerAccess { from: self.ordinal, to, reason: reason.to_owned() });
        let ask = |attribute| {
            let mut value = 0;
            // SAFETY: a valid place for the answer; both devices are from `cuDeviceGet`.
            let asked = unsafe { sys::cuDeviceGetP2PAttribute(&mut value, attribute, self.device, peer) };
            let between = format_args!("GPUs {} and {to}", self.ordinal);
            check_for("cuDeviceGetP2PAttribute", asked, between).map(|()| value != 0)
        };
        if !ask(sys::CUdevice_P2PAttribute::CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED)? {
            return lacking("there is no peer access between them (cuDeviceGetP2PAttribute)");
        }
        // A rank that gives up posts its abort word at its peers by a compare-and-swap.
        if !ask(sys::CUdevice_P2PAttribute::CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED)? {
            return lacking("the link between them has no atomics (NVLink has)");
        }
        Ok(())
    }

    /// Makes the context current on the calling thread, which most driver calls require.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`](crate::Error::Cuda).
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained as long as `self` lives.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context.0) })
    }

    /// Says that a rank went away while its kernels still ran, perhaps waiting for a peer.
    ///
    /// Freeing memory and unloading a module wait for such kernels; from now on neither is done, and what they would have freed
    /// lives until the process ends.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Relaxed);
    }

    /// Prepares the thread for a destructor that may wait for the device; false if that must not be run.
    pub(super) fn may_free(&self) -> bool {
        !self.abandoned.load(Relaxed) && self.bind().is_ok()
    }
}

/// Device memory that is free now, of the current context's GPU; 0 if even that cannot be said.
pub(super) fn free_bytes() -> u64 {
    let (mut free, mut total) = (0, 0);
    // SAFETY: valid places for both answers.
    match unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) } {
        CUresult::CUDA_SUCCESS => free as u64,
        _ => 0,
    }
}
