//! A rank's memory that no peer touches.
use super::Sizes;
use super::packed::{PACKED, PackedSpans};
use super::span::{Cursor, Span};
use crate::shape::Shape;
use crate::words::BlockCounts;

/// A rank's memory that no peer touches. `S` is the number of row slots; each one's part of a region begins where a region may, if there are
/// several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrivateLayout {
    /// u64 `[ranks]`: the windows' addresses.
    pub bases: Span,
    /// u64 `[S][1]`: the last operation's epoch.
    pub epoch: Span,
    /// u64 `[S][1]`: the last dispatch's number.
    pub dispatches: Span,
    /// u64 `[S][1]`: how many combines there were.
    pub combines: Span,
    /// u64 `[S][1]`: the epoch of the last combine behind which the slot was free at every rank; only where rows have fixed places.
    pub freed: Span,
    /// u64 `[S][2]`: the grid's counters.
    pub grid: Span,
    /// u64 `[1]`: the claim of the fault record.
    pub claim: Span,
    /// u64 `[S][blocks][ranks + 2 + experts]`: each block's counts, with its first bad selection.
    pub block_counts: Span,
    /// u64 `[slots]`: the handles: the number of the dispatch whose routing lies in the slot; 0 where there is none.
    pub routing: Span,
    /// i32 `[slots][max_tokens][top_k]`: the handles: destination rank, or -1. Where rows lie by expert
    /// handles lie in the window, and this is `[S][max_tokens][top_k]` for a dispatch's own use, as is the next.
    pub send_rank: Span,
    /// u32 `[slots][max_tokens][top_k]`: the handles: row at the destination.
    pub send_row: Span,
    /// u32 `[slots][1 + ranks + local experts]`: rows received: in all, by source, by local expert; where rows lie by expert, each slot's has
    /// `[local experts + 1]` more: where each expert's begin, and the end; where there is a bound, what [`crate::bound`] says.
    pub recv_counts: Span,
    /// u32 `[slots][index_entries]`: the rows of each expert, each slot's where a region may begin; only where rows have fixed places, or are compact
    /// and indexed.
    pub index: Span,
    /// u32 `[slots][local experts + 1]`: where each expert's part of it begins, and the end; only where rows are compact and indexed.
    pub index_offsets: Span,
    /// u64 `[3]`: the first dispatch that did not fit, of those that nobody was told of; only where there is a bound.
    pub overflow: Span,
    /// u32 `[slots][local experts]`: how many of an expert's last rows are marked as padding; only where each has a slab.
    pub marked: Span,
    /// 32 bits `[S][columns][scale_column_stride]`: received scales by column; only where they lie so.
    pub scale_columns: Span,
    /// Rows laid by expert; only where rows of fixed places are packed.
    pub packed: PackedSpans,
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
        let &Sizes { shape, counters } = sizes;
        let ranks = u64::from(shape.ranks);
        let blocks = u64::from(shape.blocks);
        let slots = u64::from(shape.routing_slots);
        let of_slot = u64::from(shape.max_tokens) * u64::from(shape.top_k);
        let rows = shape.row_slots;
        let handles = |at: &mut Cursor, name| match shape.layout.is_by_expert() {
            true => at.slots(name, rows, of_slot, 4),
            false => at.span(name, of_slot.checked_mul(slots)?, 4),
        };
        let counts = shape.received_counts(shape.max_local_experts());
        let mut at = Cursor::after(0);
        Some(Self {
            bases: at.span("window addresses", ranks, 8)?,
            epoch: at.slots("epoch", rows, 1, 8)?,
            dispatches: at.slots("dispatches", rows, 1, 8)?,
            combines: at.slots("combines", rows, 1, 8)?,
            freed: at.slots("epoch of the combine that freed", rows, shape.layout.is_rank_major().into(), 8)?,
            grid: at.slots("grid counters", rows, 2, 8)?,
            claim: at.span("claim of the fault record", 1, 8)?,
            block_counts: at.slots("block counts", rows, blocks.checked_mul(BlockCounts::of_block(counters)?)?, 8)?,
            routing: at.span("handle: dispatches", slots, 8)?,
            send_rank: handles(&mut at, "handle: ranks")?,
            send_row: handles(&mut at, "handle: rows")?,
            recv_counts: at.span("received counts", slots.checked_mul(counts.into())?, 4)?,
            index: at.slots("index by expert", shape.routing_slots, shape.index_entries(), 4)?,
            index_offsets: at.slots("index by expert: offsets", shape.routing_slots, shape.index_offsets(), 4)?,
            overflow: at.span("dispatch that did not fit", if shape.is_bounded() { 3 } else { 0 }, 8)?,
            marked: at.span(
                "marked padding of slabs",
                if shape.layout.is_slab() { slots * u64::from(shape.max_local_experts()) } else { 0 },
                4,
            )?,
            scale_columns: at.slots(
                "scales by column",
                rows,
                shape.scale_columns().checked_mul(shape.scale_column_stride())?,
                4,
            )?,
            packed: PackedSpans::lay(&mut at, &shape)?,
            bytes: at.bytes()?,
        })
    }

    /// All regions, in order; those of packed rows where rows are packed.
    pub fn spans(&self) -> Vec<Span> {
        let Self {
            bases,
            epoch,
            dispatches,
            combines,
            freed,
            grid,
            claim,
            block_counts,
            routing,
            send_rank,
            send_row,
            recv_counts,
            index,
            index_offsets,
            overflow,
            marked,
            scale_columns,
            packed,
            bytes: _,
        } = *self;
        let mut spans = Vec::with_capacity(17 + PACKED);
        spans.extend([
            bases,
            epoch,
            dispatches,
            combines,
            freed,
            grid,
            claim,
            block_counts,
            routing,
            send_rank,
            send_row,
            recv_counts,
            index,
            index_offsets,
            overflow,
            marked,
            scale_columns,
        ]);
        spans.extend(packed.all().into_iter().filter(|span| span.bytes > 0));
        spans
    }
}
