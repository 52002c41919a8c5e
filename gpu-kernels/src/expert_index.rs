//! The rows of each expert where rows are compact: an index for a GEMM that gathers, in memory that no peer touches. A row is there once for each of its
//! experts; it is not copied.
//!
//! There is no protocol: a rank works on its own rows, behind the dispatch that brought them and before its next operation, with which peers may
//! overwrite them. After a dispatch that failed, or did not fit, there are no rows, and every expert's part is empty.
//!
//! Blocks do not wait for each other. Each has a part of the rows, side by side, and counts by itself what those before it select: a few words of each, which
//! is little beside the rows.
use epoxide_dsl::prelude::*;

use crate::block_sums;
use crate::layout::{THREADS, WARPS};
use crate::placement::{remainder, round_up};
use crate::rank_major::NO_ROW;

/// Arguments of [`index_rows`](crate::entries::index_rows).
///
/// Launch contract: `topk` and `received` are what a dispatch brought, behind it on the stream; nothing but this kernel touches `offsets` and `index`
/// meanwhile, which have room for all that can come; a block has [`shared_bytes`](Self::shared_bytes).
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct ExpertIndexArgs {
    /// i32 `[rows][top_k_stride]`: each row's local experts, negative where a selection is another rank's. Rows at multiples of 16 bytes.
    pub topk: Global<i32>,
    /// u32 `[1 + ranks + experts]`: rows in all, by source, by local expert.
    pub received: Global<u32>,
    /// u32 `[experts + 1]`: written: where each expert's part of the index begins, a multiple of `alignment`, and the end.
    pub offsets: Global<u32>,
    /// u32 `[index_entries]`: written: the rows of each expert, ascending, then [`NO_ROW`] up to a multiple of `alignment`.
    pub index: Global<u32>,
    /// Ranks.
    pub ranks: u32,
    /// This rank's experts.
    pub experts: u32,
    /// Selections of a row.
    pub top_k: u32,
    /// Words from one row's selections to the next's, a multiple of 16 bytes.
    pub top_k_stride: u32,
    /// To what an expert's part is padded: at least 1.
    pub alignment: u32,
    /// Keeps the size a multiple of 8 bytes.
    pub reserved: u32,
}

impl ExpertIndexArgs {
    /// Bytes of a block's shared memory, for so many local experts.
    pub const fn shared_bytes(experts: u32) -> u32 {
        (2 * experts + 1 + WARPS) * 4
    }
}

/// What a block keeps.
#[derive(Clone, Copy)]
struct Kept {
    /// `[experts]`: where the next row goes that this block finds.
    next: Shared<u32>,
    /// `[experts + 1]`: where each expert's part begins, and the end.
    firsts: Shared<u32>,
    /// `[WARPS]`: entries of each warp's experts.
    of_warps: Shared<u32>,
}

impl Kept {
    #[inline(always)]
    fn new(experts: u32) -> Self {
        let next = Shared::<u32>::dynamic(0);
        let firsts = next.at(experts);
        Self { next, firsts, of_warps: firsts.at(experts + 1) }
    }
}

/// Makes the index.
#[inline(always)]
pub(crate) fn run(a: &ExpertIndexArgs) {
    let kept = Kept::new(a.experts);
    begin_experts(a, kept);
    let (rows, block, blocks) = (a.received.load_weak(0), thread::block_index(), thread::grid_blocks());
    let part = u64::from(rows.div_ceil(blocks));
    let begin = at_most(part * u64::from(block), rows);
    let end = at_most(part * u64::from(block) + part, rows);
    for row in thread::strided(thread::index(), begin, THREADS) {
        pass(a, kept, row);
    }
    block::sync();
    for expert in thread::strided(warp::index(), a.experts, WARPS) {
        place(a, expert, (begin, end), kept.next.load_weak(expert));
        if remainder(expert, blocks) == block {
            let of_expert = a.received.load_weak(1 + a.ranks + expert);
            let first = kept.firsts.load_weak(expert) + of_expert;
            for pad in thread::strided(first + warp::lane(), kept.firsts.load_weak(expert + 1), warp::LANES) {
                a.index.store_weak(pad, NO_ROW);
            }
        }
    }
}

#[inline(always)]
fn at_most(row: u64, rows: u32) -> u32 {
    if row < u64::from(rows) { row as u32 } else { rows }
}

/// Finds where each expert's part of the index begins, in every block alike. The block meets at its end.
#[inline(always)]
fn begin_experts(a: &ExpertIndexArgs, kept: Kept) {
    let counts = a.received.at(1 + a.ranks);
    let writes = thread::block_index() == 0;
    let mut before = 0;
    // All threads take part in each turn: they meet.
    for turn in thread::strided(0, a.experts, THREADS) {
        let expert = turn + thread::index();
        let is_one = expert < a.experts;
        let mut entries = 0;
        if is_one {
            entries = round_up(counts.load_weak(expert), a.alignment);
        }
        let first = block_sums::before_this(kept.of_warps, &mut before, entries);
        if is_one {
            kept.next.store_weak(expert, first);
            kept.firsts.store_weak(expert, first);
            if writes {
                a.offsets.store_weak(expert, first);
            }
        }
        // Before the next turn's sums take the place of these.
        block::sync();
    }
    if thread::index() == 0 {
        kept.firsts.store_weak(a.experts, before);
        if writes {
            a.offsets.store_weak(a.experts, before);
        }
    }
    block::sync();
}

/// Four selections of a row, as local experts or none: those behind the last are none.
#[inline(always)]
fn four(a: &ExpertIndexArgs, row: u32, vector: u32) -> [Option<u32>; 4] {
    let four = a.topk.rows(a.top_k_stride).row(row).cast::<U32x4>().load_weak(vector);
    let one = |position: u32, expert: u32| (vector * 4 + position < a.top_k && expert < a.experts).then_some(expert);
    [one(0, four[0]), one(1, four[1]), one(2, four[2]), one(3, four[3])]
}

/// Leaves room for a row of an earlier block in the parts of its experts. Per thread.
#[inline(always)]
fn pass(a: &ExpertIndexArgs, kept: Kept, row: u32) {
    for vector in thread::strided(0, a.top_k.div_ceil(4), 1) {
        let [first, second, third, fourth] = four(a, row, vector);
        leave_room(kept, first);
        leave_room(kept, second);
        leave_room(kept, third);
        leave_room(kept, fourth);
    }
}

#[inline(always)]
fn leave_room(kept: Kept, expert: Option<u32>) {
    if let Some(expert) = expert {
        kept.next.fetch_add_relaxed(expert, 1);
    }
}

/// Writes the block's rows of an expert, ascending, from an entry on. Warp-collective.
#[inline(always)]
fn place(a: &ExpertIndexArgs, expert: u32, (begin, end): (u32, u32), first: u32) {
    let mut entry = first;
    for tile in thread::strided(begin, end, warp::LANES) {
        let row = tile + warp::lane();
        let mut selects = false;
        if row < end {
            for vector in thread::strided(0, a.top_k.div_ceil(4), 1) {
                let [first, second, third, fourth] = four(a, row, vector);
                let this = Some(expert);
                selects |= first == this || second == this || third == this || fourth == this;
            }
        }
        let selecting = warp::ballot(warp::ALL, selects);
        if selects {
            let earlier = (selecting & ((1 << warp::lane()) - 1)).count_ones();
            a.index.store_weak(entry + earlier, row);
        }
        entry += selecting.count_ones();
    }
}
