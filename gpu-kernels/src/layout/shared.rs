//! A dispatch block's dynamic shared memory.
use epoxide_dsl::prelude::*;

use crate::shape::{MAX_RANKS, Shape, WireFormat};
use crate::words::CountMatrix;

/// Threads of a dispatch block.
pub const THREADS: u32 = 512;
/// The thread that says that its block has passed: of a late warp that has no word to post.
pub(crate) const PASSES: u32 = THREADS - MAX_RANKS - 1;
/// Warps of a dispatch block.
pub const WARPS: u32 = THREADS / warp::LANES;

/// A dispatch block's dynamic shared memory: an mbarrier for every stage, row bases, places, the first bad selection, then for each copying
/// warp its stages, where the counters lie before the first row comes, with masks for each counting warp behind them.
#[derive(Clone, Copy, Debug, KernelArg, PartialEq, Eq)]
#[repr(C)]
pub struct DispatchShared {
    /// Offset of u32 `[keys]`: where this rank's rows for each key, a rank or an expert, begin where they are received; where rows lie by source those of this
    /// block, if each has counted its own tokens.
    pub bases: u32,
    /// Offset of u32 `[warps][keys]`: how many of this rank's earlier rows for a key are of tokens that an earlier warp has counted; where rows lie by expert, or an
    /// earlier block.
    pub places: u32,
    /// Offset of u32 `[3]`: the first bad selection, and then the first rank that has one; for whose rows there is no room; whether some rank is in another
    /// operation. Behind them, where rows lie by
    /// expert, u32 `[experts]`: how many selections each has of all ranks.
    pub bad: u32,
    /// Offset of the stages, and of u32 `[1 + counting warps][ranks + 1 + experts]`: counters, which are read for the last time when they are told, and
    /// masks of the lanes that have each expert.
    pub stages: u32,
    /// Bytes of a stage.
    pub stage_bytes: u32,
    /// Stages of a warp that copies.
    pub stages_of_warp: u32,
    /// Warps that copy.
    pub copy_warps: u32,
    /// Warps that count.
    pub count_warps: u32,
    /// Offset of u32 `[local experts + 1]`, where each of this rank's experts' rows begin, and u32 `[local experts]`, how many they are;
    /// and where there is a bound u32 `[2]`, how many selections were dropped; only where rows lie by expert.
    pub owned: u32,
}

impl DispatchShared {
    /// Divides `available` bytes among the warps of a block; `None` if not even one can copy. The shape is valid, but that it may
    /// have more ranks than the kernels take.
    pub fn new(shape: &Shape, available: u32) -> Option<Self> {
        let (stage_bytes, stages_of_warp) = Self::stages(shape)?;
        let bases = WARPS * 8 * (stages_of_warp + Self::more_mbarriers(shape));
        let of_keys = shape.keys().checked_mul(4)?;
        let places = bases.checked_add(of_keys)?;
        let bad = of_keys.checked_mul(WARPS)?.checked_add(places)?;
        let owned = bad.checked_add(12)?.checked_add(Self::totals_bytes(shape))?;
        let stages = owned.checked_add(Self::owned_bytes(shape))?.checked_next_multiple_of(128)?;
        let counters = Self::counters_bytes(shape)?;
        let room = available.checked_sub(stages)?;
        if Self::index_bytes(shape)? > room {
            return None;
        }
        let of_warp = stage_bytes.checked_mul(stages_of_warp)?;
        let at_most_all = |warps: u32| if warps < WARPS { warps } else { WARPS };
        let copy_warps = at_most_all(room / of_warp);
        let count_warps = at_most_all((room / counters).saturating_sub(1));
        if copy_warps == 0 || count_warps == 0 {
            return None;
        }
        Some(Self { bases, places, bad, stages, stage_bytes, stages_of_warp, copy_warps, count_warps, owned })
    }

    /// Bytes of a stage, and stages of a warp: a row in BF16 is loaded into its one stage and copied from there; one with scales is
    /// quantised or loaded into one of two, codes and scales, while the other is copied. `None` if a row's bytes overflow 32 bits.
    pub fn stages(shape: &Shape) -> Option<(u32, u32)> {
        let row = shape.wire_row_bytes() + shape.scale_stride() as u64 * 4;
        let bytes = u32::try_from(row.checked_next_multiple_of(128)?).ok()?;
        let stages = match shape.format {
            WireFormat::Bf16 => 1,
            WireFormat::Fp8 | WireFormat::Fp8Ue8m0 | WireFormat::Mxfp8 | WireFormat::Opaque { .. } => 2,
        };
        Some((bytes, stages))
    }

    /// Mbarriers of a warp beside those of its stages: one for the rows that it copies on here.
    const fn more_mbarriers(shape: &Shape) -> u32 {
        shape.layout.is_by_expert() as u32
    }

    /// Bytes of the totals of all experts.
    const fn totals_bytes(shape: &Shape) -> u32 {
        if shape.layout.is_by_expert() { shape.experts * 4 } else { 0 }
    }

    /// Bytes of what is known of this rank's experts.
    const fn owned_bytes(shape: &Shape) -> u32 {
        let dropped = if shape.is_bounded() { 2 } else { 0 };
        if shape.layout.is_by_expert() { (2 * shape.max_local_experts() + 1 + dropped) * 4 } else { 0 }
    }

    /// Bytes of the counters, and of a warp's masks.
    fn counters_bytes(shape: &Shape) -> Option<u32> {
        let counters = CountMatrix::counters_for(shape.ranks as u64, shape.experts as u64);
        u32::try_from(counters).ok()?.checked_mul(4)
    }

    /// Words of an expert's bits in the index that is made where rows have fixed places: whole words for each source rank.
    pub const fn index_words(max_tokens: u32) -> u32 {
        max_tokens.div_ceil(32)
    }

    /// Words from one expert's bits to the next's: an odd number, so that threads that go through as many experts read different banks.
    pub const fn index_stride(ranks: u32, words: u32) -> u32 {
        (ranks * words) | 1
    }

    /// Bytes of what such an index is made from, where the stages were: ranks, tokens, counts and bits; where a dispatch packs them itself, where those of each
    /// expert and source rank begin, and the selections.
    fn index_bytes(shape: &Shape) -> Option<u32> {
        if !shape.layout.is_rank_major() {
            return Some(0);
        }
        let experts = shape.max_local_experts();
        let words = Self::index_words(shape.max_tokens);
        shape.ranks.checked_mul(words)?;
        let bits = (experts + 1).checked_mul(Self::index_stride(shape.ranks, words))?;
        let packs = shape.packs_itself();
        let starts = if packs { experts * (shape.ranks + 1) + shape.rows as u32 * shape.top_k } else { 0 };
        bits.checked_add(starts + 2 * shape.ranks + experts + WARPS + 5)?.checked_mul(4)
    }

    /// Bytes of the block's dynamic shared memory, for the shape that it was divided for.
    pub fn bytes(&self, shape: &Shape) -> u32 {
        let stages = self.stage_bytes * self.stages_of_warp * self.copy_warps;
        let counted = Self::counters_bytes(shape).unwrap_or(0) * (1 + self.count_warps);
        self.stages + stages.max(counted).max(Self::index_bytes(shape).unwrap_or(0))
    }
}
