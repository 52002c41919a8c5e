//! A dispatch block's dynamic shared memory.
use epoxide_dsl::prelude::*;

use crate::dispatch::WARPS;
use crate::shape::{Shape, WireFormat};

/// A dispatch block's dynamic shared memory: mbarriers, row bases, places, the first bad selection, counters, then for each copying
/// warp its stages.
#[derive(Clone, Copy, Debug, KernelArg, PartialEq, Eq)]
#[repr(C)]
pub struct DispatchShared {
    /// Offset of u32 `[ranks]`: where this rank's rows begin at each rank.
    pub bases: u32,
    /// Offset of u32 `[warps][ranks]`: how many of this rank's earlier rows for a rank are of tokens that an earlier warp, or an earlier
    /// block, has counted.
    pub places: u32,
    /// Offset of u32 `[1]`: the first bad selection.
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
}

impl DispatchShared {
    /// Divides `available` bytes among the warps of a block; `None` if not even one can copy. The shape is valid, but that it may
    /// have more ranks than the kernels take.
    pub fn new(shape: &Shape, available: u32) -> Option<Self> {
        let bases = WARPS * 8;
        let of_ranks = shape.ranks.checked_mul(4)?;
        let places = bases.checked_add(of_ranks)?;
        let bad = of_ranks.checked_mul(WARPS)?.checked_add(places)?;
        let counters = bad.checked_add(4)?;
        let counted = shape.ranks.checked_add(shape.experts)?.checked_mul(4)?;
        let stages = counters.checked_add(counted)?.checked_next_multiple_of(128)?;
        let (stage_bytes, stages_of_warp) = Self::stages(shape)?;
        let of_warp = stage_bytes.checked_mul(stages_of_warp)?;
        let fit = available.checked_sub(stages)? / of_warp;
        let copy_warps = if fit < WARPS { fit } else { WARPS };
        if copy_warps == 0 {
            return None;
        }
        Some(Self { bases, places, bad, counters, stages, stage_bytes, stages_of_warp, copy_warps })
    }

    /// Bytes of a stage, and stages of a warp: a row in BF16 is loaded into its one stage and copied from there; a row in FP8 is
    /// quantised into one of two, codes and scales, while the other is copied. `None` if a row's bytes overflow 32 bits.
    pub fn stages(shape: &Shape) -> Option<(u32, u32)> {
        let row = shape.wire_row_bytes() + shape.scale_stride() as u64 * 4;
        let bytes = u32::try_from(row.checked_next_multiple_of(128)?).ok()?;
        let stages = match shape.format {
            WireFormat::Bf16 => 1,
            WireFormat::Fp8 => 2,
        };
        Some((bytes, stages))
    }

    /// Bytes of the block's dynamic shared memory.
    pub const fn bytes(&self) -> u32 {
        self.stages + self.stage_bytes * self.stages_of_warp * self.copy_warps
    }
}
