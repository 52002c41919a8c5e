//! What a buffer needs.
use std::fmt;

use epoxide_kernels::shape::Shape;
use epoxide_plan::RegionBytes;

use super::Config;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;

/// Bytes in front of the selections of a dispatch that lie without those of masked ranks' experts: who is masked, and how many selections were dropped.
pub(crate) const BEFORE_SELECTIONS: u64 = 256;

/// What a buffer needs on every rank, by region. `Display` prints a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BytesNeeded {
    /// All regions.
    pub regions: Vec<RegionBytes>,
    /// Bytes of the symmetric window.
    pub window: u64,
    /// Bytes that no peer touches. What lies in an allocation of its own, behind the others in `regions`, begins there at 0.
    pub private: u64,
    /// Bytes of which a window is a whole number: 1, or what ranks that are processes map memory by ([`Self::with_granularity`]).
    pub granularity: u64,
}

impl BytesNeeded {
    /// The same, where windows are a whole number of `bytes`: 2 MiB between processes on GPUs.
    pub fn with_granularity(self, bytes: u64) -> Self {
        Self { granularity: bytes.max(1), ..self }
    }

    /// Bytes that the window takes on the device.
    pub fn window_taken(&self) -> u64 {
        self.window.next_multiple_of(self.granularity)
    }

    /// What window and private memory take together.
    pub fn total(&self) -> u64 {
        self.window_taken() + self.private
    }
}

impl fmt::Display for BytesNeeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for region in &self.regions {
            let kind = if region.symmetric { "window " } else { "private" };
            writeln!(f, "{kind}  {:<24} {:>16}", region.name, region.bytes)?;
        }
        let padding = self.window_taken() - self.window;
        if padding > 0 {
            writeln!(f, "window   {:<24} {padding:>16}", "up to what is mapped")?;
        }
        write!(f, "total    {:<24} {:>16}", "", self.total())
    }
}

/// Computes what a buffer of `config` needs on each of `ranks` ranks; `num_sms` is what the device would choose where the
/// configuration leaves it open. Needs no GPU.
///
/// # Errors
///
/// [`Error::InvalidArgument`] when the configuration breaks a rule, [`Error::BufferTooSmall`] when it exceeds its own
/// `max_window_bytes`.
///
/// ```
/// use epoxide::{Config, bytes_needed};
/// let bytes = bytes_needed(&Config::new(256, 8, 7168, 4096), 8, 16)?;
/// // 8 x 4096 rows of 14336 bytes, once received and once from the experts, dominate.
/// assert!(bytes.total() > 2 * 8 * 4096 * 14336);
/// println!("{bytes}");
/// # Ok::<(), epoxide::Error>(())
/// ```
pub fn bytes_needed(config: &Config, ranks: u32, num_sms: u32) -> Result<BytesNeeded> {
    let blocks = if config.num_sms == 0 { num_sms } else { config.num_sms };
    let layouts = config.layouts(ranks, blocks)?;
    let beside = config.beside(&layouts.shape);
    let private = layouts.private.bytes + beside.iter().map(|region| region.bytes).sum::<u64>();
    let regions = layouts.regions().into_iter().chain(beside).collect();
    Ok(BytesNeeded { regions, window: layouts.window.bytes, private, granularity: 1 })
}

/// What a buffer takes that goes on without masked ranks.
pub(crate) fn masked_bytes(shape: &Shape) -> u64 {
    BEFORE_SELECTIONS + 4 * u64::from(shape.max_tokens) * u64::from(shape.top_k)
}
