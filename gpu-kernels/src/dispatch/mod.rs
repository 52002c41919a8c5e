//! Dispatch: every token's row goes once to each rank that owns one of its experts.
//!
//! # Protocol
//!
//! Operation `e` (its *epoch*), which is the buffer's `d`-th dispatch (both are read from device memory by every block). All words
//! below lie in the *reader's* memory and carry `e` or `d`, so nothing is ever zeroed; those marked ² alternate with the parity of
//! what they carry: a rank can be one operation ahead of a peer, never two, because every operation waits for a word from every
//! peer. Words of dispatches alone carry `d`: each of them is written by every dispatch of its parity, so none is ever left from so
//! long ago that its stamp comes again ([`Stamped`]).
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
//! `counts` counts, tells and places; `send` moves rows; `finish` closes the operation.
mod counts;
mod finish;
mod send;

use epoxide_dsl::prelude::*;

use crate::layout::{DispatchShared, RecvRegions};
use crate::placement::{Placement, quotient};
use crate::protocol::{self, Operation, STATUS_OK, STATUS_REPEATED, Stamped, code, kind, phase};

/// Threads of a block.
pub const THREADS: u32 = 512;
#[cfg(not(target_arch = "nvptx64"))]
const _: () = assert!(dispatch.threads() == THREADS);

/// Arguments of [`dispatch`].
///
/// Launch contract: `op` and `recv` describe windows laid out by `WindowLayout` for the same shape at every rank; `x`,
/// `topk_idx` and `topk_weights` hold `tokens` rows and are not written while the kernel runs; the launch has the block
/// count and the dynamic shared memory that the layouts were made for, and all blocks are resident together.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct DispatchArgs {
    /// Flags, counters, faults.
    pub op: Operation,
    /// Where rows land at every rank.
    pub recv: RecvRegions,
    /// `[1]`: how many dispatches there were. Advanced by the last block out.
    pub dispatches: Global<u64>,
    /// Landed words, `[2 parities][ranks]`.
    pub landed: Region<u64>,
    /// The count matrix, `[2 parities][ranks][count_words]`.
    pub counts: Region<u64>,
    /// BF16 `[tokens][hidden]`, a multiple of 16 bytes.
    pub x: Global<u8>,
    /// `[tokens][top_k]` of the type that `index_type` names.
    pub topk_idx: Global<u8>,
    /// f32 `[tokens][top_k]`.
    pub topk_weights: Global<f32>,
    /// u32 `[blocks][ranks + experts]`.
    pub block_counts: Global<u32>,
    /// u64 `[blocks]`.
    pub block_bad: Global<u64>,
    /// i32 `[tokens][top_k]`: written: the rank that a selection's row went to, at the first selection of that rank; else -1.
    pub send_rank: Global<i32>,
    /// u32 `[tokens][top_k]`: written: the row there.
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
    /// f32 from one row's scales to the next's; 0 sends BF16.
    pub scale_stride: u32,
    /// A `protocol::index` type.
    pub index_type: u32,
    /// Words from one row's selections to the next's at the receiver.
    pub top_k_stride: u32,
}

/// Moves the rows.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch(args: DispatchArgs) {
    let a = &args;
    let now = Now { epoch: a.op.epoch.load_weak(0) + 1, dispatch: a.dispatches.load_weak(0) + 1 };
    let watch = wait::Watch::begin(a.op.fault, now.epoch);
    let chunk = Chunk::of_block(a.tokens);

    // The answer is not needed before something is published, and counting touches nothing that a peer sees.
    let look = watch.look();
    counts::count(a, chunk);
    let counted = matches!(a.op.grid.sync(&watch, phase::COUNTED), wait::Outcome::Ready(_));
    let mut ready = counted && !watch.found(look, phase::COUNTED);
    if ready {
        counts::publish(a, now);
        counts::place_within_block(a, chunk);
        ready = match agree(a, &watch, now) {
            Some(acquired) => {
                counts::base_rows(a, now);
                // The free edges order the owners' reads with this block's bulk stores.
                send::send(a, chunk, &acquired.for_bulk_copies());
                true
            }
            None => false,
        };
    }
    if let Some(grid) = a.op.grid.last_out(bulk::land()) {
        finish::finish(a, &watch, now, ready, &grid);
    }
}

/// Which operation this is.
#[derive(Clone, Copy)]
struct Now {
    /// Its number among the buffer's operations.
    epoch: u64,
    /// Its number among the buffer's dispatches.
    dispatch: u64,
}

