//! Combine: every rank pulls its tokens' rows from where the experts left them, and writes each sum once.
//!
//! # Protocol
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | `entry`² `[o]` at every rank | block 0 of o, release | o is in combine `e`; the expert outputs of o are **ready**: their writers were stream-ordered before this launch | all blocks, acquire, before the first row is read |
//! | `done[p]` at rank o | the last block of p out, release, after the loads of all its blocks | p has **read** what it wanted of o | [`crate::lend`] at o: then o's experts may write again. Else they may after o's next dispatch, which has waited for a later word of p |
//!
//! A puller writes nothing at a peer but these words; its output is its own. Between the two edges of one combine nobody
//! writes the expert outputs: the owner's stream is in this combine, then in a lend or the next dispatch.
//!
//! Where the caller said how many expert outputs it handed over, they are not fewer than the rows that were received: else block 0
//! files that and posts no entry word, so nobody sums rows that nobody wrote.
//!
//! Sums are in f32, from +0, in ascending position of a rank's first selection in the token, and are rounded once to BF16:
//! bitwise the same for any number of blocks and any schedule. A token with no selection becomes a row of +0.
use epoxide_dsl::prelude::*;

use crate::placement::quotient;
use crate::protocol::{Operation, STATUS_OK, code, kind, phase};
use crate::quantize::widen;

/// Arguments of [`combine`].
///
/// Launch contract: `op` and `expert_out` describe windows laid out by `WindowLayout` for the same shape at every rank;
/// `send_rank` and `send_row` are what the dispatch of the same tokens wrote; the launch has the block count of the layout,
/// and all blocks are resident together.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct CombineArgs {
    /// Flags, counters, faults.
    pub op: Operation,
    /// BF16 `[rows][hidden]` at every rank: what its experts made of each row it received.
    pub expert_out: Region<u8>,
    /// i32 `[tokens][top_k]`: the handle.
    pub send_rank: Global<i32>,
    /// u32 `[tokens][top_k]`: the handle.
    pub send_row: Global<u32>,
    /// `[1]`: how many rows the dispatch brought.
    pub received: Global<u32>,
    /// BF16 `[tokens][hidden]`: written.
    pub y: Global<u8>,
    /// Tokens of this rank.
    pub tokens: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// Elements of a row, a multiple of 8.
    pub hidden: u32,
    /// How many expert outputs were handed over; [`UNKNOWN_OUTPUTS`] where the caller's own work wrote them.
    pub outputs: u32,
}

/// Nobody said how many expert outputs there are.
pub const UNKNOWN_OUTPUTS: u32 = u32::MAX;

/// Loads of 16 bytes that a thread has in flight, 128 KiB an SM: this many vectors of a few rows, or few of many rows.
const IN_FLIGHT: usize = 16;

/// Vectors of the smallest part of a token: what a warp has in flight of eight rows.
const SMALLEST_PART: u32 = 2 * warp::LANES;

/// Sums the rows.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn combine(args: CombineArgs) {
    let a = &args;
    let epoch = a.op.epoch.load_weak(0) + 1;
    let watch = wait::Watch::begin(a.op.fault, epoch);
    let look = watch.look();
    let missing = MissingOutputs::look(a);
    // The handle is this rank's own: it is on its way while the ranks meet.
    let parts = Parts::new(a);
    let first = parts.first(a);
    // Behind a fault nothing is published.
    let mut ready = !watch.found(look, phase::ENTRY) && !missing.found(a, &watch);
    if ready {
        if thread::block_index() == 0 && thread::index() < a.op.window().ranks {
            a.op.post_entry(thread::index(), epoch, kind::COMBINE, STATUS_OK);
        }
        ready = a.op.meet(&watch, epoch, kind::COMBINE).is_some();
    }
    if ready {
        sum_parts(a, parts, first);
    }
    // Nothing was copied in bulk, but the block's loads must all be over before a done word may say so.
    if let Some(grid) = a.op.grid.last_out(bulk::land_without_copies()) {
        // An owner that gave up may have let its experts write while this rank was reading.
        let whole = ready && !watch.aborted(phase::END);
        if whole && thread::index() < a.op.window().ranks {
            let flag = a.op.window().of_rank(thread::index(), a.op.done).at(u64::from(a.op.window().rank));
            grid.publish(flag, epoch);
        }
        if thread::index() == 0 {
            if whole {
                a.op.lent.store_weak(0, epoch);
            }
            a.op.epoch.store_weak(0, epoch);
        }
    }
}

/// Rows that were received and not handed over, as thread 0 of block 0 knows them: the other blocks wait for its entry word.
#[derive(Clone, Copy)]
struct MissingOutputs {
    received: u32,
}

