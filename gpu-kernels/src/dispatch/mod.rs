//! Dispatch: every token's row goes once to each rank that owns one of its experts.
//!
//! # Protocol
//!
//! Operation `e` (its *epoch*), which is the buffer's `d`-th dispatch (both are read from device memory by every block). All words
//! below lie in the *reader's* memory and carry `e` or `d`, so nothing is ever zeroed; those marked ² alternate with the parity of
//! what they carry: a rank can be one operation ahead of a peer, never two, because every operation waits for a word from every
//! peer. Words of dispatches alone carry `d`: each of them is written by every dispatch of its parity, so none is ever left from so
//! long ago that its stamp comes again ([`Stamped`](crate::words::Stamped)).
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | `counts`² `[s][..]` at every rank, of `d` | the blocks of `s`, relaxed: each word proves itself | distinct tokens of `s` per rank, selections per expert, the bad selection if any | the tokens per rank by all blocks, before the first row is written; the selections by the last block, after the `landed` words, which publish them too |
//! | `entry`² `[s]` at every rank, of `e` | block 0 of `s`, release | `s` is in dispatch `e`; the receive regions of `s` are **free**: its consumers of the dispatch before were stream-ordered before this launch; its selections are valid or not | all blocks, acquire, before the first row is written |
//! | `landed`² `[s]` at rank r, the number `d` | the last block of `s` out, release, with the token of `wait_group 0` from every block | all rows of `s` for r are **there** | the last block of r out, acquire; r's consumers are stream-ordered after |
//!
//! When a dispatch completes, a rank may also write its expert outputs again: every peer's `entry` word of `e` was posted after
//! that peer's combine before was over, reads and all. (Who wants to write them earlier asks [`crate::lend`].)
//!
//! Why a row cannot be overwritten: rank s writes into r only after `entry[r]` of `e`, which r posts after its consumers of
//! the same regions; no two sources share a row, because the count matrix gives every (source, destination) its own range; no two
//! tokens of one source share a row, because a row's place in that range is the number of the source's earlier tokens
//! for the same destination.
//!
//! Why the order does not depend on timing: a row's place is a function of the count matrix and the token's number alone.
//!
//! A fault before the copy is seen by all blocks of all ranks in the same words, so no row is written; a timeout may leave
//! rows behind, but no `landed` word and zero counts. A block that finds an abort word at its entry publishes nothing. All
//! blocks find one that was set before the operation, so then nobody gets past this rank's entry word; of one that comes
//! just now some blocks may know and others not, but the last block out does, and posts no `landed` word. When every peer's
//! have come the operation is whole, whatever happens to others.
//!
//! `count` counts, tells and places; `send` moves rows; `finish` closes the operation. How a row is made is a [`Row`], and in which order
//! rows lie an [`Order`]: a kernel is an instance for one of each.
mod count;
mod finish;
mod send;

use epoxide_dsl::prelude::*;

use crate::layout::{DispatchShared, RecvRegions};
use crate::order::Order;
use crate::placement::Placement;
use crate::row::Row;
use crate::words::{CountMatrix, Flags, Kind, Operation, Phase, stop_if_bad};

/// Threads of a block.
pub const THREADS: u32 = 512;
/// Warps of a block.
pub const WARPS: u32 = THREADS / warp::LANES;

/// The type of `topk_idx`.
pub mod index {
    /// Signed 32-bit.
    pub const I32: u32 = 0;
    /// Signed 64-bit.
    pub const I64: u32 = 1;
    /// Unsigned 32-bit; `u32::MAX` is "no selection".
    pub const U32: u32 = 2;
}

/// Arguments of a dispatch.
///
/// Launch contract: `op`, `recv`, `landed` and `counts` describe windows laid out by `WindowLayout` for the same shape at every rank; `x`,
/// `topk_idx` and `topk_weights` hold `tokens` rows and are not written while the kernel runs; the launch has no more blocks than
/// the layouts were made for, and their dynamic shared memory, and all blocks are resident together.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct DispatchArgs {
    /// Flags, counters, faults.
    pub op: Operation,
    /// Where rows land at every rank.
    pub recv: RecvRegions,
    /// `[1]`: how many dispatches there were. Advanced by the last block out.
    pub dispatches: Global<u64>,
    /// Landed words: the number of the dispatch.
    pub landed: Flags<2>,
    /// The count matrix.
    pub counts: CountMatrix,
    /// BF16 `[tokens][hidden]`, a multiple of 16 bytes.
    pub x: Global<u8>,
    /// `[tokens][top_k]` of the type that `index_type` names.
    pub topk_idx: Global<u8>,
    /// f32 `[tokens][top_k]`.
    pub topk_weights: Global<f32>,
    /// u32 `[blocks][ranks + experts]`.
    pub block_counts: Global<u32>,
    /// u32 `[blocks]`.
    pub block_bad: Global<u32>,
    /// i32 `[tokens][top_k]`: written: the rank that a selection's row went to, at the first selection of that rank; else -1.
    pub send_rank: Global<i32>,
    /// u32 `[tokens][top_k]`: written: the row there. On the way, its place among the rows of this rank that one warp counts.
    pub send_row: Global<u32>,
    /// u32 `[1 + ranks + local experts]`: written: rows received, in all, by source rank, by local expert.
    pub recv_counts: Global<u32>,
    /// Which rank owns which expert.
    pub placement: Placement,
    /// The block's shared memory.
    pub shared: DispatchShared,
    /// Tokens of this rank.
    pub tokens: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// Elements of a row.
    pub hidden: u32,
    /// f32 from one row's scales to the next's; 0 where rows bring none.
    pub scale_stride: u32,
    /// An [`index`] type.
    pub index_type: u32,
    /// Words from one row's selections to the next's at the receiver.
    pub top_k_stride: u32,
}

