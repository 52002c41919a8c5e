//! Without whom a buffer goes on, and what is told of selections of their experts.
use super::ElasticBuffer;
use crate::error::{Error, Result};
use crate::transport::local::number;

impl ElasticBuffer {
    /// The ranks that it goes on without, since it was made or [reset](Self::reset) last.
    pub fn masked(&self) -> Vec<u32> {
        let ranks = self.masked.as_ref().map_or(0, |masked| masked.ranks);
        (0..self.comm.size()).filter(|rank| ranks >> rank & 1 == 1).collect()
    }

    /// Tells of dropped selections that were not told of, where the user wants that. The stream is idle.
    pub(super) fn untold_masked(&mut self) -> Result<()> {
        if !self.config.refuse_masked_experts || self.masked.is_none() {
            return Ok(());
        }
        let (dropped, masked, buffer) = (self.masked_selections()?, self.masked(), number(self.id()));
        let told = self.masked.as_mut().map_or(dropped, |masked| std::mem::replace(&mut masked.told, dropped));
        match dropped - told {
            0 => Ok(()),
            selections => Err(Error::MaskedExperts { rank: self.comm.rank(), selections, masked, buffer }),
        }
    }
}
