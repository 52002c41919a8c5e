//! The bytes of DeepEP V2's token record, buffer and workspace.
use crate::error::{Error, Result};

/// Channels of an operation at most, times SMs at most: padding of the scale-out slots.
const MAX_CHANNELS: u64 = 8 * 160;
/// Alignment of buffer and workspace.
const WINDOW_ALIGN: u64 = 2 << 20;
/// Alignment of a record's parts.
pub(super) const PART_ALIGN: u64 = 32;

/// The bytes of DeepEP V2's token record and buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Buffer {
    /// Most tokens of a rank.
    pub tokens: u64,
    /// Elements of a row.
    pub hidden: u64,
    /// Selections of a token.
    pub top_k: u64,
    /// Whether rows are FP8 in dispatch.
    pub fp8: bool,
    /// Nodes that rails join.
    pub scale_out: u64,
    /// Ranks of a node.
    pub scale_up: u64,
    /// Whether every rank is reached over NVLink when there is one node.
    pub pure_nvlink: bool,
    /// Whether rows of one rank are reduced before they travel in combine.
    pub multiple_reduction: bool,
}

/// What a DeepEP V2 buffer takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BufferBytes {
    /// Bytes of dispatch's regions: scale-up receive, scale-out send, scale-out receive.
    pub dispatch: [u64; 3],
    /// Bytes of combine's regions, in the same order.
    pub combine: [u64; 3],
    /// The buffer: the larger of the two, in steps of 2 MiB.
    pub buffer: u64,
    /// The workspace in front of it.
    pub workspace: u64,
}

impl Buffer {
    /// A buffer of nodes that are NVLink domains, with multiple reductions.
    pub fn new(tokens: u32, hidden: u32, top_k: u32, fp8: bool, scale_out: u32, scale_up: u32) -> Self {
        Self {
            tokens: tokens.into(),
            hidden: hidden.into(),
            top_k: top_k.into(),
            fp8,
            scale_out: scale_out.into(),
            scale_up: scale_up.into(),
            pure_nvlink: true,
            multiple_reduction: true,
        }
    }

    /// Bytes of a record in dispatch with `packs` 4-byte scales.
    pub fn dispatch_record(&self, packs: u64) -> u64 {
        let row = self.hidden * if self.fp8 { 1 } else { 2 };
        let metadata = 8 * self.top_k + 4 * (1 + self.top_k);
        row.next_multiple_of(PART_ALIGN)
            + (4 * packs).next_multiple_of(PART_ALIGN)
            + metadata.next_multiple_of(PART_ALIGN)
    }

    /// Scales of a row when there is one f32 for 128 elements.
    pub fn scales(&self) -> u64 {
        if self.fp8 { self.hidden.div_ceil(128) } else { 0 }
    }

    /// Bytes of a record in combine.
    pub fn combine_record(&self) -> u64 {
        (2 * self.hidden).next_multiple_of(PART_ALIGN) + (8 * self.top_k).next_multiple_of(PART_ALIGN)
    }

    /// Slots of a token in a combine over `ways` senders.
    fn slots(&self, ways: u64) -> u64 {
        if self.multiple_reduction { ways.min(self.top_k) } else { self.top_k }
    }

    /// What it takes (sections 3.1 and 3.2). Sizing counts one scale for 32 elements, four times too many for 1x128.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when it does not fit in 64 bits.
    pub fn bytes(&self) -> Result<BufferBytes> {
        self.checked().ok_or_else(|| Error::argument("tokens", self.tokens, "the buffer's size must fit in 64 bits"))
    }

    fn checked(&self) -> Option<BufferBytes> {
        let dispatch = self.dispatch_record(if self.fp8 { self.hidden.div_ceil(32) } else { 0 });
        let combine = self.combine_record();
        let ranks = self.scale_out.checked_mul(self.scale_up)?;
        let rows = |count: u64, record: u64| count.checked_mul(self.tokens)?.checked_mul(record);
        let copies = if self.multiple_reduction { 1 } else { self.top_k };
        let sent = u64::from(!(self.pure_nvlink && self.scale_out == 1));
        let padded = self.scale_out.checked_mul(self.tokens.checked_add(MAX_CHANNELS)?)?;
        let (d, c) = if self.scale_out == 1 {
            (
                [rows(ranks, dispatch)?, rows(sent, dispatch)?, 0],
                [rows(self.slots(ranks), combine)?, rows(sent * ranks * copies, combine)?, 0],
            )
        } else {
            (
                [rows(ranks, dispatch)?, rows(1, dispatch)?, padded.checked_mul(dispatch)?],
                [
                    rows(self.slots(self.scale_up).checked_mul(self.scale_out)?, combine)?,
                    copies.checked_mul(padded)?.checked_mul(combine)?,
                    rows(self.slots(self.scale_out), combine)?,
                ],
            )
        };
        let sum = |regions: [u64; 3]| regions.into_iter().try_fold(0u64, u64::checked_add);
        let buffer = sum(d)?.max(sum(c)?).checked_next_multiple_of(WINDOW_ALIGN)?;
        Some(BufferBytes {
            dispatch: d,
            combine: c,
            buffer,
            workspace: workspace_bytes().next_multiple_of(WINDOW_ALIGN),
        })
    }
}

/// Bytes of DeepEP V2's workspace before alignment.
pub fn workspace_bytes() -> u64 {
    let (ranks, experts, channels) = (1024, 2048, 1024);
    16 + (ranks + experts) * 8
        + (ranks + experts) * 8 * 2
        + ranks * 4
        + (ranks + experts) * 4 * 2
        + ranks * channels * 8
        + ranks * channels * 4
        + 2 * 2 * 8
        + 33 * ranks * 4
}