/// Moves the rows.
#[inline(always)]
#[track_caller]
pub(crate) fn run<R: Row, O: Order>(a: &DispatchArgs) {
    let now = Now { epoch: a.op.next_epoch(), dispatch: a.dispatches.load_weak(0) + 1 };
    let watch = wait::Watch::begin(a.op.fault, now.epoch);
    let mut ended = attempt::<R, O>(a, &watch, now);
    let landed = bulk::land();
    if let Some(last) = a.op.grid.last_out(landed, ended.is_err()) {
        let finished = finish::finish(a, &watch, now, &last);
        ended = ended.and(finished);
    }
    if let Err(stopped) = ended {
        stopped.file(&watch);
    }
}

/// A block's part: counts its tokens, agrees with all ranks, and sends.
#[inline(always)]
#[track_caller]
fn attempt<R: Row, O: Order>(a: &DispatchArgs, watch: &wait::Watch, now: Now) -> Result<(), fault::Stopped> {
    let chunk = Chunk::of_block(a.tokens);
    // The answer is not needed before something is published, and counting touches nothing that a peer sees.
    let look = watch.look();
    count::count::<O>(a, chunk);
    let _counted = a.op.grid.sync(watch, Phase::Counted as u32)?;
    watch.found(look, Phase::Counted as u32).settle()?;
    count::publish(a, now);
    count::place_behind_earlier_blocks(a);
    let acquired = agree(a, watch, now)?;
    count::base_rows::<O>(a, now);
    // The free edges order the owners' reads with this block's bulk stores.
    send::send::<R>(a, chunk, &acquired.for_bulk_copies());
    Ok(())
}

/// Waits until every rank has entered and told its counts.
#[inline(always)]
#[track_caller]
fn agree(a: &DispatchArgs, watch: &wait::Watch, now: Now) -> Result<wait::Acquired, fault::Stopped> {
    let window = a.op.window();
    let met = a.op.entry.meet(window, watch, Kind::Dispatch)?;
    stop_if_bad(&a.op.entry, &a.counts, window, now.dispatch, watch, met.status)?;
    let _counts = a.counts.wait(window, watch, now.dispatch)?;
    Ok(met.acquired)
}

/// Which operation this is.
#[derive(Clone, Copy)]
struct Now {
    /// Its number among the buffer's operations.
    epoch: u64,
    /// Its number among the buffer's dispatches.
    dispatch: u64,
}

/// Contiguous tokens.
#[derive(Clone, Copy)]
struct Chunk {
    start: u32,
    end: u32,
}

impl Chunk {
    /// Those of this block, of `tokens`.
    #[inline(always)]
    fn of_block(tokens: u32) -> Self {
        Self { start: 0, end: tokens }.part(thread::block_index(), tokens.div_ceil(thread::grid_blocks()))
    }

    /// Those of this warp, of the block's: whole turns of `at_once`, a power of two.
    #[inline(always)]
    fn of_warp(self, at_once: u32) -> Self {
        let tokens = (self.end - self.start).div_ceil(WARPS);
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
    fn peers(&self) -> u32 {
        self.op.window().peers
    }
    /// The ranks to which `token`'s selections send it.
    #[inline(always)]
    fn handle_ranks(&self, token: u32) -> Global<i32> {
        self.send_rank.rows(self.top_k).row(token)
    }
    /// The rows there.
    #[inline(always)]
    fn handle_rows(&self, token: u32) -> Global<u32> {
        self.send_row.rows(self.top_k).row(token)
    }
    /// Selection `position` of `token` as an i64, whatever its type.
    #[inline(always)]
    #[track_caller]
    fn selection(&self, token: u32, position: u32) -> i64 {
        match self.index_type {
            index::I64 => self.topk_idx.cast::<i64>().rows(self.top_k).row(token).load_weak(position),
            index_type => {
                let bits = self.topk_idx.cast::<u32>().rows(self.top_k).row(token).load_weak(position);
                // "No selection" is all ones in every type.
                if index_type == index::U32 && bits != u32::MAX { i64::from(bits) } else { i64::from(bits as i32) }
            }
        }
    }
}