impl MissingOutputs {
    /// Loads the count. The answer is for [`Self::found`]: what comes between need not wait for it.
    #[inline(always)]
    #[track_caller]
    fn look(a: &CombineArgs) -> Self {
        let asks = a.outputs != UNKNOWN_OUTPUTS && thread::block_index() == 0 && thread::index() == 0;
        Self { received: if asks { a.received.load_weak(0) } else { 0 } }
    }

    /// Whether some are missing; files that. Block-collective, uniform.
    #[inline(always)]
    #[track_caller]
    fn found(self, a: &CombineArgs, watch: &wait::Watch) -> bool {
        let missing = a.outputs < self.received;
        if missing {
            let fault = watch.fault(code::OUTPUTS_TOO_FEW, phase::ENTRY, a.op.window().rank);
            let (expected, seen) = (u64::from(self.received), u64::from(a.outputs));
            watch.file(fault::Fault { expected, seen, ..fault });
        }
        block::any(missing)
    }
}

/// How the tokens are divided among the warps: a part is a token, or a piece of one where there are at least two warps
/// for each token, so that all warps read.
#[derive(Clone, Copy)]
struct Parts {
    /// Parts of a token.
    of_token: u32,
    /// Vectors of a part.
    vectors: u32,
}

/// A part of a token.
#[derive(Clone, Copy)]
struct Part {
    /// Its number.
    number: u32,
    /// The rank to which this lane's selection sent the row, or -1.
    rank: i32,
    /// The row there.
    row: u32,
}

impl Parts {
    #[inline(always)]
    fn new(a: &CombineArgs) -> Self {
        let vectors = a.hidden / 8;
        let (spare, most) = (quotient(warps(), a.tokens), vectors.div_ceil(SMALLEST_PART));
        let of_token = if spare < 2 {
            1
        } else if spare < most {
            spare
        } else {
            most
        };
        Self { of_token, vectors: quotient(vectors + of_token - 1, of_token).next_multiple_of(warp::LANES) }
    }

    /// The token of a part; none if it is not below their number.
    #[inline(always)]
    fn token(self, part: u32) -> u32 {
        // Whole tokens, where there are many, divide nothing.
        if self.of_token == 1 { part } else { quotient(part, self.of_token) }
    }

    /// The vectors of a part in its row: the first, and the first that is not.
    #[inline(always)]
    fn vectors(self, part: u32, hidden: u32) -> [u32; 2] {
        let first = (part - self.token(part) * self.of_token) * self.vectors;
        let end = first + self.vectors;
        [first, if hidden / 8 < end { hidden / 8 } else { end }]
    }

    /// Loads what each lane knows of a part.
    #[inline(always)]
    #[track_caller]
    fn load(self, a: &CombineArgs, number: u32) -> Part {
        let (token, lane) = (self.token(number), warp::lane());
        let mut part = Part { number, rank: -1, row: 0 };
        if token < a.tokens && lane < a.top_k {
            let at = u64::from(token) * u64::from(a.top_k) + u64::from(lane);
            part.rank = a.send_rank.load_weak(at);
            part.row = a.send_row.load_weak(at);
        }
        part
    }

    /// The first part of this warp.
    #[inline(always)]
    #[track_caller]
    fn first(self, a: &CombineArgs) -> Part {
        self.load(a, warp::index() * thread::grid_blocks() + thread::block_index())
    }
}

/// Warps of the grid.
#[inline(always)]
fn warps() -> u32 {
    thread::grid_blocks() * warp::count()
}

/// A warp per part.
#[inline(always)]
#[track_caller]
fn sum_parts(a: &CombineArgs, parts: Parts, first: Part) {
    let row_bytes = u64::from(a.hidden) * 2;
    let mut part = first;
    while parts.token(part.number) < a.tokens {
        let mut source = 0;
        if part.rank >= 0 {
            let rows = a.op.window().of_rank(part.rank as u32, a.expert_out);
            source = rows.at(u64::from(part.row) * row_bytes).address();
        }
        let sources = warp::ballot(warp::ALL, source != 0);
        let y = a.y.at(u64::from(parts.token(part.number)) * row_bytes).cast();
        sum_rows(parts.vectors(part.number, a.hidden), y, sources, source);
        // Not earlier: the sums need all registers, and other warps read meanwhile.
        part = parts.load(a, part.number + warps());
    }
}

/// Sums the rows whose addresses the lanes of `sources` hold. Warp-collective.
#[inline(always)]
#[track_caller]
fn sum_rows(vectors: [u32; 2], y: Global<U32x4>, sources: u32, source: u64) {
    match sources.count_ones() {
        0..=2 => sum_few::<2, 8>(vectors, y, sources, source),
        3..=4 => sum_few::<4, 4>(vectors, y, sources, source),
        5..=8 => sum_few::<8, 2>(vectors, y, sources, source),
        _ => sum_many(vectors, y, sources, source),
    }
}

