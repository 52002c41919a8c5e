//! Streams of a rank beside its first, made here or the caller's.
use super::{RawStream, Runtime, of_another};
use crate::error::Result;

impl Runtime {
    /// Makes a further stream, which synchronises with no other.
    pub(crate) fn create_stream(&self) -> Result<RawStream> {
        match self {
            Self::Sim(runtime) => runtime.create_stream().map(RawStream::Sim),
            Self::Cuda(runtime) => runtime.create_stream().map(RawStream::Cuda),
        }
    }

    /// Takes a `CUstream` of the caller's.
    ///
    /// # Safety
    ///
    /// On a GPU it is a live one, and lives as long as this rank.
    pub(crate) unsafe fn adopt_stream(&self, stream: u64) -> Result<RawStream> {
        match self {
            Self::Sim(_) => Err(of_another("stream", self, "a CUDA stream")),
            // SAFETY: the caller's promise.
            Self::Cuda(runtime) => unsafe { runtime.adopt_stream(stream) }.map(RawStream::Cuda),
        }
    }
}
