//! What a rank does with its streams and events. A stream is a `CUstream` as a number.
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use super::CudaRuntime;
use super::driver::Driver;
use super::event::CudaEvent;
use super::streams::handle;
use crate::error::{Error, Result};

impl CudaRuntime {
    /// Makes a stream that does not synchronise with any other.
    ///
    /// # Errors
    ///
    /// [`Error::DoesNotFit`] if the ranks on this GPU have as many streams as it has hardware queues; [`Error::Cuda`].
    pub(crate) fn create_stream(&self) -> Result<u64> {
        let claim = self.device.claim_stream()?;
        self.bind()?;
        let mut stream: sys::CUstream = ptr::null_mut();
        // SAFETY: the context is current; a valid place for the answer.
        let created = unsafe { sys::cuStreamCreate(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32) };
        self.check("cuStreamCreate", created)?;
        let stream = stream.expose_provenance() as u64;
        self.streams.insert(stream, claim, true);
        Ok(stream)
    }

    /// Takes a stream of the caller's for this rank; it is not destroyed with the rank. One that the rank has already stays as it is.
    ///
    /// # Errors
    ///
    /// As [`create_stream`](Self::create_stream); [`Error::InvalidArgument`] if the stream is of another context or blocking.
    ///
    /// # Safety
    ///
    /// `stream` is a live `CUstream`, and lives as long as this rank.
    pub(crate) unsafe fn adopt_stream(&self, stream: u64) -> Result<u64> {
        if self.streams.has(stream) {
            return Ok(stream);
        }
        let claim = self.device.claim_stream()?;
        self.bind()?;
        let mut context = ptr::null_mut();
        // SAFETY: a live stream, as the caller promises; a valid place for the answer.
        self.check("cuStreamGetCtx", unsafe { sys::cuStreamGetCtx(handle(stream), &mut context) })?;
        if context != self.device.context().raw() {
            let rule = format!("must be of the primary context of GPU {}", self.device.ordinal());
            return Err(Error::argument("stream", format!("{stream:#x}"), rule));
        }
        let mut flags = 0;
        // SAFETY: a live stream, as the caller promises; a valid place for the answer.
        self.check("cuStreamGetFlags", unsafe { sys::cuStreamGetFlags(handle(stream), &mut flags) })?;
        if flags & sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32 == 0 {
            let rule =
                "must be non-blocking (CU_STREAM_NON_BLOCKING): another waits for the default stream, and so for peers";
            return Err(Error::argument("stream", format!("{stream:#x}"), rule));
        }
        self.streams.insert(stream, claim, false);
        Ok(stream)
    }

    /// Destroys a stream of this rank that is idle; a rank's own lives as long as the rank.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if [`create_stream`](Self::create_stream) did not make it; [`Error::Cuda`].
    #[cfg(test)]
    pub(crate) fn destroy_stream(&self, stream: u64) -> Result<()> {
        let own = self.streams.remove(stream);
        let rule = "must be a stream that this rank made and has not destroyed";
        let _claim = own.ok_or_else(|| Error::argument("stream", format!("{stream:#x}"), rule))?;
        self.bind()?;
        // SAFETY: it was in the table, so `create_stream` made it and nobody destroyed it.
        self.check("cuStreamDestroy", unsafe { sys::cuStreamDestroy_v2(handle(stream)) })
    }

    /// Waits until the stream is idle.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`], also for a kernel that faulted since the last call; [`Error::Capturing`] in a capture.
    pub(crate) fn synchronize(&self, stream: u64) -> Result<()> {
        self.check_eager("waiting for a stream", stream)?;
        // SAFETY: a live stream of this context: the caller made it, or was given it as such.
        self.check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(handle(stream)) })
    }

    /// Whether everything on the stream is done; false also when the device failed.
    pub(crate) fn is_idle(&self, stream: u64) -> bool {
        // To ask a stream that is captured would end the capture.
        if !matches!(self.capture(stream), Ok(None)) {
            return false;
        }
        // SAFETY: a live stream of this context: the caller made it, or was given it as such.
        unsafe { sys::cuStreamQuery(handle(stream)) == CUresult::CUDA_SUCCESS }
    }

    /// Marks a point in the stream.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    pub(crate) fn record_event(&self, stream: u64) -> Result<CudaEvent> {
        self.pace(stream)?;
        self.mark(stream)
    }

    /// [`Self::record_event`], not counted.
    pub(crate) fn mark(&self, stream: u64) -> Result<CudaEvent> {
        self.bind()?;
        self.recorded(CudaEvent::create(self.device.context())?, stream)
    }

    /// Lets an event of this context stand for this point of the stream. The context is current.
    fn recorded(&self, event: CudaEvent, stream: u64) -> Result<CudaEvent> {
        // SAFETY: a live event and a live stream of the same context.
        self.check("cuEventRecord", unsafe { sys::cuEventRecord(event.handle(), handle(stream)) })?;
        Ok(event)
    }

    /// Lets the stream wait for an event of any stream, of another GPU too.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    pub(crate) fn wait_event(&self, stream: u64, event: &CudaEvent) -> Result<()> {
        self.pace(stream)?;
        self.bind()?;
        // SAFETY: a live event and a live stream, which may be of different contexts; flags must be 0 outside of capture.
        self.check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(handle(stream), event.handle(), 0) })
    }

    /// Waits until the event is reached, on whichever rank's stream it is.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`], also for a kernel that faulted since the
    /// last call.
    pub(crate) fn synchronize_event(&self, event: &CudaEvent) -> Result<()> {
        event.bind()?;
        // SAFETY: a live event: `CudaEvent` destroys it with its last clone.
        self.check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(event.handle()) })
    }

    /// Milliseconds between two events of one GPU that have both happened, to half a microsecond.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`] if one has not happened.
    pub(crate) fn elapsed_ms(&self, from: &CudaEvent, to: &CudaEvent) -> Result<f64> {
        self.bind()?;
        // SAFETY: both are live: `CudaEvent` destroys its event with its last clone.
        unsafe { Driver::get()?.elapsed(from.handle(), to.handle()) }.map(f64::from)
    }

    /// Counts an entry on `stream`; waits for the oldest mark when too many lie ahead.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    pub(super) fn pace(&self, stream: u64) -> Result<()> {
        self.pace_of(1, stream)
    }

    /// [`Self::pace`] of what is as long as so many entries. What is captured is not enqueued: a capture is never waited for.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    pub(super) fn pace_of(&self, entries: u32, stream: u64) -> Result<()> {
        let mark = |spare: &mut Vec<CudaEvent>| {
            if self.capture(stream)?.is_some() {
                return Ok(None);
            }
            // To ask for captures has made the context current.
            let event = spare.pop().map_or_else(|| CudaEvent::create_untimed(self.device.context()), Ok)?;
            self.recorded(event, stream).map(Some)
        };
        // Not under the lock: another thread of the rank may count on.
        if let Some(oldest) = self.pace.count(stream, entries, mark)? {
            self.synchronize_event(&oldest)?;
            self.pace.give_back(stream, oldest);
        }
        Ok(())
    }
}
