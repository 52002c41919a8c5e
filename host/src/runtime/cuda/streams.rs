//! The streams that a rank has, and what becomes of them when it is gone.
use std::collections::HashMap;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUresult};

use super::budget::Claim;
use super::context::PrimaryContext;

/// The streams of a rank that is there, each with its claim to a hardware queue.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<HashMap<u64, Stream>>);

#[derive(Debug)]
pub(super) struct Stream {
    /// Held as long as the stream may be at work.
    _claim: Claim,
    /// Whether the rank made it, and so destroys it.
    own: bool,
}

impl Streams {
    pub(super) fn insert(&self, stream: u64, claim: Claim, own: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(stream, Stream { _claim: claim, own });
    }

    #[cfg(test)]
    pub(super) fn remove(&self, stream: u64) -> Option<Stream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&stream)
    }

    /// Whether it is one of them.
    pub(super) fn has(&self, stream: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&stream)
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
pub(super) fn handle(stream: u64) -> sys::CUstream {
    ptr::with_exposed_provenance_mut(stream as usize)
}
