//! Captures on the simulated GPU: what is enqueued on a stream that is captured is written down, and enqueued when the graph is launched.
//!
//! A graph's work runs in the order in which it was captured, on whichever streams that was. A GPU may run what is not ordered side by side.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use epoxide_sim::{Event, Launch, Stream};

use crate::error::{Error, Result};

/// What a graph does.
#[derive(Clone)]
pub(crate) enum Work {
    Launch(Launch),
    Fill { to: u64, byte: u8, bytes: u64 },
}

/// A graph of the simulated GPU.
#[derive(Clone)]
pub(crate) struct SimGraph(Arc<[Work]>);

impl SimGraph {
    /// What is enqueued, in order.
    pub(crate) fn work(&self) -> &[Work] {
        &self.0
    }
}

impl std::fmt::Debug for SimGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimGraph({} launches and fills)", self.0.len())
    }
}

/// A capture that goes on.
struct Recording {
    id: u64,
    /// The first is the one that it began on; others have waited for its events.
    streams: Vec<Stream>,
    events: Vec<Event>,
    work: Vec<Work>,
}

/// The captures of a rank.
#[derive(Default)]
pub(crate) struct Recordings(Mutex<Known>);

#[derive(Default)]
struct Known {
    begun: u64,
    open: Vec<Recording>,
}

impl Known {
    fn of(&mut self, stream: Stream) -> Option<&mut Recording> {
        self.open.iter_mut().find(|recording| recording.streams.contains(&stream))
    }
}

impl Recordings {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the capture that the stream is in.
    pub(crate) fn capture(&self, stream: Stream) -> Option<u64> {
        self.known().of(stream).map(|recording| recording.id)
    }

    /// Begins a capture.
    ///
    /// # Errors
    ///
    /// [`Error::Capturing`] where the stream is in one.
    pub(crate) fn begin(&self, stream: Stream) -> Result<()> {
        let mut known = self.known();
        if known.of(stream).is_some() {
            return Err(Error::capturing("a capture"));
        }
        known.begun += 1;
        let (id, streams) = (known.begun, vec![stream]);
        known.open.push(Recording { id, streams, events: Vec::new(), work: Vec::new() });
        Ok(())
    }

    /// Ends the capture that began on the stream.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] where none did.
    pub(crate) fn end(&self, stream: Stream) -> Result<SimGraph> {
        let mut known = self.known();
        match known.open.iter().position(|recording| recording.streams[0] == stream) {
            Some(at) => Ok(SimGraph(known.open.swap_remove(at).work.into())),
            None => Err(Error::argument("stream", format!("{stream:?}"), "a capture began on it")),
        }
    }

    /// Writes down what would be enqueued; false where the stream is in no capture.
    pub(crate) fn take(&self, stream: Stream, work: impl FnOnce() -> Work) -> bool {
        let mut known = self.known();
        let recording = known.of(stream);
        let taken = recording.is_some();
        if let Some(recording) = recording {
            recording.work.push(work());
        }
        taken
    }

    /// An event was recorded on the stream: in a capture it is the capture's.
    pub(crate) fn recorded(&self, stream: Stream, event: &Event) {
        if let Some(recording) = self.known().of(stream) {
            recording.events.push(event.clone());
        }
    }

    /// The stream waits for an event; whether that is a matter of captures alone. One that waits for a capture's event is in it from there on.
    ///
    /// # Errors
    ///
    /// [`Error::Capturing`] for an event of before the capture, or of another one.
    pub(crate) fn joins(&self, stream: Stream, event: &Event) -> Result<bool> {
        let mut known = self.known();
        let own = known.of(stream).map(|recording| recording.id);
        let has = |recording: &&mut Recording| recording.events.iter().any(|known| known.is_same(event));
        match (own, known.open.iter_mut().find(has)) {
            (None, None) => Ok(false),
            (None, Some(recording)) => {
                recording.streams.push(stream);
                Ok(true)
            }
            (Some(id), Some(recording)) if recording.id == id => Ok(true),
            _ => Err(Error::capturing("waiting for an event of before it")),
        }
    }
}
