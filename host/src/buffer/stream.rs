//! On which stream a buffer's operations are, and in which order with the caller's work.
use super::ElasticBuffer;
use crate::comm::Comm;
use crate::error::{Error, Result};
use crate::event::Event;

impl ElasticBuffer {
    /// Lets what the buffer enqueues from here on wait for an event: before a dispatch for its input, before a combine for the experts. The host
    /// does not wait. [`Comm::on_new_stream`] has an example.
    ///
    /// # Errors
    ///
    /// As [`Comm::wait`].
    pub fn wait(&mut self, event: &Event) -> Result<()> {
        self.comm.wait(event)
    }

    /// Marks the end of what the buffer has enqueued so far: behind a dispatch, its rows are there; behind a combine, the sums.
    ///
    /// # Errors
    ///
    /// As [`Comm::record`].
    pub fn record(&self) -> Result<Event> {
        self.comm.record()
    }

    /// Moves the buffer to the stream of `comm`, another handle of its rank: operations, copies and waits from here on are on that one, behind
    /// all that is on the old one now. A buffer is on the stream of the handle that it was made by.
    ///
    /// With one stream for everything, compute and operations, no event is needed; with a stream for each, see [`Comm::on_new_stream`].
    ///
    /// ```
    /// # use epoxide::{Config, DispatchInput, ElasticBuffer, LocalGroup, Mode, bf16};
    /// # LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
    /// // SAFETY: `comm`'s own stream is not used beside it.
    /// let engine = unsafe { comm.on_new_stream()? }; // or, on a GPU, comm.on_cuda_stream(stream)
    /// let mut buffer = ElasticBuffer::new(&comm, Config::new(4, 1, 64, 3))?;
    /// buffer.set_stream(&engine)?;
    /// let (x, idx) = (engine.tensor(&[bf16::ONE; 3 * 64])?, engine.tensor(&[0i64, 3, 1])?);
    /// let weights = engine.tensor(&[1.0f32; 3])?;
    /// buffer.dispatch(&DispatchInput::new(3, &x, &idx, &weights))?;
    /// engine.synchronize()?;
    /// # buffer.close()
    /// # })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a handle of another rank; [`Error::Cuda`] or [`Error::Simulator`] when the device failed.
    pub fn set_stream(&mut self, comm: &Comm) -> Result<()> {
        if !comm.is(&self.comm) {
            let value = format!("of rank {} on {}", comm.rank(), comm.device());
            return Err(Error::argument("comm", value, "a Comm of this buffer's rank, on whichever of its streams"));
        }
        let (from, to) = (self.comm.inner(), comm.inner());
        if from.stream != to.stream {
            to.streams.lead_on(&to.runtime, from.stream, to.stream)?;
        }
        if let Some(statistics) = &self.statistics {
            statistics.home().used_on(comm);
        }
        self.comm = comm.clone();
        Ok(())
    }

    /// Gives an operation that is about to be enqueued its turn among the rank's, which may be on other streams. Its call has [begun](Self::begin).
    pub(crate) fn take_turn(&self) -> Result<()> {
        let inner = self.comm.inner();
        inner.streams.take_turn(&inner.runtime, inner.stream, self.capture())
    }
}
