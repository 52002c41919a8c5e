//! Streams and events.
use std::collections::HashMap;
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUresult};

use super::CudaRuntime;
use super::budget::Claim;
use super::context::PrimaryContext;
use super::driver::{Driver, Handle, check};
use crate::error::{Error, Result};
use crate::runtime::{RawEvent, RawStream};

/// The streams of a rank that is there, each with its claim to a hardware queue.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<HashMap<u64, Stream>>);

#[derive(Debug)]
struct Stream {
    /// Held as long as the stream may be at work.
    _claim: Claim,
    /// Whether the rank made it, and so destroys it.
    own: bool,
}

impl Streams {
    fn insert(&self, stream: u64, claim: Claim, own: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(stream, Stream { _claim: claim, own });
    }

    #[cfg(test)]
    fn remove(&self, stream: u64) -> Option<Stream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&stream)
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u32
    }

    /// Takes them all.
    pub(super) fn leave(&self, context: &Arc<PrimaryContext>) -> LeftStreams {
        let streams = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        LeftStreams { streams, context: Arc::clone(context) }
    }
}

/// The streams of a rank that is gone. Dropping them destroys what the rank made, without waiting; if one is still busy the
/// context is told, and frees nothing any more.
#[derive(Debug)]
pub(crate) struct LeftStreams {
    streams: HashMap<u64, Stream>,
    context: Arc<PrimaryContext>,
}

impl LeftStreams {
    /// Destroys what the rank made, all of whose work is known to be over.
    ///
    /// It must not be asked: an event that was just recorded keeps a stream busy for a moment, and the caller may have destroyed
    /// a stream of its own by now.
    pub(crate) fn destroy_idle(mut self) {
        let streams = std::mem::take(&mut self.streams);
        if self.context.bind().is_ok() {
            streams.into_iter().for_each(|(stream, known)| known.destroy(stream));
        }
    }
}

impl Stream {
    /// Destroys it if the rank made it; the context is current.
    fn destroy(self, stream: u64) {
        if self.own {
            // SAFETY: made by `create_stream` and taken out of the table, so destroyed once. With work left, the driver returns
            // at once and releases the stream when that work is done (driver API, `cuStreamDestroy`).
            let _ = unsafe { sys::cuStreamDestroy_v2(handle(stream)) };
        }
    }
}

impl Drop for LeftStreams {
    fn drop(&mut self) {
        if self.streams.is_empty() || self.context.bind().is_err() {
            return;
        }
        for (stream, known) in self.streams.drain() {
            // SAFETY: made by `create_stream` and still in the table, so not destroyed; or the caller's, who keeps it alive as
            // long as the rank, which is just going.
            if unsafe { sys::cuStreamQuery(handle(stream)) } == CUresult::CUDA_ERROR_NOT_READY {
                self.context.abandon();
            }
            known.destroy(stream);
        }
    }
}

