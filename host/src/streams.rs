//! The streams of a rank, and in which order its operations are that lie on several of them.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::runtime::{RawStream, Runtime};

/// Most streams of a rank: a tensor has a bit for each.
const MOST: usize = u64::BITS as usize;

/// The streams of a rank, each with its number; the rank's own is the first. They stay as long as the rank.
pub(crate) struct Streams {
    known: Mutex<Known>,
}

struct Known {
    all: Vec<RawStream>,
    /// Where the rank's last operation is, or was led on to.
    last: Option<RawStream>,
}

impl Streams {
    /// Those of a rank that has one.
    pub(crate) fn new(first: RawStream) -> Arc<Self> {
        Arc::new(Self { known: Mutex::new(Known { all: vec![first], last: None }) })
    }

    /// The number of a stream of the rank's runtime, which is the rank's from here on.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when it would be one too many.
    pub(crate) fn add(&self, stream: RawStream) -> Result<u32> {
        let all = &mut self.known().all;
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
        self.known().all.clone()
    }

    /// Puts an operation that is about to be enqueued on `stream` behind the rank's last one, if that is on another stream.
    ///
    /// Operations of a rank run one at a time: its buffers have SMs reserved for one of them, and the protocol's words are for one after
    /// the other.
    pub(crate) fn take_turn(&self, runtime: &Runtime, stream: RawStream) -> Result<()> {
        let mut known = self.known();
        if let Some(last) = known.last.filter(|last| *last != stream) {
            follow(runtime, last, stream)?;
        }
        known.last = Some(stream);
        Ok(())
    }

    /// Puts what comes on the stream `to` behind everything that is on `from`.
    pub(crate) fn lead_on(&self, runtime: &Runtime, from: RawStream, to: RawStream) -> Result<()> {
        let mut known = self.known();
        follow(runtime, from, to)?;
        if known.last == Some(from) {
            known.last = Some(to);
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
}
