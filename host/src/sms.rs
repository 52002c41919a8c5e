//! A rank's SMs: as many as its largest buffer needs, since its stream runs one operation at a time.
use crate::error::Result;
use crate::runtime::{Reservation, Runtime};

/// What a rank has reserved of its device's SMs.
#[derive(Default)]
pub(crate) struct ReservedSms {
    /// SMs of an operation of each buffer that was neither refused nor closed. One that was dropped may still be at work.
    buffers: Vec<u32>,
    /// Nothing on the simulated GPU, where a rank has a device of its own.
    claim: Option<Reservation>,
}

impl ReservedSms {
    fn most(&self) -> u32 {
        self.buffers.iter().copied().max().unwrap_or(0)
    }

    /// Reserves SMs for a buffer whose operations have `blocks` blocks. What was reserved stays so if this fails.
    ///
    /// # Errors
    ///
    /// [`Error::DoesNotFit`](crate::Error::DoesNotFit) when the ranks of the GPU ask for more than it has.
    pub(crate) fn reserve(&mut self, runtime: &Runtime, blocks: u32) -> Result<()> {
        let most = self.most().max(blocks);
        match &mut self.claim {
            Some(claim) => claim.resize(most)?,
            claim => *claim = runtime.reserve_sms(most)?,
        }
        self.buffers.push(blocks);
        Ok(())
    }

    /// Gives back what [`Self::reserve`] took for a buffer with no work left.
    pub(crate) fn release(&mut self, blocks: u32) {
        if let Some(i) = self.buffers.iter().position(|b| *b == blocks) {
            self.buffers.swap_remove(i);
        }
        let most = self.most();
        if let Some(claim) = &mut self.claim {
            claim.shrink(most);
        }
    }

    /// The claim of a rank that is gone, for whoever waits for its work.
    pub(crate) fn leave(&mut self) -> Option<Reservation> {
        self.claim.take()
    }
}
