//! How much came for each expert, over many dispatches.
use crate::buffer::ElasticBuffer;
use crate::error::{Error, Result};
use crate::tensor::{DeviceTensor, read};

impl ElasticBuffer {
    /// How many selections came for each local expert, over all dispatches since the buffer was made or the last [reset](Self::reset_expert_statistics):
    /// for who balances the experts. Replays do not count, nor a dispatch that failed or did not fit, nor selections that were dropped. For a buffer
    /// [with statistics](crate::Config::with_expert_statistics). Waits for the stream.
    ///
    /// ```
    /// use epoxide::{Config, DispatchInput, ElasticBuffer, LocalGroup, Mode, bf16};
    ///
    /// LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
    ///     let mut buffer = ElasticBuffer::new(&comm, Config::new(4, 1, 64, 3).with_expert_statistics())?;
    ///     let (x, idx) = (comm.tensor(&[bf16::ONE; 3 * 64])?, comm.tensor(&[0i64, 3, 1])?);
    ///     let weights = comm.tensor(&[1.0f32; 3])?;
    ///     for _ in 0..5 {
    ///         buffer.dispatch(&DispatchInput::new(3, &x, &idx, &weights))?;
    ///     }
    ///     assert_eq!(buffer.expert_statistics()?, [[10, 10], [0, 10]][comm.rank() as usize]);
    ///     buffer.close()
    /// })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a buffer without statistics; the fault of an operation, or [`Error::Poisoned`].
    pub fn expert_statistics(&mut self) -> Result<Vec<u64>> {
        self.statistics()?;
        self.synchronize()?;
        let statistics = self.statistics()?;
        // SAFETY: all elements of the tensor, which only operations of this buffer write, on this stream, or on those that it was on before.
        unsafe { read(&self.comm, statistics.address(), statistics.len()) }
    }

    /// Begins [`Self::expert_statistics`] anew, from the next dispatch on. Enqueued.
    ///
    /// # Errors
    ///
    /// As [`Self::expert_statistics`].
    pub fn reset_expert_statistics(&mut self) -> Result<()> {
        self.check()?;
        let (statistics, inner) = (self.statistics()?, self.comm.inner());
        // SAFETY: all bytes of the tensor, which only operations of this buffer write, in the order of this stream.
        unsafe { inner.runtime.fill(statistics.address(), 0, statistics.len() * 8, inner.stream) }
    }

    fn statistics(&self) -> Result<&DeviceTensor<u64>> {
        let rule = "the buffer counts nothing: Config::with_expert_statistics makes one that does";
        self.statistics.as_ref().ok_or_else(|| Error::argument("expert_statistics", false, rule))
    }
}
