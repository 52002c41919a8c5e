//! Dispatches that did not fit: what the host knows of them, and whom it has told.
use epoxide_dsl::memory::Global;
use epoxide_kernels::dispatch::bound::{Bound, word};
use epoxide_kernels::shape::Layout;

use crate::buffer::{Dispatched, ElasticBuffer};
use crate::config::Overflow;
use crate::error::{Error, Result};
use crate::tensor::read;
use crate::transport::local::number;

/// What the host has learnt of dispatches that did not fit.
#[derive(Debug)]
pub(crate) struct Overflows {
    /// `[slots]`: that of the dispatch whose routing lies there.
    of_slot: Vec<Option<Error>>,
    /// Of an operation by such a routing, which nobody was told of yet.
    behind: Option<Error>,
}

impl Overflows {
    pub(crate) fn new(slots: u32) -> Self {
        Self { of_slot: vec![None; slots as usize], behind: None }
    }

    /// Another dispatch takes the slot.
    pub(crate) fn forget(&mut self, slot: u32) {
        self.of_slot[slot as usize] = None;
    }

    /// An operation goes by the routing in the slot: if that is none, and the host knows it, it is told so too.
    pub(crate) fn went_by(&mut self, slot: u32) {
        if let Some(error) = &self.of_slot[slot as usize] {
            self.behind.get_or_insert_with(|| error.clone());
        }
    }
}

/// Words of the private region.
const FILED: usize = 4;

impl ElasticBuffer {
    /// What a dispatch into `slot`, the next operation, takes of the bound.
    pub(crate) fn bound(&self, slot: u32) -> Bound {
        let shape = &self.layouts.shape;
        let (capacity, slabs) = match shape.layout {
            Layout::Slab { capacity } => (capacity, true),
            // A checked shape's rows have 32 bits.
            _ => (shape.rows as u32, false),
        };
        Bound {
            // SAFETY: the buffer's own memory, laid out for its shape.
            overflow: unsafe { Global::from_raw(self.private_span(self.layouts.private.overflow)) },
            operation: self.operations + 1,
            capacity,
            slabs: slabs.into(),
            drops: (self.config.overflow == Overflow::Drop).into(),
            slot,
        }
    }

    /// The first dispatch that did not fit and nobody was told of; the stream is idle. From then on it was told.
    pub(crate) fn untold_overflow(&mut self) -> Result<()> {
        if !self.layouts.shape.is_bounded() {
            return Ok(());
        }
        if let Some((operation, slot, error)) = self.filed_overflow()? {
            self.clear_filed_overflow()?;
            if self.routings.made_by(slot) == Some(operation) {
                self.overflows.of_slot[slot as usize] = Some(error.clone());
            }
            return Err(error);
        }
        self.overflows.behind.take().map_or(Ok(()), Err)
    }

    /// Checks that the dispatch of `handle`, which is done and left these words in its slot, fitted: then, how many selections were
    /// dropped, here and in all.
    pub(crate) fn fitted(&mut self, handle: &Dispatched, words: &[u32]) -> Result<[u32; 2]> {
        let Some(words) = words.first_chunk::<{ epoxide_kernels::dispatch::bound::WORDS as usize }>() else {
            return Ok([0; 2]);
        };
        let word = |which: u32| words[which as usize];
        if word(word::EXCEEDED) == 0 {
            return Ok([word(word::DROPPED), word(word::DROPPED_IN_ALL)]);
        }
        let epoch = u64::from(word(word::EPOCH_HIGH)) << 32 | u64::from(word(word::EPOCH_LOW));
        let error = self.exceeded([word(word::RANK), word(word::EXPERT)], word(word::WANTED), epoch);
        self.overflows.of_slot[handle.slot as usize] = Some(error.clone());
        // One telling is enough, but of another dispatch.
        let same = |behind: &mut Error| matches!(behind, Error::CapacityExceeded { epoch: of, .. } if *of == epoch);
        self.overflows.behind.take_if(same);
        if self.filed_overflow()?.is_some_and(|(operation, ..)| operation == handle.routing) {
            self.clear_filed_overflow()?;
        }
        Err(error)
    }

    fn exceeded(&self, [of_rank, expert]: [u32; 2], wanted: u32, epoch: u64) -> Error {
        let capacity = match self.layouts.shape.layout {
            Layout::Slab { capacity } => capacity.into(),
            _ => self.layouts.shape.rows,
        };
        let expert = (expert != u32::MAX).then_some(expert);
        Error::CapacityExceeded { of_rank, expert, wanted: wanted.into(), capacity, buffer: number(self.id()), epoch }
    }

    /// What the device has filed: the operation, its slot, and what it is.
    fn filed_overflow(&self) -> Result<Option<(u64, u32, Error)>> {
        // SAFETY: the buffer's own words, which this rank's dispatches alone write, and none runs.
        let words: Vec<u64> =
            unsafe { read(&self.comm, self.private_span(self.layouts.private.overflow), FILED as u64)? };
        let Some(&[operation, of, wanted_and_slot, epoch]) = words.first_chunk::<FILED>() else { return Ok(None) };
        let Some(operation) = operation.checked_sub(1) else { return Ok(None) };
        let [high, low] = [(of >> 32) as u32, of as u32];
        let error = self.exceeded([high, low], (wanted_and_slot >> 32) as u32, epoch);
        Ok(Some((operation, wanted_and_slot as u32, error)))
    }

    fn clear_filed_overflow(&self) -> Result<()> {
        let (inner, filed) = (self.comm.inner(), self.layouts.private.overflow);
        // SAFETY: a region of this rank's private memory, before whatever it enqueues next.
        unsafe { inner.runtime.fill(self.private_span(filed), 0, filed.bytes, inner.stream) }
    }
}
