//! The largest numbers that the kernels can work with.

/// Most selections of a token: one lane each.
pub const MAX_TOP_K: u32 = 32;
/// Most experts.
pub const MAX_EXPERTS: u32 = 2048;
/// Most ranks.
pub const MAX_RANKS: u32 = 64;
/// Most elements of a row.
pub const MAX_HIDDEN: u32 = 1 << 20;
/// Most tokens that a rank dispatches at once: a bad selection's key has 24 bits for the token.
pub const MAX_TOKENS: u32 = (1 << 24) - 1;
/// Most blocks of an operation.
pub const MAX_BLOCKS: u32 = 1024;
/// Most rows of a rank: 32 bits count them.
pub const MAX_ROWS: u64 = u32::MAX as u64;
/// Largest multiple to which an expert's rows are padded.
pub const MAX_ALIGNMENT: u32 = 1024;
/// Most bytes of an opaque row: those of the longest row in BF16.
pub const MAX_ROW_BYTES: u32 = 2 * MAX_HIDDEN;
/// Most routings that a buffer keeps: entry words have 8 bits for the slot.
pub const MAX_ROUTING_SLOTS: u32 = 256;
/// Most row slots of a buffer.
pub const MAX_ROW_SLOTS: u32 = 64;
/// Most words of scales of an opaque row: one for every 16 elements of the longest.
pub const MAX_SCALE_WORDS: u32 = MAX_HIDDEN / 16;
