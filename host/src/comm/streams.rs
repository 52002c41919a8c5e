//! Further streams of a rank, as handles whose work goes there.
use super::{Comm, OnStream};
use crate::error::Result;
use crate::runtime::RawStream;

impl Comm {
    /// Makes a further stream of this rank, and a handle whose work goes there: tensors, copies, kernels, and the operations of a buffer that is
    /// made by it or [moved](crate::ElasticBuffer::set_stream) to it. So an engine computes on one stream while rows travel on the other.
    ///
    /// The two are put in order by events, [`Self::record`] and [`Self::wait`], where they share something; the host waits for neither:
    ///
    /// ```
    /// use epoxide::{CombineInput, Config, DispatchInput, ElasticBuffer, LocalGroup, Mode, bf16};
    ///
    /// LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
    ///     // SAFETY: the events below order what both streams use.
    ///     let compute = unsafe { comm.on_new_stream()? }; // or, of the engine's own: comm.on_cuda_stream(stream)
    ///     let mut buffer = ElasticBuffer::new(&comm, Config::new(4, 1, 64, 3))?;
    ///     let (idx, weights) = (compute.tensor(&[0i64, 3, 1])?, compute.tensor(&[1.0f32; 3])?);
    ///     let (x, outputs) = (compute.tensor(&[bf16::ONE; 3 * 64])?, compute.tensor(&[bf16::ONE; 6 * 64])?);
    ///     let mut y = compute.empty::<bf16>(3 * 64)?;
    ///
    ///     buffer.wait(&compute.record()?)?; // what the dispatch reads is there
    ///     let handle = buffer.dispatch(&DispatchInput::new(3, &x, &idx, &weights))?;
    ///     let arrived = buffer.record()?;
    ///     // ... kernels on `compute` that need no rows of it: they run while the rows travel ...
    ///     compute.wait(&arrived)?;
    ///     // ... the experts, on `compute`: they write `outputs` ...
    ///     buffer.wait(&compute.record()?)?;
    ///     buffer.combine(&handle, CombineInput::new(&outputs, &mut y))?;
    ///     compute.wait(&buffer.record()?)?;
    ///
    ///     assert_eq!(y.to_vec()?, [bf16::ONE; 3 * 64]); // waits for `compute`, and so for the combine
    ///     buffer.close()
    /// })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// What is in order without the caller's events: the operations of a rank, on whatever streams, which run one at a time; and memory, which a
    /// dropped tensor leaves to others when the streams have come by whose operations used it.
    ///
    /// The host waits, each time for one stream, only in calls that copy to it or from it: of a tensor for that of its [`Comm`], of a buffer
    /// ([`received`](crate::ElasticBuffer::received), [`recv_counts`](crate::ElasticBuffer::recv_counts),
    /// [`write_expert_outputs`](crate::ElasticBuffer::write_expert_outputs)) for the buffer's; and in `synchronize`, and `close`, which waits for all.
    ///
    /// The stream stays as long as the rank does. A GPU has 8 of them unless `CUDA_DEVICE_MAX_CONNECTIONS` says otherwise, for all its ranks.
    ///
    /// # Errors
    ///
    /// [`Error::DoesNotFit`](crate::Error::DoesNotFit) when the GPU has no more hardware queues;
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a 65th stream; [`Error::Cuda`](crate::Error::Cuda).
    ///
    /// # Safety
    ///
    /// Where work on two streams of a rank touches the same memory and one of it writes, an event between the two orders it. That is the
    /// caller's to see to, for every call that takes a tensor, a handle of a dispatch or an address, of which it says on which stream it
    /// works: that of the buffer, or that of the [`Comm`] of the tensor.
    pub unsafe fn on_new_stream(&self) -> Result<Self> {
        self.on(self.inner().runtime.create_stream()?)
    }

    /// [`Self::on_new_stream`] for a `CUstream` of the caller's. One that the rank has already stays as it is.
    ///
    /// # Errors
    ///
    /// As [`Self::on_new_stream`]; [`Error::InvalidArgument`](crate::Error::InvalidArgument) on the simulated GPU, and for a stream that is of
    /// another context than the GPU's primary one, or not non-blocking.
    ///
    /// # Safety
    ///
    /// As for [`Self::on_new_stream`]. The stream is a live `CUstream`, is no other rank's, and outlives the rank: its [`Comm`]s, buffers and
    /// tensors.
    pub unsafe fn on_cuda_stream(&self, stream: u64) -> Result<Self> {
        // SAFETY: the caller's promise.
        self.on(unsafe { self.inner().runtime.adopt_stream(stream)? })
    }

    fn on(&self, stream: RawStream) -> Result<Self> {
        let stream_number = self.inner().streams.add(stream)?;
        Ok(Self { inner: OnStream { stream, stream_number, ..self.inner.clone() } })
    }
}
