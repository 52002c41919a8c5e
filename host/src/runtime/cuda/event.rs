//! Points in streams.
use std::fmt;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};

use super::context::PrimaryContext;
use super::driver::{Handle, check};
use crate::error::Result;

/// A point in a stream; destroyed with its last clone.
#[derive(Clone)]
pub(crate) struct CudaEvent(Arc<OwnedEvent>);

struct OwnedEvent {
    handle: Handle<sys::CUevent_st>,
    context: Arc<PrimaryContext>,
}

impl fmt::Debug for CudaEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaEvent({:?} of GPU {})", self.0.handle, self.0.context.ordinal())
    }
}

impl CudaEvent {
    /// Makes an event that has not happened. The context is current.
    pub(super) fn create(context: &Arc<PrimaryContext>) -> Result<Self> {
        // It takes the time.
        Self::of_flags(context, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// [`Self::create`] of one that takes no time, which costs less.
    pub(super) fn create_untimed(context: &Arc<PrimaryContext>) -> Result<Self> {
        Self::of_flags(context, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn of_flags(context: &Arc<PrimaryContext>, flags: sys::CUevent_flags) -> Result<Self> {
        let mut event = ptr::null_mut();
        // SAFETY: the context is current; a valid place for the answer.
        let created = unsafe { sys::cuEventCreate(&mut event, flags as u32) };
        check("cuEventCreate", created)?;
        Ok(Self(Arc::new(OwnedEvent { handle: Handle(event), context: Arc::clone(context) })))
    }

    /// The driver's handle, alive as long as this clone.
    pub(super) fn handle(&self) -> sys::CUevent {
        self.0.handle.0
    }

    /// Whether everything before it is done; false also when the device failed.
    pub(crate) fn is_reached(&self) -> bool {
        // SAFETY: a live event: it is destroyed with its last clone.
        self.bind().is_ok() && unsafe { sys::cuEventQuery(self.handle()) } == CUresult::CUDA_SUCCESS
    }

    /// Makes the event's own context current: it may be of another GPU than the rank that waits for it.
    pub(super) fn bind(&self) -> Result<()> {
        self.0.context.bind()
    }
}

impl Drop for OwnedEvent {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made by `create`, destroyed once. If it is still to happen the driver keeps it until then and returns at
            // once (driver API, `cuEventDestroy`).
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle.0) };
        }
    }
}
