//! The regions of every rank's symmetric window.
use super::Sizes;
use super::received::{PARTS, ReceivedSpans};
use super::span::{Cursor, Span};
use crate::shape::Shape;
use crate::words::PlaceWords;

/// The regions of every rank's symmetric window. `S` is the number of row slots; each one's part of a region begins where a region may, if there
/// are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLayout {
    /// u64 `[1]`: the abort word.
    pub abort: Span,
    /// u64 `[S][2][ranks]`: entry words.
    pub entry: Span,
    /// u64 `[S][2][ranks]`: "my rows have landed", in a dispatch again.
    pub landed: Span,
    /// u64 `[S][2][ranks][blocks]`: "my block's rows have landed", or "the sums of my block are there"; only where rows lie by expert, or where
    /// compact rows may cross in FP8.
    pub blocks: Span,
    /// u64 `[S][ranks][blocks][first tokens][top_k][2]`: where the rows of a block's first tokens lie here; only where rows lie by expert.
    pub places: Span,
    /// u64 `[S][ranks]`: how much of each rank's rows has landed; not where rows lie by expert.
    pub landings: Span,
    /// u64 `[S][ranks]`: how many tokens each rank dispatches; only where rows have fixed places.
    pub token_words: Span,
    /// u64 `[S][ranks][max_tokens][top_k]`: which of this rank's experts each token selects; only where rows have fixed places.
    pub selection_words: Span,
    /// u64 `[S][ranks]`: how much of your expert outputs I have read.
    pub done: Span,
    /// u64 `[S][2][ranks][row_words]`: the count matrix.
    pub counts: Span,
    /// u32 `[slots][ranks]`: how many tokens each rank dispatched; only where rows lie by expert. Zero before the first, so that a combine
    /// behind a dispatch that failed looks at no token.
    pub tokens: Span,
    /// What a row brings with it, the row first.
    pub received: ReceivedSpans,
    /// BF16 `[S][rows][hidden]`: what the experts made of each row.
    pub expert_out: Span,
    /// BF16 `[S][max_tokens][min(ranks, top_k)][hidden]`: the sum of what the experts of each of its ranks made of this rank's token; only where rows lie by
    /// expert.
    pub sums: Span,
    /// `[S][rows][crossing_row_bytes]`: what the experts made of another rank's row, in FP8; only where compact rows may cross so.
    pub crossing: Span,
    /// i32 `[slots][max_tokens][top_k]`: the handles: destination rank, or -1. Where rows lie by expert; else they are private.
    pub send_rank: Span,
    /// u32 `[slots][max_tokens][top_k]`: the handles: row at the destination. Where rows lie by expert; else they are private.
    pub send_row: Span,
    /// f32 `[S][rows][top_k_stride]`: weights that travel back; only where there are such.
    pub returned: Span,
    /// Bytes of a row slot's words of even numbers: entry words, counts.
    even_bytes: [u64; 2],
    row_slots: u32,
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
        let shape = &sizes.shape;
        let ranks = u64::from(shape.ranks);
        let by_expert = |count| if shape.layout.is_by_expert() { count } else { 0 };
        let (slots, rows) = (u64::from(shape.routing_slots), shape.row_slots);
        let fixed = |count| if shape.layout.is_rank_major() { count } else { 0 };
        let told = Shape::worst_tokens(shape.ranks, shape.max_tokens).checked_mul(shape.top_k.into())?;
        let selections = by_expert(slots.checked_mul(u64::from(shape.max_tokens) * u64::from(shape.top_k))?);
        let blocks = shape.layout.is_by_expert() || shape.crossing_row_bytes() > 0;
        let places = PlaceWords::count(shape.ranks, shape.blocks, shape.top_k)?;
        let count_words = sizes.count_words()?;
        let mut at = Cursor::after(0);
        Some(Self {
            abort: at.span("abort word", 1, 8)?,
            entry: at.slots("entry words", rows, 2 * ranks, 8)?,
            landed: at.slots("landed words", rows, 2 * ranks, 8)?,
            blocks: at.slots("block words", rows, if blocks { 2 * ranks * u64::from(shape.blocks) } else { 0 }, 8)?,
            places: at.slots("place words", rows, by_expert(places), 8)?,
            landings: at.slots("landing counters", rows, ranks - by_expert(ranks), 8)?,
            token_words: at.slots("token words", rows, fixed(ranks), 8)?,
            selection_words: at.slots("selection words", rows, fixed(told), 8)?,
            done: at.slots("done words", rows, ranks, 8)?,
            counts: at.slots("count matrix", rows, (2 * ranks).checked_mul(count_words)?, 8)?,
            tokens: at.span("tokens of each rank", by_expert(slots * ranks), 4)?,
            received: ReceivedSpans::lay(&mut at, shape)?,
            expert_out: at.slots("expert outputs", rows, shape.rows, shape.bf16_row_bytes())?,
            sums: at.slots(
                "sums of expert outputs",
                rows,
                by_expert(Shape::worst_tokens(shape.ranks_of_token(), shape.max_tokens)),
                shape.bf16_row_bytes(),
            )?,
            crossing: at.slots(
                "expert outputs in FP8",
                rows,
                shape.rows.checked_mul(shape.crossing_row_bytes())?,
                1,
            )?,
            send_rank: at.span("handle for peers: ranks", selections, 4)?,
            send_row: at.span("handle for peers: rows", selections, 4)?,
            even_bytes: [ranks.checked_mul(8)?, ranks.checked_mul(count_words)?.checked_mul(8)?],
            row_slots: rows,
            returned: at.slots("returned weights", rows, shape.rows, shape.returned_row_bytes())?,
            bytes: at.bytes()?,
        })
    }

    /// The flags, counts and numbers of tokens, which must be zero before the first operation, but for [`Self::unused_even`]: the first so many bytes of
    /// the window.
    pub fn zeroed_bytes(&self) -> u64 {
        self.received.x.offset
    }

    /// Where stamped words of even numbers lie, whose bytes must be [`UNUSED_EVEN`](crate::words::UNUSED_EVEN) before the first
    /// operation: offsets and bytes.
    pub fn unused_even(&self) -> Vec<(u64, u64)> {
        let words = [self.entry, self.counts].into_iter().zip(self.even_bytes);
        let of_slots = |(words, bytes): (Span, u64)| {
            (0..self.row_slots).map(move |slot| (words.slot(slot, self.row_slots).offset, bytes))
        };
        words.flat_map(of_slots).collect()
    }

    /// All regions, in order.
    pub fn spans(&self) -> Vec<Span> {
        // Every field by its name: a new region that is not listed here does not compile.
        let Self {
            abort,
            entry,
            landed,
            blocks,
            places,
            landings,
            token_words,
            selection_words,
            done,
            counts,
            received,
            expert_out,
            sums,
            crossing,
            tokens,
            send_rank,
            send_row,
            returned,
            even_bytes: _,
            row_slots: _,
            bytes: _,
        } = *self;
        let mut spans = Vec::with_capacity(16 + PARTS);
        spans.extend([abort, entry, landed, blocks, places, landings]);
        spans.extend([token_words, selection_words, done, counts, tokens]);
        spans.extend(received.all());
        spans.extend([expert_out, sums, crossing, send_rank, send_row, returned]);
        spans
    }
}
