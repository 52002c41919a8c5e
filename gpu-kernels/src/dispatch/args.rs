//! What a dispatch takes, and the part of it that is a block's or a warp's.
use epoxide_dsl::prelude::*;

use crate::bound::Bound;
use crate::layout::{DispatchShared, RecvRegions};
use crate::order::{Found, Owned};
use crate::placement::{Placement, quotient};
use crate::row::RowArgs;
use crate::words::{BlockFlags, CountMatrix, Landings, Operation, PlaceWords};

/// The type of `topk_idx`.
pub mod index {
    use epoxide_dsl::prelude::*;

    /// Signed 32-bit.
    pub const I32: u32 = 0;
    /// Signed 64-bit.
    pub const I64: u32 = 1;
    /// Unsigned 32-bit; `u32::MAX` is "no selection".
    pub const U32: u32 = 2;

    /// A selection as it is loaded, by halves that nothing waits for before they are asked for something: a choice between two loads would.
    #[derive(Clone, Copy)]
    pub(crate) struct Selected {
        low: u32,
        /// 0 where the type has 32 bits.
        high: u32,
    }

    impl Selected {
        /// "No selection", in each type.
        pub const NONE: Self = Self { low: u32::MAX, high: u32::MAX };

        /// Loads selection `position` of `token`, of `top_k` each.
        #[inline(always)]
        pub fn load(topk_idx: Global<u8>, index_type: u32, top_k: u32, token: u32, position: u32) -> Self {
            let is_wide = index_type == I64;
            let halves = topk_idx.cast::<u32>().rows(top_k << u32::from(is_wide)).row(token);
            let mut loaded = Self { low: halves.load_weak(position << u32::from(is_wide)), high: 0 };
            if is_wide {
                loaded.high = halves.load_weak(2 * position + 1);
            }
            loaded
        }

        /// The expert, of so many, if it is one.
        #[inline(always)]
        pub fn expert(self, experts: u32) -> Option<u32> {
            (self.low < experts && self.high == 0).then_some(self.low)
        }

        /// Whether it is "no selection": all ones, in every type.
        #[inline(always)]
        pub fn is_none(self, index_type: u32) -> bool {
            self.low == u32::MAX && (self.high == u32::MAX || index_type != I64)
        }

        /// The selection as an i64, whatever its type.
        #[inline(always)]
        pub fn value(self, index_type: u32) -> i64 {
            match index_type {
                I64 => (u64::from(self.high) << 32 | u64::from(self.low)) as i64,
                U32 if self.low != u32::MAX => self.low.into(),
                _ => (self.low as i32).into(),
            }
        }
    }
}

/// Arguments of a dispatch.
///
/// Launch contract: `op`, `recv`, `landings` and `counts` describe windows laid out by `WindowLayout` for the same shape at every rank;
/// where rows
/// lie by expert, so do `tokens_of`, `handle_rank`, `handle_row`, `block_landed` and `places`, and all ranks launch as many blocks;
/// `rows`, `topk_idx` and `topk_weights` hold `tokens` rows and are not written while the kernel runs; the launch has no more blocks than
/// the layouts were made for, and their dynamic shared memory, and all blocks are resident together.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct DispatchArgs {
    /// Flags, counters, faults.
    pub op: Operation,
    /// Where rows land at every rank.
    pub recv: RecvRegions,
    /// `[1]`: how many dispatches there were. Advanced when all blocks know it.
    pub dispatches: Global<u64>,
    /// Landing counters: of the dispatch; not where rows lie by expert.
    pub landings: Landings,
    /// The count matrix.
    pub counts: CountMatrix,
    /// The rows.
    pub rows: RowArgs,
    /// `[tokens][top_k]` of the type that `index_type` names.
    pub topk_idx: Global<u8>,
    /// f32 `[tokens][top_k]`.
    pub topk_weights: Global<f32>,
    /// What blocks tell each other of what they have counted: [`BlockCounts`](crate::words::BlockCounts), or u32 `[blocks][ranks + 1 + experts]` where rows lie by expert.
    pub block_counts: Global<u64>,
    /// `[1]`: the number of the dispatch whose routing this slot has: written, 0 if it failed.
    pub routing: Global<u64>,
    /// i32 `[tokens][top_k]`: written: the rank that a selection's row goes to, at the first selection of that rank, or at each where rows are
    /// of one selection; else -1. The handle, but where rows lie by expert.
    pub send_rank: Global<i32>,
    /// u32 `[tokens][top_k]`: written: its place among the rows of this rank that one warp counts; in the handle, then, the row there.
    pub send_row: Global<u32>,
    /// u32 `[1 + ranks + local experts]`: written: rows received, in all, by source rank, by local expert; where rows lie by expert, `[local
    /// experts + 1]` behind them: where each expert's begin, and the end; where there is a bound, then what [`crate::bound`] says.
    pub recv_counts: Global<u32>,
    /// Which rank owns which expert.
    pub placement: Placement,
    /// The block's shared memory.
    pub shared: DispatchShared,
    /// Tokens of this rank.
    pub tokens: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// An [`index`] type.
    pub index_type: u32,
    /// Words from one row's selections to the next's at the receiver.
    pub top_k_stride: u32,
    /// Rows to whose multiples an expert's rows are padded, where they lie by expert.
    pub alignment: u32,
    /// 1 to zero the padding's rows and scales.
    pub zero_padding: u32,
    /// u32 `[ranks]`, where rows lie by expert: how many tokens each rank dispatches; written at every peer.
    pub tokens_of: Region<u32>,
    /// i32 `[tokens][top_k]` at every rank, where rows lie by expert: the handle's ranks. Written once all ranks are in the dispatch.
    pub handle_rank: Region<i32>,
    /// u32 `[tokens][top_k]` at every rank, where rows lie by expert: the handle's rows. Written with them.
    pub handle_row: Region<u32>,
    /// Where rows lie by expert, the blocks' landed words: the epoch.
    pub block_landed: BlockFlags,
    /// Where rows lie by expert, words that tell where those of each block's first tokens lie, of the epoch.
    pub places: PlaceWords,
    /// u64 `[known_words]`: written: the received counts of this slot, for the host ([`Known`](crate::words::Known)); or no address. Only
    /// where counts are observed.
    pub mirror: Global<u64>,
    /// u64 `[local experts]`: added to: selections of each local expert; or no address. Only where counts are observed.
    pub statistics: Global<u64>,
    /// What there is room for, where that may be too little.
    pub bound: Bound,
}

