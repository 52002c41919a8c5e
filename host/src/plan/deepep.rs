//! DeepEP V2's own arithmetic: SMs, queue pairs, channels, warps and bytes.
//!
//! A named alternative beside our model, so that both can be held against what DeepEP publishes. The formulas are those of its
//! main branch at dd758ca; the constants are its own.
use super::expectation::distinct_groups;
use crate::error::{Error, Result};

/// What DeepEP's planner assumes of an SM's loads, in bytes per second.
pub const SM_READ: f64 = 200e9;
/// What DeepEP's planner assumes of an SM's stores, in bytes per second.
pub const SM_WRITE: f64 = 50e9;
/// What DeepEP's planner takes of the links' sum.
pub const NVLINK_SHARE: f64 = 0.9;
/// Channels of an operation at most, times SMs at most: padding of the scale-out slots.
const MAX_CHANNELS: u64 = 8 * 160;
/// Alignment of buffer and workspace.
const WINDOW_ALIGN: u64 = 2 << 20;
/// Alignment of a record's parts.
const PART_ALIGN: u64 = 32;

/// What DeepEP V2's planner takes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Setup {
    /// Ranks in all.
    pub ranks: u32,
    /// Ranks of an NVLink domain.
    pub per_domain: u32,
    /// Experts in all.
    pub experts: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// NVLink in one direction, bytes per second.
    pub nvlink: f64,
    /// RDMA in one direction, bytes per second.
    pub rdma: f64,
    /// SMs of the GPU.
    pub device_sms: u32,
    /// Whether rails and forwarders are used when there are several domains.
    pub hybrid: bool,
    /// Whether few SMs are preferred, so that compute can overlap.
    pub prefer_overlap: bool,
}

impl Setup {
    /// A setup with rails that prefers overlap.
    pub fn new(ranks: u32, per_domain: u32, experts: u32, top_k: u32, nvlink: f64, rdma: f64, device_sms: u32) -> Self {
        Self { ranks, per_domain, experts, top_k, nvlink, rdma, device_sms, hybrid: true, prefer_overlap: true }
    }

    fn check(&self) -> Result<()> {
        if self.ranks == 0 || self.ranks > 1024 {
            return Err(Error::argument("ranks", self.ranks, "DeepEP V2 has 1 to 1024 ranks"));
        }
        if self.per_domain == 0 || !self.ranks.is_multiple_of(self.per_domain) {
            return Err(Error::argument("per_domain", self.per_domain, "DeepEP V2 needs equal NVLink domains"));
        }
        if !self.experts.is_multiple_of(self.ranks) || self.experts > 2048 {
            let rule = format!("DeepEP V2 has at most 2048 experts, a multiple of its {} ranks", self.ranks);
            return Err(Error::argument("experts", self.experts, rule));
        }
        if self.top_k == 0 || self.top_k > self.experts.min(32) {
            return Err(Error::argument("top_k", self.top_k, "a token selects 1 to 32 experts, at most all"));
        }
        if self.device_sms == 0 || self.nvlink <= 0.0 {
            return Err(Error::argument("device_sms", self.device_sms, "a GPU has SMs and NVLink"));
        }
        Ok(())
    }

    /// Domains that rails join; 1 if there is one, or if every rank writes to every other directly.
    fn scale_out(&self) -> u32 {
        if self.hybrid { self.ranks / self.per_domain } else { 1 }
    }

    /// SMs of an operation (as DeepEP at dd758ca computes it).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for what DeepEP V2 does not support.
    ///
    /// ```
    /// use epoxide::plan::deepep::Setup;
    /// // H100 and ConnectX-7, two nodes of eight: the 12 SMs of DeepEP's README.
    /// assert_eq!(Setup::new(16, 8, 256, 8, 430e9, 50e9, 132).num_sms()?, 12);
    /// # Ok::<(), epoxide::Error>(())
    /// ```
    pub fn num_sms(&self) -> Result<u32> {
        self.check()?;
        let (ranks, scale_out) = (f64::from(self.ranks), f64::from(self.scale_out()));
        let per_domain = f64::from(self.per_domain);
        // All traffic is in units of what the epilogue reads.
        let x_r = distinct_groups(self.experts, self.top_k, self.ranks);
        let (mut read, mut write, rdma, nvlink);
        read = 1.0 / x_r;
        if self.scale_out() > 1 {
            let x_o = distinct_groups(self.experts, self.top_k, self.scale_out());
            write = 1.0 / x_r + x_o / x_r / scale_out + 1.0;
            rdma = x_o / x_r * (1.0 - 1.0 / scale_out);
            read += x_o / x_r;
            nvlink = 1.0 - 1.0 / per_domain;
        } else {
            write = per_domain / ranks;
            if self.ranks > self.per_domain {
                write += 1.0 / x_r;
            }
            nvlink = per_domain / ranks * (1.0 - 1.0 / per_domain);
            rdma = 0.0;
        }
        let rdma_bound = self.scale_out() > 1 && rdma / self.rdma > nvlink / self.nvlink;
        let (traffic, bandwidth) = if rdma_bound { (rdma, self.rdma) } else { (nvlink, self.nvlink) };
        let raw = if traffic > 0.0 {
            (bandwidth / traffic * read / SM_READ).max(bandwidth / traffic * write / SM_WRITE)
        } else {
            f64::from(self.device_sms)
        };
        // Saturates: an absurd bandwidth is capped by the device below.
        let sms = ((raw * 1.25).ceil() as u32).clamp(4, 1 << 20).next_multiple_of(2);
        let sms = if self.prefer_overlap { sms } else { sms.max(64) };
        Ok(sms.min(self.device_sms))
    }

    /// Queue pairs of an operation of `num_sms` SMs, of the `allocated` ones.
    pub fn num_qps(&self, num_sms: u32, allocated: u32) -> u32 {
        let wanted = if self.scale_out() > 1 { 16 * num_sms + 1 } else { num_sms.min(9) };
        wanted.min(allocated)
    }
}

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
