//! Where everything lies: the regions of a rank's window, the rank's private memory, and a block's shared memory.
//!
//! The host allocates by these numbers and the kernels address by them. A layout is `None` for a shape that is not valid;
//! within the limits of valid ones no product overflows 64 bits, nor 32 where the kernels use 32.
use epoxide_dsl::prelude::*;

use crate::placement::Placement;
use crate::protocol::DETAIL_WORDS;
use crate::quantize::GROUP;

/// Most selections of a token: one lane each.
pub const MAX_TOP_K: u32 = 32;
/// Most experts.
pub const MAX_EXPERTS: u32 = 2048;
/// Most ranks.
pub const MAX_RANKS: u32 = 64;
/// Most elements of a row.
pub const MAX_HIDDEN: u32 = 1 << 20;
/// Most tokens that a rank dispatches at once: a bad selection's key has 24 bits and more for the token.
pub const MAX_TOKENS: u32 = (1 << 24) - 1;
/// Most blocks of an operation.
pub const MAX_BLOCKS: u32 = 1024;
/// Words of a rank's own epochs and counters; see [`PrivateLayout::words`].
pub const PRIVATE_WORDS: u64 = 5;
/// Alignment of regions.
pub const REGION_ALIGN: u64 = 256;

/// How a row travels in dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WireFormat {
    /// BF16, as the caller gave it.
    Bf16,
    /// e4m3 with one f32 scale for every 128 elements, quantised by the kernel.
    Fp8,
}

/// The numbers that the layout follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Ranks in the NVLink domain.
    pub ranks: u32,
    /// Experts in all.
    pub experts: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// Elements of a row.
    pub hidden: u32,
    /// Most tokens that a rank dispatches at once.
    pub max_tokens: u32,
    /// Blocks of a dispatch or combine.
    pub blocks: u32,
    /// How rows travel in dispatch.
    pub format: WireFormat,
}

impl Shape {
    /// Bytes of a row on the wire, without scales.
    pub const fn wire_row_bytes(&self) -> u64 {
        match self.format {
            WireFormat::Bf16 => self.hidden as u64 * 2,
            WireFormat::Fp8 => self.hidden as u64,
        }
    }
    /// Bytes of a BF16 row.
    pub const fn bf16_row_bytes(&self) -> u64 {
        self.hidden as u64 * 2
    }
    /// f32 from one row's scales to the next's: a multiple of 16 bytes; 0 in BF16.
    pub const fn scale_stride(&self) -> u32 {
        match self.format {
            WireFormat::Bf16 => 0,
            WireFormat::Fp8 => self.hidden.div_ceil(GROUP).next_multiple_of(4),
        }
    }
    /// Words from one row's selections (or gate weights) to the next's: a multiple of 16 bytes.
    pub const fn top_k_stride(&self) -> u32 {
        self.top_k.next_multiple_of(4)
    }
    /// Most rows that a rank receives: one for every token of every rank.
    pub const fn max_rows(&self) -> u64 {
        self.ranks as u64 * self.max_tokens as u64
    }
    /// Whether every number is in the range that the kernels can work with; the layouts below are for such shapes.
    pub const fn is_valid(&self) -> bool {
        1 <= self.ranks
            && self.ranks <= MAX_RANKS
            && 1 <= self.experts
            && self.experts <= MAX_EXPERTS
            && 1 <= self.top_k
            && self.top_k <= MAX_TOP_K
            && self.top_k <= self.experts
            && 1 <= self.hidden
            && self.hidden <= MAX_HIDDEN
            && self.bf16_row_bytes().is_multiple_of(16)
            && self.wire_row_bytes().is_multiple_of(16)
            && 1 <= self.max_tokens
            && self.max_tokens <= MAX_TOKENS
            && 1 <= self.blocks
            && self.blocks <= MAX_BLOCKS
    }
    /// Words of a row of the count matrix.
    pub const fn count_words(&self) -> u64 {
        self.ranks as u64 + self.experts as u64 + DETAIL_WORDS as u64
    }
    /// Which rank owns which expert.
    pub const fn placement(&self) -> Placement {
        Placement::new(self.experts, self.ranks)
    }
    /// Most experts of one rank.
    pub const fn max_local_experts(&self) -> u32 {
        self.experts.div_ceil(self.ranks)
    }
}

/// A named piece of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// What it holds.
    pub name: &'static str,
    /// Bytes from the start.
    pub offset: u64,
    /// Its bytes, without padding.
    pub bytes: u64,
}

