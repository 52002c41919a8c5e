//! Where rows of fixed places are laid by expert, for who packs them.
use super::span::{Cursor, Span};
use crate::shape::Shape;

/// How many regions there are.
pub const PACKED: usize = 8;

/// What packed rows take, `[row slots]` each, in memory that no peer touches; nothing where rows are not packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedSpans {
    /// `[rows]` rows on the wire.
    pub x: Span,
    /// 32 bits `[rows][scale_stride]`.
    pub scales: Span,
    /// i32 `[rows]`: each row's local expert, or -1.
    pub topk: Span,
    /// f32 `[rows]`: gate weights.
    pub weights: Span,
    /// u64 `[rows]`: source rank in the upper half, token in the lower.
    pub source: Span,
    /// u32: received counts, as of a layout by expert.
    pub counts: Span,
    /// u32 `[ranks][max_tokens][top_k_stride]`: which packed row each selection has become.
    pub places: Span,
    /// BF16 `[rows][hidden]`: what the experts made of each row.
    pub expert_out: Span,
}

impl PackedSpans {
    /// Lays them one after another; `None` if they end beyond 64 bits.
    pub(super) fn lay(at: &mut Cursor, shape: &Shape) -> Option<Self> {
        let seen = shape.seen();
        let if_packed = |count: u64| if shape.is_packed() { count } else { 0 };
        let rows = if_packed(seen.rows);
        let selections = shape.rows.checked_mul(shape.top_k_stride().into())?;
        let counts = seen.received_counts(seen.max_local_experts());
        let mut of_slots = |name, count, bytes| at.slots(name, shape.row_slots, count, bytes);
        Some(Self {
            x: of_slots("packed rows", rows, seen.wire_row_bytes())?,
            scales: of_slots("packed scales", rows, u64::from(seen.scale_stride()) * 4)?,
            topk: of_slots("packed rows' experts", rows, 4)?,
            weights: of_slots("packed gate weights", rows, 4)?,
            source: of_slots("packed sources", rows, 8)?,
            counts: of_slots("counts of packed rows", if_packed(counts.into()), 4)?,
            places: of_slots("packed rows of selections", if_packed(selections), 4)?,
            expert_out: of_slots("packed expert outputs", rows, seen.bf16_row_bytes())?,
        })
    }

    /// All of them, in order.
    pub const fn all(&self) -> [Span; PACKED] {
        let &Self { x, scales, topk, weights, source, counts, places, expert_out } = self;
        [x, scales, topk, weights, source, counts, places, expert_out]
    }
}