/// The driver's handle in a raw stream.
fn handle(stream: u64) -> sys::CUstream {
    ptr::with_exposed_provenance_mut(stream as usize)
}

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
    fn create(context: &Arc<PrimaryContext>) -> Result<Self> {
        let mut event = ptr::null_mut();
        // SAFETY: the context is current; a valid place for the answer. With the default flags it takes the time.
        let created = unsafe { sys::cuEventCreate(&mut event, sys::CUevent_flags::CU_EVENT_DEFAULT as u32) };
        check("cuEventCreate", created)?;
        Ok(Self(Arc::new(OwnedEvent { handle: Handle(event), context: Arc::clone(context) })))
    }

    fn handle(&self) -> sys::CUevent {
        self.0.handle.0
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

impl CudaRuntime {
    /// The driver's handle of a stream.
    pub(super) fn stream(&self, stream: RawStream) -> Result<sys::CUstream> {
        match stream {
            RawStream::Cuda(stream) => Ok(handle(stream)),
            RawStream::Sim(_) => {
                Err(Error::argument("stream", format_args!("{stream:?}"), "must be a CUDA stream on a CUDA device"))
            }
        }
    }

    /// Makes a stream that does not synchronise with any other.
    ///
    /// # Errors
    ///
    /// [`Error::DoesNotFit`] if the ranks on this GPU have as many streams as it has hardware queues; [`Error::Cuda`].
    pub(crate) fn create_stream(&self) -> Result<RawStream> {
        let claim = self.device.claim_stream()?;
        self.bind()?;
        let mut stream: sys::CUstream = ptr::null_mut();
        // SAFETY: the context is current; a valid place for the answer.
        let created = unsafe { sys::cuStreamCreate(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32) };
        self.check("cuStreamCreate", created)?;
        let stream = stream.expose_provenance() as u64;
        self.streams.insert(stream, claim, true);
        Ok(RawStream::Cuda(stream))
    }

    /// Takes a stream of the caller's for this rank; it is not destroyed with the rank.
    ///
    /// # Errors
    ///
    /// As [`create_stream`](Self::create_stream); [`Error::InvalidArgument`] if the stream is of another context or blocking.
    ///
    /// # Safety
    ///
    /// `stream` is a live `CUstream`, and lives as long as this rank.
    pub(crate) unsafe fn adopt_stream(&self, stream: u64) -> Result<RawStream> {
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
        Ok(RawStream::Cuda(stream))
    }

    /// Destroys a stream of this rank that is idle; a rank's own lives as long as the rank.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if [`create_stream`](Self::create_stream) did not make it; [`Error::Cuda`].
    #[cfg(test)]
    pub(crate) fn destroy_stream(&self, stream: RawStream) -> Result<()> {
        let own = if let RawStream::Cuda(stream) = stream { self.streams.remove(stream) } else { None };
        let rule = "must be a stream that this rank made and has not destroyed";
        let _claim = own.ok_or_else(|| Error::argument("stream", format_args!("{stream:?}"), rule))?;
        self.bind()?;
        // SAFETY: it was in the table, so `create_stream` made it and nobody destroyed it.
        self.check("cuStreamDestroy", unsafe { sys::cuStreamDestroy_v2(self.stream(stream)?) })
    }

    /// Waits until the stream is idle.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`], also for a kernel that faulted since the last call.
    pub(crate) fn synchronize(&self, stream: RawStream) -> Result<()> {
        self.bind()?;
        // SAFETY: a live stream of this context: the caller made it, or was given it as such.
        self.check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream(stream)?) })
    }

    /// Whether everything on the stream is done; false also when the device failed.
    pub(crate) fn is_idle(&self, stream: RawStream) -> bool {
        let Ok(stream) = self.bind().and_then(|()| self.stream(stream)) else { return false };
        // SAFETY: a live stream of this context: the caller made it, or was given it as such.
        unsafe { sys::cuStreamQuery(stream) == CUresult::CUDA_SUCCESS }
    }

    /// Marks a point in the stream.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`].
    pub(crate) fn record_event(&self, stream: RawStream) -> Result<RawEvent> {
        self.pace(stream)?;
        self.mark(stream)
    }

    /// [`Self::record_event`], not counted.
    pub(crate) fn mark(&self, stream: RawStream) -> Result<RawEvent> {
        let stream = self.stream(stream)?;
        self.bind()?;
        let event = CudaEvent::create(self.device.context())?;
        // SAFETY: a live event and a live stream of the same context.
        self.check("cuEventRecord", unsafe { sys::cuEventRecord(event.handle(), stream) })?;
        Ok(RawEvent::Cuda(event))
    }

    /// Lets the stream wait for an event of any stream, of another GPU too.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for an event of the simulated GPU; [`Error::Cuda`].
    pub(crate) fn wait_event(&self, stream: RawStream, event: &RawEvent) -> Result<()> {
        self.pace(stream)?;
        let (stream, event) = (self.stream(stream)?, cuda_event(event)?);
        self.bind()?;
        // SAFETY: a live event and a live stream, which may be of different contexts; flags must be 0 outside of capture.
        self.check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream, event.handle(), 0) })
    }

    /// Waits until the event is reached, on whichever rank's stream it is.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for an event of the simulated GPU; [`Error::Cuda`], also for a kernel that faulted since the
    /// last call.
    pub(crate) fn synchronize_event(&self, event: &RawEvent) -> Result<()> {
        let event = cuda_event(event)?;
        // The event's own context: it may be of another GPU.
        event.0.context.bind()?;
        // SAFETY: a live event: `CudaEvent` destroys it with its last clone.
        self.check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(event.handle()) })
    }

    /// Milliseconds between two events of one GPU that have both happened, to half a microsecond.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for an event of the simulated GPU; [`Error::Cuda`] if one has not happened.
    pub(crate) fn elapsed_ms(&self, from: &RawEvent, to: &RawEvent) -> Result<f64> {
        let (from, to) = (cuda_event(from)?, cuda_event(to)?);
        self.bind()?;
        // SAFETY: both are live: `CudaEvent` destroys its event with its last clone.
        unsafe { Driver::get()?.elapsed(from.handle(), to.handle()) }.map(f64::from)
    }
}

fn cuda_event(event: &RawEvent) -> Result<&CudaEvent> {
    match event {
        RawEvent::Cuda(event) => Ok(event),
        RawEvent::Sim(_) => {
            Err(Error::argument("event", format_args!("{event:?}"), "must be a CUDA event on a CUDA device"))
        }
    }
}