/// Which operation this is.
#[derive(Clone, Copy)]
pub(super) struct Now {
    /// Its number among the buffer's operations.
    pub epoch: u64,
    /// Its number among the buffer's dispatches.
    pub dispatch: u64,
}

impl Now {
    /// As the operation's numbers are until the last block is out.
    #[inline(always)]
    pub(super) fn load(a: &DispatchArgs) -> Self {
        Self { epoch: a.op.next_epoch(), dispatch: a.dispatches.load_weak(0) + 1 }
    }
}

/// Contiguous tokens.
#[derive(Clone, Copy)]
pub(super) struct Chunk {
    pub start: u32,
    pub end: u32,
}

impl Chunk {
    /// Those of this block, of `tokens`: the same on every rank.
    #[inline(always)]
    pub(super) fn of_block(tokens: u32) -> Self {
        let blocks = thread::grid_blocks();
        Self { start: 0, end: tokens }.part(thread::block_index(), quotient(tokens + blocks - 1, blocks))
    }

    /// Whether it has any.
    #[inline(always)]
    pub(super) fn is_some(self) -> bool {
        self.start < self.end
    }

    /// Those of this warp, of the block's first `warps`: whole turns of `at_once`, a power of two.
    #[inline(always)]
    pub(super) fn of_warp(self, warps: u32, at_once: u32) -> Self {
        let tokens = quotient(self.end - self.start + warps - 1, warps);
        self.part(warp::index(), (tokens + at_once - 1) & !(at_once - 1))
    }

    /// Part `number`, where each has so many but the last.
    #[inline(always)]
    fn part(self, number: u32, tokens: u32) -> Self {
        let (count, first) = (self.end - self.start, u64::from(number) * u64::from(tokens));
        let first = if first < u64::from(count) { first as u32 } else { count };
        let end = if count - first < tokens { count } else { first + tokens };
        Self { start: self.start + first, end: self.start + end }
    }
}

impl DispatchArgs {
    #[inline(always)]
    pub(super) fn peers(&self) -> u32 {
        self.op.window().peers
    }
    /// What is known of this rank's experts, once bases are found.
    #[inline(always)]
    pub(super) fn owned(&self) -> Owned {
        let experts = self.placement.count(self.op.window().me.0);
        Owned { words: Shared::dynamic(self.shared.owned), experts }
    }
    /// Where bases are found.
    #[inline(always)]
    pub(super) fn found(&self) -> Found {
        let (bases, bad) = (Shared::dynamic(self.shared.bases), Shared::dynamic(self.shared.bad));
        Found { bases, totals: bad.at(3), owned: self.owned(), bad, over: bad.at(1), apart: bad.at(2) }
    }
    /// The ranks to which `token`'s selections send it.
    #[inline(always)]
    pub(super) fn handle_ranks(&self, token: u32) -> Global<i32> {
        self.send_rank.rows(self.top_k).row(token)
    }
    /// The rows there.
    #[inline(always)]
    pub(super) fn handle_rows(&self, token: u32) -> Global<u32> {
        self.send_row.rows(self.top_k).row(token)
    }
    /// Selection `position` of `token`, on its way.
    #[inline(always)]
    pub(super) fn load_selection(&self, token: u32, position: u32) -> index::Selected {
        index::Selected::load(self.topk_idx, self.index_type, self.top_k, token, position)
    }
    /// Selection `position` of `token` as an i64, whatever its type.
    #[inline(always)]
    pub(super) fn selection(&self, token: u32, position: u32) -> i64 {
        self.load_selection(token, position).value(self.index_type)
    }
}