/// Lays spans one after another.
#[derive(Clone, Copy)]
struct Cursor {
    end: u64,
}

impl Cursor {
    fn span(&mut self, name: &'static str, count: u64, element: u64) -> Option<Span> {
        let offset = self.end.checked_next_multiple_of(REGION_ALIGN)?;
        let bytes = count.checked_mul(element)?;
        self.end = offset.checked_add(bytes)?;
        Some(Span { name, offset, bytes })
    }
}

/// The regions of every rank's symmetric window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLayout {
    /// u64 `[1]`: the abort word.
    pub abort: Span,
    /// u64 `[2][ranks]`: entry words.
    pub entry: Span,
    /// u64 `[2][ranks]`: "my rows have landed".
    pub landed: Span,
    /// u64 `[ranks]`: "I have read your expert outputs".
    pub done: Span,
    /// u64 `[2][ranks][count_words]`: the count matrix.
    pub counts: Span,
    /// `[max_rows]` rows on the wire.
    pub recv_x: Span,
    /// f32 `[max_rows][scale_stride]`.
    pub recv_scales: Span,
    /// i32 `[max_rows][top_k_stride]`: local expert indices, or -1.
    pub recv_topk: Span,
    /// f32 `[max_rows][top_k_stride]`: gate weights.
    pub recv_weights: Span,
    /// u64 `[max_rows]`: source rank in the upper half, token in the lower.
    pub recv_source: Span,
    /// BF16 `[max_rows][hidden]`: what the experts made of each row.
    pub expert_out: Span,
    /// Bytes of a window.
    pub bytes: u64,
}

impl WindowLayout {
    /// Lays out a window; `None` if the shape is not valid or the size overflows 64 bits.
    pub fn new(shape: &Shape) -> Option<Self> {
        if !shape.is_valid() {
            return None;
        }
        let ranks = u64::from(shape.ranks);
        let rows = shape.max_rows();
        let stride = u64::from(shape.top_k_stride());
        let mut at = Cursor { end: 0 };
        let abort = at.span("abort word", 1, 8)?;
        let entry = at.span("entry words", 2 * ranks, 8)?;
        let landed = at.span("landed words", 2 * ranks, 8)?;
        let done = at.span("done words", ranks, 8)?;
        let counts = at.span("count matrix", 2 * ranks * shape.count_words(), 8)?;
        let recv_x = at.span("received rows", rows, shape.wire_row_bytes())?;
        let recv_scales = at.span("received scales", rows, u64::from(shape.scale_stride()) * 4)?;
        let recv_topk = at.span("received selections", rows, stride * 4)?;
        let recv_weights = at.span("received gate weights", rows, stride * 4)?;
        let recv_source = at.span("received sources", rows, 8)?;
        let expert_out = at.span("expert outputs", rows, shape.bf16_row_bytes())?;
        let bytes = at.end.checked_next_multiple_of(REGION_ALIGN)?;
        Some(Self {
            abort,
            entry,
            landed,
            done,
            counts,
            recv_x,
            recv_scales,
            recv_topk,
            recv_weights,
            recv_source,
            expert_out,
            bytes,
        })
    }

    /// The flags and counts, which must be zero before the first operation: the first so many bytes of the window.
    pub fn zeroed_bytes(&self) -> u64 {
        self.recv_x.offset
    }

    /// All regions, in order.
    pub fn spans(&self) -> [Span; 11] {
        [
            self.abort,
            self.entry,
            self.landed,
            self.done,
            self.counts,
            self.recv_x,
            self.recv_scales,
            self.recv_topk,
            self.recv_weights,
            self.recv_source,
            self.expert_out,
        ]
    }
}

/// A rank's memory that no peer touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrivateLayout {
    /// u64 `[ranks]`: the windows' addresses.
    pub bases: Span,
    /// u64 `[PRIVATE_WORDS]`: epoch, epoch of the last combine, the grid's two counters, the claim of the fault record.
    pub words: Span,
    /// u32 `[blocks][ranks + experts]`: each block's counts.
    pub block_counts: Span,
    /// u64 `[blocks]`: each block's first bad selection.
    pub block_bad: Span,
    /// i32 `[max_tokens][top_k]`: the handle: destination rank, or -1.
    pub send_rank: Span,
    /// u32 `[max_tokens][top_k]`: the handle: row at the destination.
    pub send_row: Span,
    /// u32 `[1 + ranks + local experts]`: rows received: in all, by source, by local expert.
    pub recv_counts: Span,
    /// Its bytes.
    pub bytes: u64,
}