/// The contiguous tokens of one block.
#[derive(Clone, Copy)]
struct Chunk {
    start: u32,
    end: u32,
}

impl Chunk {
    #[inline(always)]
    fn of_block(tokens: u32) -> Self {
        let per_block = tokens.div_ceil(thread::grid_blocks());
        let start = u64::from(per_block) * u64::from(thread::block_index());
        let start = if start < u64::from(tokens) { start as u32 } else { tokens };
        let end = if tokens - start < per_block { tokens } else { start + per_block };
        Self { start, end }
    }
}

impl DispatchArgs {
    #[inline(always)]
    fn ranks(&self) -> u32 {
        self.op.window().ranks
    }
    #[inline(always)]
    fn me(&self) -> u32 {
        self.op.window().rank
    }
    /// Counts of a block or a rank: distinct tokens per rank, then selections per expert.
    #[inline(always)]
    fn counters(&self) -> u32 {
        self.ranks() + self.placement.experts
    }
    /// Index of word `word` in row `source` of the count matrix.
    #[inline(always)]
    fn count_index(&self, now: Now, source: u32, word: u32) -> u64 {
        let words = u64::from(self.counters() + protocol::DETAIL_WORDS);
        self.op.alternating(now.dispatch, source) * words + u64::from(word)
    }
    #[inline(always)]
    #[track_caller]
    fn own_count(&self, now: Now, source: u32, word: u32) -> u32 {
        let own = self.op.window().own(self.counts);
        Stamped::from_word(own.load_relaxed::<System>(self.count_index(now, source, word))).payload
    }
    /// Selection `position` of `token` as an i64, whatever its type.
    #[inline(always)]
    #[track_caller]
    fn selection(&self, token: u32, position: u32) -> i64 {
        let i = u64::from(token) * u64::from(self.top_k) + u64::from(position);
        match self.index_type {
            protocol::index::I64 => self.topk_idx.cast::<i64>().load_weak(i),
            index_type => {
                let bits = self.topk_idx.cast::<u32>().load_weak(i);
                // "No selection" is all ones in every type.
                if index_type == protocol::index::U32 && bits != u32::MAX {
                    i64::from(bits)
                } else {
                    i64::from(bits as i32)
                }
            }
        }
    }
}

/// Waits until every rank has entered and told its counts; `None` if there is nothing to send because of a fault.
#[inline(always)]
#[track_caller]
fn agree(a: &DispatchArgs, watch: &wait::Watch, now: Now) -> Option<wait::Acquired> {
    let met = a.op.meet(watch, now.epoch, kind::DISPATCH)?;
    if bad_selection(a, watch, now, met.status) {
        return None;
    }
    // The tokens of every rank for every rank.
    let ranks = a.ranks();
    let own = a.op.window().own(a.counts);
    let outcome = watch.wait_until(phase::COUNTS, ranks * ranks, |flag| {
        let source = quotient(flag, ranks);
        // Relaxed: the word is all that it publishes.
        let seen = own.load_relaxed::<System>(a.count_index(now, source, flag - source * ranks));
        wait::Poll {
            peer: source,
            expected: Stamped::new(0, now.dispatch).to_word(),
            seen,
            ready: Stamped::from_word(seen).is_of(now.dispatch),
        }
    });
    if let wait::Outcome::Ready(_) = outcome { Some(met.acquired) } else { None }
}

/// Whether some rank has a bad selection; files the fault of the lowest such rank. `status` is that of the thread's rank.
/// Block-collective, uniform.
#[inline(always)]
#[track_caller]
fn bad_selection(a: &DispatchArgs, watch: &wait::Watch, now: Now, status: u32) -> bool {
    if !block::any(status != STATUS_OK) {
        return false;
    }
    if thread::index() == 0 {
        let mut found = false;
        let mut rank = 0;
        while rank < a.ranks() && !found {
            let status = a.op.entry_of(rank, now.epoch).status;
            if status != STATUS_OK {
                found = true;
                let code = if status == STATUS_REPEATED { code::INDEX_REPEATED } else { code::INDEX_OUT_OF_RANGE };
                let word = |i| u64::from(a.own_count(now, rank, a.counters() + i));
                let fault = fault::Fault {
                    detail: [word(0), word(1), word(2) | word(3) << 32],
                    ..watch.fault(code, phase::ENTRY, rank)
                };
                a.op.fault.file_here(thread::block_index(), fault);
            }
            rank += 1;
        }
    }
    true
}
