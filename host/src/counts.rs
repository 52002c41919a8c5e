//! What a dispatch brings, for a host thread that does not wait for the stream.
use std::time::Duration;

use epoxide_dsl::fault::STATE_EMPTY;
use epoxide_kernels::words::{Known, Number};

use crate::buffer::{Dispatched, ElasticBuffer};
use crate::error::{Error, Result};
use crate::handle::RecvCounts;
use crate::mirror::{Mirror, Seen};
use crate::transport::local::number;

impl ElasticBuffer {
    /// What `handle` brings here, if this rank knows it yet: [`Self::recv_counts`] without waiting for anything. All ranks have told by then how
    /// many rows they send; the rows themselves may not have landed. Only of a dispatch that did not fit a bound is the error known once the
    /// stream is idle, which is waited for.
    ///
    /// For a buffer [with a mirror](crate::Config::with_counts_mirror). The counts are there, also after the combine and for a replay, until
    /// another dispatch takes the handle's routing slot. On a simulated machine with a seed nothing moves while a host thread runs: there
    /// [`Self::wait_counts`] waits.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a buffer without a mirror; [`Error::StaleHandle`]; [`Error::CapacityExceeded`] of a dispatch that did not
    /// fit; the fault of an operation, or [`Error::Poisoned`].
    pub fn try_counts(&mut self, handle: &Dispatched) -> Result<Option<RecvCounts>> {
        Ok(self.look_for_counts(handle)?.ok())
    }

    /// [`Self::try_counts`] that waits until the counts are known: on the host, for at most `deadline` (of virtual time on the simulated GPU), and
    /// not for the stream. A fault ends it too.
    ///
    /// An engine so learns how large its tensors must be, and which experts have nothing to do, while the rows travel:
    ///
    /// ```
    /// use std::time::Duration;
    /// use epoxide::{Config, DispatchInput, ElasticBuffer, LocalGroup, Mode, bf16};
    ///
    /// LocalGroup::simulated(2, Mode::Fast { workers: 0 })?.run(|comm| {
    ///     let mut buffer = ElasticBuffer::new(&comm, Config::new(4, 1, 64, 3).with_counts_mirror())?;
    ///     let (x, idx) = (comm.tensor(&[bf16::ONE; 3 * 64])?, comm.tensor(&[0i64, 3, 1])?);
    ///     let weights = comm.tensor(&[1.0f32; 3])?;
    ///     let handle = buffer.dispatch(&DispatchInput::new(3, &x, &idx, &weights))?;
    ///     let counts = buffer.wait_counts(&handle, Duration::from_secs(1))?;
    ///     let (rows, by_expert) = if comm.rank() == 0 { (4, [2, 2]) } else { (2, [0, 2]) };
    ///     assert_eq!((counts.rows, counts.by_expert), (rows, by_expert.to_vec()));
    ///     buffer.close()
    /// })?;
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::CountsNotKnown`] at the deadline; and as [`Self::try_counts`].
    pub fn wait_counts(&mut self, handle: &Dispatched, deadline: Duration) -> Result<RecvCounts> {
        let mut left = deadline;
        loop {
            let seen = match self.look_for_counts(handle)? {
                Ok(counts) => return Ok(counts),
                Err(seen) => seen,
            };
            let inner = self.comm.inner();
            if left.is_zero() {
                return Err(Error::CountsNotKnown {
                    rank: inner.rank,
                    buffer: number(self.id()),
                    dispatch: Number::from_word(self.routings.number(handle)).count,
                    waited_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
                    virtual_time: inner.runtime.has_virtual_time(),
                });
            }
            let words = [(self.mirror()?.slot(handle.routing_slot()), seen), (self.record, STATE_EMPTY)];
            // SAFETY: this runtime allocated both with the buffer, whose kernels write them as words.
            left = unsafe { inner.runtime.wait_mapped(&words, left)? };
        }
    }

    /// The counts, or else the slot's first word.
    fn look_for_counts(&mut self, handle: &Dispatched) -> Result<Result<RecvCounts, u64>> {
        self.mirror()?;
        self.check()?;
        self.routings.check(self.id(), handle)?;
        let dispatch = self.routings.number(handle);
        // SAFETY: this runtime allocated it with the buffer.
        let seen = unsafe { self.mirror()?.read(&self.comm.inner().runtime, handle.routing_slot(), dispatch)? };
        let counts = match seen {
            Seen::Counts(words) => self.indexed(RecvCounts::of(&words, self.comm.size(), self.local_experts().1)),
            Seen::NotYet(word) => {
                let failed = Known::from_word(word) == (Known { dispatch, failed: true });
                if failed && self.layouts.shape.is_bounded() {
                    // No fault was found, so it did not fit. Its words lie in device memory: that is a wait for the stream.
                    self.settle()?;
                    let words = self.words_of_slot(handle.routing_slot())?;
                    self.fitted(handle, &words)?;
                }
                return Ok(Err(word));
            }
        };
        if self.check_handle("try_counts", handle).is_ok() {
            self.rows.of_mut(handle.row_slot).received_rows = Some(counts.rows.into());
        }
        Ok(Ok(counts))
    }

    /// For this project's tests: the first word of `handle`'s slot, as the device wrote it last.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a buffer without a mirror.
    #[doc(hidden)]
    pub fn test_mirror_word(&self, handle: &Dispatched) -> Result<u64> {
        let mut word = [0];
        let slot = self.mirror()?.slot(handle.routing_slot());
        // SAFETY: this runtime allocated it with the buffer, whose kernels write whole words.
        unsafe { self.comm.inner().runtime.peek_mapped(slot, &mut word)? };
        Ok(word[0])
    }

    fn mirror(&self) -> Result<&Mirror> {
        let rule = "the buffer tells no counts: Config::with_counts_mirror makes one that does";
        self.mirror.as_ref().ok_or_else(|| Error::argument("counts_mirror", false, rule))
    }
}
