//! The streams of a rank, and in which order its operations are that lie on several of them.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::life::Life;
use crate::runtime::{RawStream, Runtime};

/// Most streams of a rank: a tensor has a bit for each.
const MOST: usize = u64::BITS as usize;

/// The streams of a rank, each with its number; the rank's own is the first. They stay as long as the rank.
pub(crate) struct Streams {
    /// Never held while anything is waited for: a tensor that is dropped looks here.
    all: Mutex<Vec<RawStream>>,
    /// Held by the thread whose operation has its turn, also while that waits for a stream to come by: who is next would wait for it anyway.
    order: Mutex<Order>,
}

/// In which order the rank's operations are.
#[derive(Default)]
struct Order {
    /// Where the rank's last operation is, or was led on to.
    last: Option<RawStream>,
    captures: Vec<Capture>,
}

/// A capture that has operations of the rank.
struct Capture {
    id: u64,
    /// The stream of the last one.
    last: RawStream,
    /// Whose they are.
    buffers: Vec<Arc<Life>>,
}

impl Streams {
    /// Those of a rank that has one.
    pub(crate) fn new(first: RawStream) -> Arc<Self> {
        Arc::new(Self { all: Mutex::new(vec![first]), order: Mutex::default() })
    }

    /// The number of a stream of the rank's runtime, which is the rank's from here on.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when it would be one too many.
    pub(crate) fn add(&self, stream: RawStream) -> Result<u32> {
        let mut all = self.known();
        if let Some(number) = all.iter().position(|known| *known == stream) {
            return Ok(number as u32);
        }
        if all.len() == MOST {
            let rule = format!("a rank has at most {MOST} streams, which stay as long as the rank");
            return Err(Error::argument("stream", format!("number {}", MOST + 1), rule));
        }
        all.push(stream);
        Ok(all.len() as u32 - 1)
    }

    /// All of them, by number.
    pub(crate) fn all(&self) -> Vec<RawStream> {
        self.known().clone()
    }

    /// Puts an operation that is about to be enqueued on `stream` behind the rank's last one, if that is on another stream.
    ///
    /// Operations of a rank run one at a time: its buffers have SMs reserved for one of them, and the protocol's words are for one after
    /// the other.
    /// What is captured runs when its graph is launched, so that operations of one capture are put in order with each other, and the launch with
    /// others. `capture` is that which the stream is in.
    ///
    /// # Errors
    ///
    /// [`Error::Capturing`] behind an operation on a stream that is being captured now.
    pub(crate) fn take_turn(&self, runtime: &Runtime, stream: RawStream, capture: Option<u64>) -> Result<()> {
        let mut order = self.order();
        if let Some(id) = capture {
            let of = order.capture(runtime, id, stream);
            let last = std::mem::replace(&mut of.last, stream);
            return if last == stream { Ok(()) } else { follow(runtime, last, stream) };
        }
        if let Some(last) = order.last.filter(|last| *last != stream) {
            if runtime.capture(last)?.is_some() {
                return Err(Error::capturing("an operation on another stream"));
            }
            follow(runtime, last, stream)?;
        }
        order.last = Some(stream);
        Ok(())
    }

    /// Puts what comes on the stream `to` behind everything that is on `from`.
    ///
    /// # Errors
    ///
    /// [`Error::Capturing`] where `to` is being captured, and `from` is not, or in another capture.
    pub(crate) fn lead_on(&self, runtime: &Runtime, from: RawStream, to: RawStream) -> Result<()> {
        let mut order = self.order();
        let capture = runtime.capture(from)?;
        // A stream of no capture comes into that whose event it waits for.
        let other = runtime.capture(to)?;
        if other.is_some() && other != capture {
            return Err(Error::capturing("moving a buffer to another stream"));
        }
        follow(runtime, from, to)?;
        match capture {
            Some(id) => {
                let of = order.capture(runtime, id, from);
                if of.last == from {
                    of.last = to;
                }
            }
            None if order.last == Some(from) => order.last = Some(to),
            None => {}
        }
        Ok(())
    }

    /// Notes that a buffer has operations in this capture.
    pub(crate) fn captures(&self, runtime: &Runtime, id: u64, stream: RawStream, buffer: &Arc<Life>) {
        let mut order = self.order();
        let buffers = &mut order.capture(runtime, id, stream).buffers;
        if !buffers.iter().any(|other| Arc::ptr_eq(other, buffer)) {
            buffers.push(Arc::clone(buffer));
        }
    }

    /// Whose operations are in a capture, which is over.
    pub(crate) fn captured(&self, id: u64) -> Vec<Arc<Life>> {
        let captures = &mut self.order().captures;
        let over = captures.iter().position(|capture| capture.id == id);
        over.map_or(Vec::new(), |at| captures.swap_remove(at).buffers)
    }

    fn known(&self) -> MutexGuard<'_, Vec<RawStream>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Order {
    /// What is known of a capture, in which `stream` is.
    fn capture(&mut self, runtime: &Runtime, id: u64, stream: RawStream) -> &mut Capture {
        let at = self.captures.iter().position(|capture| capture.id == id).unwrap_or_else(|| {
            // Of those that the caller's own means have ended nobody says so.
            self.captures.retain(|capture| matches!(runtime.capture(capture.last), Ok(Some(id)) if id == capture.id));
            self.captures.push(Capture { id, last: stream, buffers: Vec::new() });
            self.captures.len() - 1
        });
        &mut self.captures[at]
    }
}

fn follow(runtime: &Runtime, from: RawStream, to: RawStream) -> Result<()> {
    runtime.wait_event(to, &runtime.record_event(from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_known_once_and_there_are_not_too_many() {
        let streams = Streams::new(RawStream::Cuda(0));
        for number in (0..MOST as u64).chain([7]) {
            assert_eq!(u64::from(streams.add(RawStream::Cuda(number)).unwrap()), number);
        }
        let refused = streams.add(RawStream::Cuda(MOST as u64)).unwrap_err().to_string();
        assert!(refused.starts_with("stream = number 65: a rank has at most 64 streams"), "{refused}");
        assert_eq!(streams.all().len(), MOST);
    }

    /// A tensor that is dropped meanwhile, and the end of a buffer, wait for nobody.
    #[test]
    fn which_streams_there_are_is_known_while_an_operation_waits_in_its_turn() {
        let streams = Streams::new(RawStream::Cuda(0));
        let waits = streams.order();
        let (known, told) = std::sync::mpsc::channel();
        let others = Arc::clone(&streams);
        let asks =
            std::thread::spawn(move || known.send((others.add(RawStream::Cuda(1)).unwrap(), others.all().len())));
        let answer = told.recv_timeout(std::time::Duration::from_secs(5));
        drop(waits);
        asks.join().unwrap().unwrap();
        assert_eq!(answer, Ok((1, 2)));
    }
}
