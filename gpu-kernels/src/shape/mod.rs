//! The numbers that every layout follows from, and the rules that they keep.
mod check;
mod choices;
mod limits;
mod numbers;
mod rule;

pub use choices::{Layout, Overflow, Packing, ScaleLayout, WireFormat};
pub use limits::{
    MAX_ALIGNMENT, MAX_BLOCKS, MAX_EXPERTS, MAX_HIDDEN, MAX_RANKS, MAX_ROUTING_SLOTS, MAX_ROW_BYTES, MAX_ROW_SLOTS,
    MAX_ROWS, MAX_SCALE_WORDS, MAX_TOKENS, MAX_TOP_K,
};
pub(crate) use numbers::MOST_PACKED_SELECTIONS;
pub use numbers::Shape;
pub use rule::{Broken, Rule};