/// Sums at most `ROWS` rows, `VECTORS` vectors at a time. Warp-collective.
#[inline(always)]
#[track_caller]
fn sum_few<const ROWS: usize, const VECTORS: usize>(
    [mut first, end]: [u32; 2],
    y: Global<U32x4>,
    sources: u32,
    source: u64,
) {
    let (rows, _) = Rows::<ROWS>::take(sources, source);
    let at_once = VECTORS as u32 * warp::LANES;
    while first + at_once <= end {
        let mut sums = [[0.0; 8]; VECTORS];
        rows.add::<VECTORS, true>(first, end, &mut sums);
        store::<VECTORS, true>(y, first, end, &sums);
        first += at_once;
    }
    if first < end {
        let mut sums = [[0.0; 8]; VECTORS];
        rows.add::<VECTORS, false>(first, end, &mut sums);
        store::<VECTORS, false>(y, first, end, &sums);
    }
}

/// Sums any number of rows, eight in a pass: all passes of a piece of the row, so that its sum stays in registers.
/// Warp-collective.
#[inline(always)]
#[track_caller]
fn sum_many([mut first, end]: [u32; 2], y: Global<U32x4>, sources: u32, source: u64) {
    while first < end {
        let mut sums = [[0.0; 8]; 2];
        let mut left = sources;
        while left != 0 {
            let (rows, rest) = Rows::<8>::take(left, source);
            rows.add::<2, false>(first, end, &mut sums);
            left = rest;
        }
        store::<2, false>(y, first, end, &sums);
        first += 2 * warp::LANES;
    }
}

/// The addresses of some rows, the same in all lanes.
#[derive(Clone, Copy)]
struct Rows<const MOST: usize> {
    addresses: [u64; MOST],
    count: u32,
}

impl<const MOST: usize> Rows<MOST> {
    /// The first rows of `sources`, and the lanes that are left. Warp-collective.
    #[inline(always)]
    #[track_caller]
    fn take(mut sources: u32, source: u64) -> (Self, u32) {
        let mut rows = Self { addresses: [0; MOST], count: 0 };
        unroll!(J in 8 => {
            if J < MOST && sources != 0 {
                let from = sources.trailing_zeros();
                sources &= sources - 1;
                let low = warp::shuffle(warp::ALL, source as u32, from);
                let high = warp::shuffle(warp::ALL, (source >> 32) as u32, from);
                rows.addresses[J] = u64::from(high) << 32 | u64::from(low);
                rows.count += 1;
            }
        });
        (rows, sources)
    }

    /// Adds this lane's vectors from `first` on, a warp apart and below `end`, of every row, in order: all loads first, then all
    /// sums. All vectors are below `end` if they are `WHOLE`.
    #[inline(always)]
    #[track_caller]
    fn add<const VECTORS: usize, const WHOLE: bool>(&self, first: u32, end: u32, sums: &mut [[f32; 8]; VECTORS]) {
        const { assert!(MOST * VECTORS == IN_FLIGHT) };
        let at = first + warp::lane();
        let mut loaded = [[[0u32; 4]; MOST]; VECTORS];
        unroll!(J in 8 => {
            if J < MOST && (J as u32) < self.count {
                // SAFETY: a row of an owner's expert outputs, which its entry word says are ready and which nobody
                // writes before our done word; all vectors that are loaded are inside the row.
                let row = unsafe { Symmetric::<U32x4>::from_raw(self.addresses[J]) }.at(u64::from(at));
                unroll!(V in 8 => {
                    if V < VECTORS && (WHOLE || at + V as u32 * warp::LANES < end) {
                        loaded[V][J] = row.load_weak_streaming(V as u64 * u64::from(warp::LANES));
                    }
                });
            }
        });
        unroll!(V in 8 => {
            if V < VECTORS {
                unroll!(J in 8 => {
                    if J < MOST {
                        // A missing row adds +0, which changes no bit of a sum that began at +0.
                        let x = widen(loaded[V][J]);
                        unroll!(I in 8 => { sums[V][I] += x[I]; });
                    }
                });
            }
        });
    }
}

/// Rounds the sums of this lane's vectors from `first` on and writes them.
#[inline(always)]
#[track_caller]
fn store<const VECTORS: usize, const WHOLE: bool>(y: Global<U32x4>, first: u32, end: u32, sums: &[[f32; 8]; VECTORS]) {
    let at = first + warp::lane();
    let y = y.at(u64::from(at));
    unroll!(V in 8 => {
        if V < VECTORS && (WHOLE || at + V as u32 * warp::LANES < end) {
            let mut out = [0u32; 4];
            unroll!(I in 4 => {
                out[I] = Bf16::pair_from_f32(sums[V][2 * I], sums[V][2 * I + 1]);
            });
            y.store_weak(V as u64 * u64::from(warp::LANES), out);
        }
    });
}
