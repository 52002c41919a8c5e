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
pub const PRIVATE_WORDS: u64 = 6;
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
    /// What a row is made of where it is received, the row itself first: each part's name and bytes.
    pub const fn received(&self) -> [(&'static str, u64); 5] {
        let selections = self.top_k_stride() as u64 * 4;
        [
            ("received rows", self.wire_row_bytes()),
            ("received scales", self.scale_stride() as u64 * 4),
            ("received selections", selections),
            ("received gate weights", selections),
            ("received sources", 8),
        ]
    }
    /// Bytes of a row with all that it brings to its receiver.
    pub fn received_bytes(&self) -> u64 {
        self.received().iter().map(|(_, bytes)| bytes).sum()
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
    /// Which rank owns which expert.
    pub const fn placement(&self) -> Placement {
        Placement::new(self.experts, self.ranks)
    }
    /// Most experts of one rank.
    pub const fn max_local_experts(&self) -> u32 {
        self.experts.div_ceil(self.ranks)
    }
}

/// What the sizes of all regions follow from. A buffer's follow from its [`Shape`]; the planner gives others for what is not built
/// yet, and so gets the same regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// A valid shape, but that it may have more ranks or blocks than the kernels take.
    pub shape: Shape,
    /// Most rows that a rank receives.
    pub rows: u64,
    /// Ranks and experts, together, whose rows are counted.
    pub counters: u64,
}

impl Sizes {
    /// The sizes of a buffer; `None` if the shape is not valid.
    pub const fn new(shape: &Shape) -> Option<Self> {
        if !shape.is_valid() {
            return None;
        }
        Some(Self { shape: *shape, rows: shape.max_rows(), counters: shape.ranks as u64 + shape.experts as u64 })
    }

    /// Words of a row of the count matrix; `None` if they are more than 64 bits count.
    pub const fn count_words(&self) -> Option<u64> {
        self.counters.checked_add(DETAIL_WORDS as u64)
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
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    end: u64,
}

impl Cursor {
    /// Begins where the first `end` bytes are taken.
    pub const fn after(end: u64) -> Self {
        Self { end }
    }

    /// Lays `count` elements of `element` bytes; `None` if they end beyond 64 bits.
    pub fn span(&mut self, name: &'static str, count: u64, element: u64) -> Option<Span> {
        let offset = self.end.checked_next_multiple_of(REGION_ALIGN)?;
        let bytes = count.checked_mul(element)?;
        self.end = offset.checked_add(bytes)?;
        Some(Span { name, offset, bytes })
    }

    /// Bytes of all that lies here, padded to whole regions.
    pub fn bytes(&self) -> Option<u64> {
        self.end.checked_next_multiple_of(REGION_ALIGN)
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
        Self::of(&Sizes::new(shape)?)
    }

    /// Lays out a window of these sizes; `None` if it overflows 64 bits.
    pub fn of(sizes: &Sizes) -> Option<Self> {
        let &Sizes { shape, rows, .. } = sizes;
        let ranks = u64::from(shape.ranks);
        let mut at = Cursor::after(0);
        let abort = at.span("abort word", 1, 8)?;
        let entry = at.span("entry words", 2 * ranks, 8)?;
        let landed = at.span("landed words", 2 * ranks, 8)?;
        let done = at.span("done words", ranks, 8)?;
        let counts = at.span("count matrix", (2 * ranks).checked_mul(sizes.count_words()?)?, 8)?;
        let [x, scales, topk, weights, source] = shape.received();
        let mut received = |(name, bytes)| at.span(name, rows, bytes);
        let (recv_x, recv_scales) = (received(x)?, received(scales)?);
        let (recv_topk, recv_weights, recv_source) = (received(topk)?, received(weights)?, received(source)?);
        let expert_out = at.span("expert outputs", rows, shape.bf16_row_bytes())?;
        let bytes = at.bytes()?;
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

    /// The flags and counts, which must be zero before the first operation, but for [`Self::unused_even`]: the first so many bytes of
    /// the window.
    pub fn zeroed_bytes(&self) -> u64 {
        self.recv_x.offset
    }

    /// Where stamped words of even numbers lie, whose bytes must be [`UNUSED_EVEN`](crate::protocol::UNUSED_EVEN) before the first
    /// operation: offsets and bytes.
    pub fn unused_even(&self) -> [(u64, u64); 2] {
        [self.entry, self.counts].map(|words| (words.offset, words.bytes / 2))
    }

    /// What a row brings with it, the row first: the regions that dispatch writes at its peers. A [`RecvRegions`] has the same.
    pub fn received(&self) -> [Span; 5] {
        [self.recv_x, self.recv_scales, self.recv_topk, self.recv_weights, self.recv_source]
    }

    /// All regions, in order.
    pub fn spans(&self) -> [Span; 11] {
        // Every field by its name: a new region that is not listed here does not compile.
        let Self {
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
            bytes: _,
        } = *self;
        [abort, entry, landed, done, counts, recv_x, recv_scales, recv_topk, recv_weights, recv_source, expert_out]
    }
}

/// A rank's memory that no peer touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrivateLayout {
    /// u64 `[ranks]`: the windows' addresses.
    pub bases: Span,
    /// u64 `[PRIVATE_WORDS]`: epoch, epoch of the last combine, the grid's two counters, the claim of the fault record, dispatches.
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
        Self::of(&Sizes::new(shape)?)
    }

