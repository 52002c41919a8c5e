//! Warps and channels of DeepEP V2's kernels.
use super::buffer::{Buffer, PART_ALIGN};

/// Warps and channels of DeepEP V2's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warps {
    /// Copying warps of a dispatch block.
    pub dispatch: u64,
    /// Warps of a copy-epilogue block.
    pub copy: u64,
    /// Warps of a combine block.
    pub combine: u64,
    /// Warps of a reduce-epilogue block.
    pub reduce: u64,
    /// Channels of an SM with rails.
    pub channels: u64,
}

impl Warps {
    /// The warps of a block with `shared_memory` bytes, for exact scales of 1x128.
    pub fn new(buffer: &Buffer, experts: u32, shared_memory: u64) -> Self {
        let notify = (buffer.scale_out * buffer.scale_up + u64::from(experts)).next_multiple_of(128) * 4;
        let staged = buffer.dispatch_record(buffer.scales()) + 32;
        let combine_staged = buffer.combine_record() + 32;
        let dispatch = (shared_memory.saturating_sub(notify) / staged).min(28);
        let combine = (shared_memory / combine_staged).min(32);
        Self {
            dispatch,
            copy: (shared_memory / staged).min(32),
            combine,
            reduce: (shared_memory / (2 * buffer.hidden).next_multiple_of(PART_ALIGN).max(PART_ALIGN)).min(32),
            channels: (dispatch.min(combine) / 2).min(8),
        }
    }
}
