//! Dispatches that did not fit: what the device has filed of them, as an [`Error`].
use epoxide_dsl::memory::Global;
use epoxide_kernels::bound::{Bound, WORDS, word};
use epoxide_kernels::shape::Layout;

use crate::buffer::{Dispatched, ElasticBuffer};
use crate::config::Overflow;
use crate::error::{Error, Result};
use crate::tensor::read;
use crate::transport::local::number;

/// Words of the private region.
const FILED: usize = 3;

impl ElasticBuffer {
    /// What a dispatch into routing slot `slot` takes of the bound.
    pub(crate) fn bound(&self, slot: u32) -> Bound {
        let shape = &self.layouts.shape;
        if !shape.is_bounded() {
            // SAFETY: no address, which nothing accesses.
            let (overflow, marked) = unsafe { (Global::from_raw(0), Global::from_raw(0)) };
            return Bound { overflow, marked, capacity: u32::MAX, slabs: 0, drops: 0, reserved: 0 };
        }
        let (capacity, slabs) = match shape.layout {
            Layout::Slab { capacity } => (capacity, true),
            // A checked shape's rows have 32 bits.
            _ => (shape.rows as u32, false),
        };
        Bound {
            // SAFETY: the buffer's own memory, laid out for its shape.
            overflow: unsafe { Global::from_raw(self.private_span(self.layouts.private.overflow)) },
            // SAFETY: as above; of other layouts no byte, which nothing accesses.
            marked: unsafe { Global::from_raw(self.private_slot(self.layouts.private.marked, slot)) },
            capacity,
            slabs: slabs.into(),
            drops: (self.config.overflow == Overflow::Drop).into(),
            reserved: 0,
        }
    }

    /// The first dispatch that did not fit and nobody was told of; the stream is idle. From then on it was told.
    pub(crate) fn untold_overflow(&mut self) -> Result<()> {
        if !self.layouts.shape.is_bounded() {
            return Ok(());
        }
        if let Some((_, error)) = self.filed_overflow()? {
            self.clear_filed_overflow()?;
            // There may be later ones, whose combine is to come.
            for slot in 0..self.layouts.shape.routing_slots {
                if let Some((_, error)) = self.overflow_of_slot(slot)? {
                    self.overflows.learn(slot, &error);
                }
            }
            return Err(error);
        }
        self.overflows.untold().map_or(Ok(()), Err)
    }

    /// Checks that the dispatch of `handle`, which is done and left these words in its slot, fitted: then, how many selections were
    /// dropped, here and in all.
    pub(crate) fn fitted(&mut self, handle: &Dispatched, words: &[u32]) -> Result<[u32; 2]> {
        if let Some((epoch, error)) = self.said(words) {
            self.overflows.learn(handle.slot, &error);
            self.overflows.told(&error);
            if self.filed_overflow()?.is_some_and(|(filed, _)| filed == epoch) {
                self.clear_filed_overflow()?;
            }
            return Err(error);
        }
        let word = |which: u32| words.get(which as usize).copied().unwrap_or(0);
        Ok([word(word::DROPPED), word(word::DROPPED_IN_ALL)])
    }

    /// Of the dispatch whose routing lies in `slot`, that it did not fit; the stream is idle.
    fn overflow_of_slot(&self, slot: u32) -> Result<Option<(u64, Error)>> {
        Ok(self.said(&self.words_of_slot(slot)?))
    }

    /// The words behind the counts of `slot`, in a buffer with a bound; the stream is idle.
    pub(crate) fn words_of_slot(&self, slot: u32) -> Result<Vec<u32>> {
        let (_, experts) = self.local_experts();
        let before = self.layouts.shape.received_counts(experts) - WORDS;
        let counts = self.private_slot(self.layouts.private.recv_counts, slot);
        // SAFETY: the buffer's own words, which this rank's dispatches alone write, and none runs.
        unsafe { read(&self.comm, counts + 4 * u64::from(before), WORDS.into()) }
    }

    /// What the words behind a slot's counts say: the dispatch's epoch and the error, if it did not fit.
    fn said(&self, words: &[u32]) -> Option<(u64, Error)> {
        let words = words.first_chunk::<{ WORDS as usize }>()?;
        let word = |which: u32| words[which as usize];
        if word(word::EXCEEDED) == 0 {
            return None;
        }
        let epoch = u64::from(word(word::EPOCH_HIGH)) << 32 | u64::from(word(word::EPOCH_LOW));
        Some((epoch, self.exceeded([word(word::RANK), word(word::EXPERT)], word(word::WANTED), epoch)))
    }

    fn exceeded(&self, [of_rank, expert]: [u32; 2], wanted: u32, epoch: u64) -> Error {
        let capacity = match self.layouts.shape.layout {
            Layout::Slab { capacity } => capacity.into(),
            _ => self.layouts.shape.rows,
        };
        let expert = (expert != u32::MAX).then_some(expert);
        let (buffer, (row_slot, epoch)) = (number(self.id()), self.config.operation(epoch));
        Error::CapacityExceeded { of_rank, expert, wanted: wanted.into(), capacity, buffer, row_slot, epoch }
    }

    /// What the device has filed: the dispatch's epoch and the error.
    fn filed_overflow(&self) -> Result<Option<(u64, Error)>> {
        // SAFETY: the buffer's own words, which this rank's dispatches alone write, and none runs.
        let words: Vec<u64> =
            unsafe { read(&self.comm, self.private_span(self.layouts.private.overflow), FILED as u64)? };
        Ok(match words.first_chunk::<FILED>() {
            None | Some([0, ..]) => None,
            Some(&[epoch, of, wanted]) => {
                Some((epoch, self.exceeded([(of >> 32) as u32, of as u32], wanted as u32, epoch)))
            }
        })
    }

    fn clear_filed_overflow(&self) -> Result<()> {
        let (inner, filed) = (self.comm.inner(), self.layouts.private.overflow);
        // SAFETY: a region of this rank's private memory, before whatever it enqueues next.
        unsafe { inner.runtime.fill(self.private_span(filed), 0, filed.bytes, inner.stream) }
    }
}
