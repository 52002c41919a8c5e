//! Points in a rank's stream, and the time between them.
use crate::comm::Comm;
use crate::error::Result;
use crate::runtime::RawEvent;

/// A point in a rank's stream, for other streams to wait for.
#[derive(Clone, Debug)]
pub struct Event {
    raw: RawEvent,
}

impl Event {
    /// Whether everything before this point is done, without waiting; false also when the device failed. On a simulated machine with a
    /// seed it changes only while host threads wait.
    pub fn is_reached(&self) -> bool {
        self.raw.is_reached()
    }
}

impl Comm {
    /// Marks this point of the stream of this handle.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`](crate::Error::Cuda) or [`Error::Simulator`](crate::Error::Simulator) when the device failed.
    pub fn record(&self) -> Result<Event> {
        let inner = self.inner();
        Ok(Event { raw: inner.runtime.record_event(inner.stream)? })
    }

    /// Lets the stream of this handle wait for an event of any stream of any rank of the process. What is enqueued there from here on comes
    /// after it; the host does not wait.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`](crate::Error::Cuda) or [`Error::Simulator`](crate::Error::Simulator) when the device failed;
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for another runtime's event.
    pub fn wait(&self, event: &Event) -> Result<()> {
        let inner = self.inner();
        inner.runtime.wait_event(inner.stream, &event.raw)
    }

    /// Milliseconds from one event to another of the same device, both reached; wall time on the simulated GPU.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) or [`Error::Cuda`](crate::Error::Cuda) when one is not reached yet,
    /// or of another device.
    pub fn elapsed_ms(&self, from: &Event, to: &Event) -> Result<f64> {
        self.inner().runtime.elapsed_ms(&from.raw, &to.raw)
    }
}
