//! What a combine takes.
use epoxide_dsl::prelude::*;

use crate::words::{BlockFlags, Operation};

/// Arguments of [`combine`](crate::entries::combine).
///
/// Launch contract: `op` and `expert_out` describe windows laid out by `WindowLayout` for the same shape at every rank;
/// `send_rank`, `send_row`, `received` and `routing` are of one slot, as the dispatch of the same tokens wrote them; all blocks are resident together.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct CombineArgs {
    /// Flags, counters, faults.
    pub op: Operation,
    /// BF16 `[rows][hidden]` at every rank: what its experts made of each row it received.
    pub expert_out: Region<u8>,
    /// `[1]`: the number of the dispatch whose routing this slot has; 0 is none.
    pub routing: Global<u64>,
    /// i32 `[tokens][top_k]`: the handle.
    pub send_rank: Global<i32>,
    /// u32 `[tokens][top_k]`: the handle.
    pub send_row: Global<u32>,
    /// `[1]`: how many rows the dispatch brought.
    pub received: Global<u32>,
    /// BF16 `[tokens][hidden]`, or f32 where the [`CombineOptions`] say so: written.
    pub y: Global<u8>,
    /// Tokens of this rank.
    pub tokens: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// Elements of a row, a multiple of 8.
    pub hidden: u32,
    /// How many expert outputs were handed over; [`UNKNOWN_OUTPUTS`] where the caller's own work wrote them.
    pub outputs: u32,
    /// The slot.
    pub slot: u32,
    /// Fills the struct to a multiple of 8 bytes.
    pub reserved: u32,
}

/// Nobody said how many expert outputs there are.
pub const UNKNOWN_OUTPUTS: u32 = u32::MAX;

/// Arguments of [`combine_by_expert`](crate::entries::combine_by_expert).
///
/// Launch contract: that of [`CombineArgs`]; `send_rank` and `send_row` are in every rank's window what `pull` has of its own, and `tokens` is of the
/// same slot; all ranks launch as many blocks.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct CombineByExpertArgs {
    /// What every combine takes.
    pub pull: CombineArgs,
    /// i32 `[tokens][top_k]` at every rank: its handle.
    pub send_rank: Region<i32>,
    /// u32 `[tokens][top_k]` at every rank: its handle.
    pub send_row: Region<u32>,
    /// u32 `[ranks]`: how many tokens each rank dispatched.
    pub tokens: Region<u32>,
    /// BF16 `[max_tokens][of_token][hidden]` at every rank: the sums of its tokens' rows at each of their ranks, in the order of the ranks' first selections.
    /// Their owners write them.
    pub sums: Region<u8>,
    /// Reduced words: the epoch.
    pub reduced: BlockFlags,
    /// Most ranks of a token.
    pub of_token: u32,
    /// Fills the struct to a multiple of 8 bytes.
    pub reserved: u32,
}

/// What a combine does beside the sum.
///
/// Launch contract: biases have the rows of all tokens, and nothing writes them while the kernel runs; `topk` and `gates` are of the slot,
/// as the dispatch wrote them; where `accumulate`, `y` is written. The owners' work that wrote `returned` was stream-ordered before
/// their launches.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct CombineOptions {
    /// BF16 `[tokens][hidden]`: added behind the ranks' rows.
    pub bias: Optional<u8>,
    /// BF16 `[tokens][hidden]`: added behind that.
    pub second_bias: Optional<u8>,
    /// f32 `[tokens][top_k]`: written, with what the owners return for each selection, 0 where it is none, where weights are `returning`.
    pub weights: Global<f32>,
    /// f32 `[rows][top_k_stride]` at every rank: what it returns.
    pub returned: Region<f32>,
    /// i32 `[rows][top_k_stride]` at every rank: local experts, or -1.
    pub topk: Region<i32>,
    /// f32 `[rows]` at every rank: gate weights; where rows are weighed by them.
    pub gates: Region<f32>,
    /// Words from one row's selections to the next's.
    pub top_k_stride: u32,
    /// 1 where `y` is f32.
    pub wide: u32,
    /// 1 where what is in `y` is added.
    pub accumulate: u32,
    /// 1 where weights travel back.
    pub returning: u32,
}

/// Arguments of [`combine_with`](crate::entries::combine_with).
///
/// Launch contract: those of both.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct CombineWithArgs {
    /// What every combine takes.
    pub pull: CombineArgs,
    /// What it does beside.
    pub options: CombineOptions,
}

/// Arguments of [`combine_by_expert_with`](crate::entries::combine_by_expert_with) and
/// [`combine_by_expert_gated`](crate::entries::combine_by_expert_gated).
///
/// Launch contract: those of both.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct CombineByExpertWithArgs {
    /// What a combine of rows that lie by expert takes.
    pub sums: CombineByExpertArgs,
    /// What it does beside.
    pub options: CombineOptions,
}

/// Arguments of [`combine_fp8`](crate::entries::combine_fp8).
///
/// Launch contract: that of [`CombineWithArgs`]; behind its first number `received` has how many rows came of each rank; all ranks launch as many blocks.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct CombineFp8Args {
    /// What a combine with options takes.
    pub with: CombineWithArgs,
    /// `[rows][row_bytes]` at every rank: e4m3 `[hidden]` and their scales, what its experts made of another rank's row.
    pub crossing: Region<u8>,
    /// Reduced words: the epoch.
    pub reduced: BlockFlags,
    /// Bytes from one such row to the next.
    pub row_bytes: u32,
    /// Fills the struct to a multiple of 8 bytes.
    pub reserved: u32,
}