impl PrivateLayout {
    /// Lays out a rank's private memory; `None` if the shape is not valid or the size overflows 64 bits.
    pub fn new(shape: &Shape) -> Option<Self> {
        if !shape.is_valid() {
            return None;
        }
        let ranks = u64::from(shape.ranks);
        let blocks = u64::from(shape.blocks);
        let selections = u64::from(shape.max_tokens) * u64::from(shape.top_k);
        let mut at = Cursor { end: 0 };
        let bases = at.span("window addresses", ranks, 8)?;
        let words = at.span("epochs and counters", PRIVATE_WORDS, 8)?;
        let block_counts = at.span("block counts", blocks * (ranks + u64::from(shape.experts)), 4)?;
        let block_bad = at.span("block faults", blocks, 8)?;
        let send_rank = at.span("handle: ranks", selections, 4)?;
        let send_row = at.span("handle: rows", selections, 4)?;
        let recv_counts = at.span("received counts", 1 + ranks + u64::from(shape.max_local_experts()), 4)?;
        let bytes = at.end.checked_next_multiple_of(REGION_ALIGN)?;
        Some(Self { bases, words, block_counts, block_bad, send_rank, send_row, recv_counts, bytes })
    }

    /// All regions, in order.
    pub fn spans(&self) -> [Span; 7] {
        [self.bases, self.words, self.block_counts, self.block_bad, self.send_rank, self.send_row, self.recv_counts]
    }
}

/// A dispatch block's dynamic shared memory: mbarriers, row bases, counters, then a stage for each copying warp.
#[derive(Clone, Copy, Debug, KernelArg, PartialEq, Eq)]
#[repr(C)]
pub struct DispatchShared {
    /// Offset of u32 `[ranks]`: where this block's rows begin at each rank.
    pub bases: u32,
    /// Offset of u64 `[1]`: the first bad selection.
    pub bad: u32,
    /// Offset of u32 `[ranks + experts]`: counters.
    pub counters: u32,
    /// Offset of the stages.
    pub stages: u32,
    /// Bytes of a stage.
    pub stage_bytes: u32,
    /// Warps that have a stage.
    pub copy_warps: u32,
}

impl DispatchShared {
    /// Divides `available` bytes among at most `warps` (1 to 32) warps; `None` if the shape is not valid or not even one row
    /// fits.
    pub fn new(shape: &Shape, available: u32, warps: u32) -> Option<Self> {
        if !shape.is_valid() || !(1..=32).contains(&warps) {
            return None;
        }
        let bases = warps * 8;
        let bad = (bases + shape.ranks * 4).next_multiple_of(8);
        let counters = bad + 8;
        let stages = (counters + (shape.ranks + shape.experts) * 4).next_multiple_of(128);
        // A row arrives in BF16, and is quantised where it lies with two factors for each group beside it.
        let row = shape.bf16_row_bytes().checked_add(u64::from(shape.scale_stride()) * 8)?;
        let stage_bytes = u32::try_from(row.checked_next_multiple_of(128)?).ok()?;
        let fit = available.checked_sub(stages)? / stage_bytes;
        let copy_warps = if fit < warps { fit } else { warps };
        if copy_warps == 0 { None } else { Some(Self { bases, bad, counters, stages, stage_bytes, copy_warps }) }
    }

    /// Bytes of the block's dynamic shared memory.
    pub const fn bytes(&self) -> u32 {
        self.stages + self.stage_bytes * self.copy_warps
    }
}

/// The regions that dispatch writes at its peers, as a kernel takes them.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct RecvRegions {
    /// See [`WindowLayout::recv_x`].
    pub x: Region<u8>,
    /// See [`WindowLayout::recv_scales`].
    pub scales: Region<f32>,
    /// See [`WindowLayout::recv_topk`].
    pub topk: Region<i32>,
    /// See [`WindowLayout::recv_weights`].
    pub weights: Region<f32>,
    /// See [`WindowLayout::recv_source`].
    pub source: Region<u64>,
}

impl RecvRegions {
    /// The regions of `layout`.
    pub fn new(layout: &WindowLayout) -> Self {
        Self {
            x: Region::new(layout.recv_x.offset),
            scales: Region::new(layout.recv_scales.offset),
            topk: Region::new(layout.recv_topk.offset),
            weights: Region::new(layout.recv_weights.offset),
            source: Region::new(layout.recv_source.offset),
        }
    }
}