    /// Lays out private memory of these sizes; `None` if it overflows 64 bits.
    pub fn of(sizes: &Sizes) -> Option<Self> {
        let &Sizes { shape, counters, .. } = sizes;
        let ranks = u64::from(shape.ranks);
        let blocks = u64::from(shape.blocks);
        let selections = u64::from(shape.max_tokens) * u64::from(shape.top_k);
        let mut at = Cursor::after(0);
        let bases = at.span("window addresses", ranks, 8)?;
        let words = at.span("epochs and counters", PRIVATE_WORDS, 8)?;
        let block_counts = at.span("block counts", blocks.checked_mul(counters)?, 4)?;
        let block_bad = at.span("block faults", blocks, 8)?;
        let send_rank = at.span("handle: ranks", selections, 4)?;
        let send_row = at.span("handle: rows", selections, 4)?;
        let recv_counts = at.span("received counts", 1 + ranks + u64::from(shape.max_local_experts()), 4)?;
        let bytes = at.bytes()?;
        Some(Self { bases, words, block_counts, block_bad, send_rank, send_row, recv_counts, bytes })
    }

    /// All regions, in order.
    pub fn spans(&self) -> [Span; 7] {
        let Self { bases, words, block_counts, block_bad, send_rank, send_row, recv_counts, bytes: _ } = *self;
        [bases, words, block_counts, block_bad, send_rank, send_row, recv_counts]
    }
}

/// A dispatch block's dynamic shared memory: mbarriers, row bases, the first bad selection, counters, then for each copying warp one stage
/// (BF16) or two (FP8).
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
    /// Stages of a warp that copies.
    pub stages_of_warp: u32,
    /// Warps that copy.
    pub copy_warps: u32,
    /// Fills the struct to a multiple of 8 bytes.
    pub reserved: u32,
}

impl DispatchShared {
    /// Divides `available` bytes among at most `warps` (1 to 32) warps; `None` if not even one can copy. The shape is valid, but
    /// that it may have more ranks than the kernels take.
    pub fn new(shape: &Shape, available: u32, warps: u32) -> Option<Self> {
        let bases = warps * 8;
        let bad = shape.ranks.checked_mul(4)?.checked_add(bases)?.checked_next_multiple_of(8)?;
        let counters = bad.checked_add(8)?;
        let counted = shape.ranks.checked_add(shape.experts)?.checked_mul(4)?;
        let stages = counters.checked_add(counted)?.checked_next_multiple_of(128)?;
        let (stage, stages_of_warp) = Self::stages(shape)?;
        let of_warp = stage.checked_mul(stages_of_warp)?;
        let fit = available.checked_sub(stages)? / of_warp;
        let copy_warps = if fit < warps { fit } else { warps };
        if copy_warps == 0 {
            return None;
        }
        Some(Self { bases, bad, counters, stages, stage_bytes: stage, stages_of_warp, copy_warps, reserved: 0 })
    }

    /// Bytes of a stage, and stages of a warp: a row in BF16 is loaded into its one stage and copied from there; a row in FP8 is
    /// quantised into one of two, codes and scales, while the other is copied. `None` if a row's bytes overflow 32 bits.
    pub fn stages(shape: &Shape) -> Option<(u32, u32)> {
        let row = shape.wire_row_bytes() + shape.scale_stride() as u64 * 4;
        let bytes = u32::try_from(row.checked_next_multiple_of(128)?).ok()?;
        Some((bytes, if shape.scale_stride() == 0 { 1 } else { 2 }))
    }

    /// Bytes of the block's dynamic shared memory.
    pub const fn bytes(&self) -> u32 {
        self.stages + self.stage_bytes * self.stages_of_warp * self.copy_warps
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
        let [x, scales, topk, weights, source] = layout.received().map(|region| region.offset);
        Self {
            x: Region::new(x),
            scales: Region::new(scales),
            topk: Region::new(topk),
            weights: Region::new(weights),
            source: Region::new(source),
        }
    }
}
