//! What the operations take where rows have fixed places.
use epoxide_dsl::prelude::*;

use crate::combine::CombineArgs;
use crate::dispatch::index;
use crate::layout::{DispatchShared, RecvRegions};
use crate::placement::{Placement, round_up};
use crate::row::RowArgs;
use crate::words::{Landings, Operation, SelectionWords};

/// Arguments of a dispatch.
///
/// Launch contract: `op`, `recv`, `landings` and `selections` describe windows laid out by `WindowLayout` for the same shape at every rank;
/// `rows`, `topk_idx` and `topk_weights` hold `tokens` rows and are not written while the kernel runs; the launch has the dynamic shared memory
/// of the layouts, and all blocks are resident together. A row slot and its routing slot have no other operations than each other's.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct DispatchRankMajorArgs {
    /// Flags, counters, faults.
    pub op: Operation,
    /// Where rows land at every rank.
    pub recv: RecvRegions,
    /// `[1]`: how many dispatches there were.
    pub dispatches: Global<u64>,
    /// `[1]`: the epoch of the last combine behind which the slot was free at every rank.
    pub freed: Global<u64>,
    /// Landing counters: of the dispatch.
    pub landings: Landings,
    /// Which experts tokens select: of the dispatch.
    pub selections: SelectionWords,
    /// The rows.
    pub rows: RowArgs,
    /// `[tokens][top_k]` of the type that `index_type` names.
    pub topk_idx: Global<u8>,
    /// f32 `[tokens][top_k]`.
    pub topk_weights: Global<f32>,
    /// `[1]`: the number of the dispatch whose routing this slot has: written, 0 if it failed.
    pub routing: Global<u64>,
    /// i32 `[tokens][top_k]`: written: the rank that a selection's row goes to, at the first selection of that rank; else -1. The handle.
    pub send_rank: Global<i32>,
    /// u32 `[tokens][top_k]`: written: the row there. The handle.
    pub send_row: Global<u32>,
    /// u32 `[1 + ranks + local experts + local experts + 1]`: written: rows received, in all, by source rank, by local expert; then where each expert's
    /// part of the index begins, and the end.
    pub recv_counts: Global<u32>,
    /// u32 `[index_entries]`: written: the rows of each expert, ascending, then [`NO_ROW`] up to a multiple of `alignment`.
    pub index: Global<u32>,
    /// Which rank owns which expert.
    pub placement: Placement,
    /// The block's shared memory.
    pub shared: DispatchShared,
    /// Tokens of this rank.
    pub tokens: u32,
    /// Most tokens of a rank.
    pub max_tokens: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// An [`index`] type.
    pub index_type: u32,
    /// Words from one row's selections to the next's at the receiver.
    pub top_k_stride: u32,
    /// Entries to whose multiples an expert's part of the index is padded.
    pub alignment: u32,
    /// Fills the struct to a multiple of 8 bytes.
    pub reserved: u32,
}

/// An entry of the index that pads.
pub const NO_ROW: u32 = u32::MAX;

/// Arguments of a combine.
///
/// Launch contract: that of [`CombineArgs`].
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct CombineRankMajorArgs {
    /// What every combine takes.
    pub pull: CombineArgs,
    /// `[1]`: written, if the slot is free behind it: this epoch.
    pub freed: Global<u64>,
    /// 0 where received rows stay readable behind it.
    pub frees: u32,
    /// Fills the struct to a multiple of 8 bytes.
    pub reserved: u32,
}

impl DispatchRankMajorArgs {
    /// Selection `position` of `token`, on its way.
    #[inline(always)]
    pub(super) fn load_selection(&self, token: u32, position: u32) -> index::Selected {
        index::Selected::load(self.topk_idx, self.index_type, self.top_k, token, position)
    }

    /// So many rows of an expert, with what pads them.
    #[inline(always)]
    pub(super) fn aligned(&self, rows: u32) -> u32 {
        round_up(rows, self.alignment)
    }

    /// The row of a source rank's token.
    #[inline(always)]
    pub(super) fn row(&self, source: u32, token: u32) -> u32 {
        source * self.max_tokens + token
    }
}
