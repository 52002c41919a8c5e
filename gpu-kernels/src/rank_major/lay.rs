//! Laying: a row that came to a fixed place is copied to the places that it has among the rows of each of its experts, with what goes with it.
//!
//! Which places those are [`super::packing`] and [`super::pack`] find, each in its way, and leave for [`crate::combine::reduce`]. A warp reads some of a row once,
//! and writes it to all of them.
use epoxide_dsl::prelude::*;

use super::args::NO_ROW;
use crate::combine::Parts;
use crate::grid_warps;
use crate::layout::THREADS;
use crate::words::Source;

/// What is packed, and where to: arguments of [`pack_rows`](crate::entries_packed::pack_rows), and of dispatches that pack.
///
/// Launch contract: what is read is what a dispatch into fixed places brought, behind it on the stream or, in one that packs, behind its landings, and nobody writes it meanwhile; nothing but this
/// kernel touches what is written, which has room for the rows that can come, or for `slab_rows` of each expert.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct PackArgs {
    /// `[1]`: the number of the dispatch; 0 if it failed.
    pub routing: Global<u64>,
    /// u32 `[1 + ranks + experts + experts + 1]`: what the dispatch counted.
    pub recv_counts: Global<u32>,
    /// The rows of each expert.
    pub index: Global<u32>,
    /// `[ranks * max_tokens]` rows on the wire.
    pub x: Global<u8>,
    /// 32 bits `[ranks * max_tokens][scale_stride]`.
    pub scales: Global<u32>,
    /// i32 `[ranks * max_tokens][top_k_stride]`: local experts, or -1.
    pub topk: Global<i32>,
    /// f32 `[ranks * max_tokens][top_k_stride]`.
    pub weights: Global<f32>,
    /// `[ranks * max_tokens]`.
    pub sources: Global<u64>,
    /// Where the packed rows go, and what goes with them.
    pub to: Packed,
    /// Bytes of a row on the wire, without scales.
    pub row_bytes: u32,
    /// Words from one row's scales to the next's; 0 where there are none.
    pub scale_stride: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// Words from one row's selections to the next's.
    pub top_k_stride: u32,
    /// The ranks.
    pub ranks: u32,
    /// Most tokens of a rank.
    pub max_tokens: u32,
    /// This rank's experts.
    pub experts: u32,
    /// Rows of a slab, where each expert has one; else 0.
    pub slab_rows: u32,
    /// Rows that an expert keeps of a source rank's; only where selections are dropped.
    pub capacity_per_source: u32,
    /// 1 to write zeros to rows that pad, with their scales.
    pub zero_padding: u32,
}

/// Where packed rows lie.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct Packed {
    /// Rows on the wire.
    pub x: Global<u8>,
    /// 32 bits `[rows][scale_stride]`.
    pub scales: Global<u32>,
    /// i32 `[rows]`: each row's local expert, -1 where it pads.
    pub experts: Global<i32>,
    /// f32 `[rows]`: gate weights, 0 where it pads.
    pub weights: Global<f32>,
    /// u64 `[rows]`: source rank and token, all ones where it pads.
    pub sources: Global<u64>,
    /// u32 `[1 + ranks + experts + experts + 1]`: rows with what pads them; selections by source rank, by local expert; the first row of each, and the end.
    pub counts: Global<u32>,
    /// u32 `[ranks * max_tokens][top_k_stride]`: which row each selection of an expert here has become, or [`NO_ROW`] if it was dropped.
    pub places: Global<u32>,
}

/// Vectors of a row that a lane has in flight.
const VECTORS: u32 = 16;

/// Some vectors of a row that came, and where they go.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    /// The place that the row came to.
    pub place: u32,
    /// This lane's selection: a local expert, or -1.
    pub expert: i32,
    /// The packed row that this has become, or [`NO_ROW`].
    pub to: u32,
    /// The first vector, and the first that is not of it.
    pub vectors: [u32; 2],
}

impl Piece {
    /// Nothing.
    pub const NONE: Self = Self { place: 0, expert: -1, to: NO_ROW, vectors: [0; 2] };

    /// Whether the row came. Warp-collective, uniform.
    #[inline(always)]
    fn came(&self) -> bool {
        warp::ballot(warp::ALL, self.expert >= 0) != 0
    }
}

/// A piece that is on its way: its first vectors, and what goes with the row if it is the first.
#[derive(Clone, Copy)]
pub(super) struct Started {
    pub piece: Piece,
    vectors: [U32x4; VECTORS as usize],
    /// This lane's gate weight.
    weight: f32,
    /// This lane's vector of scales, if there is one.
    scales: U32x4,
}

impl PackArgs {
    /// The row of a piece, where it came to.
    #[inline(always)]
    fn row_of(&self, piece: Piece) -> Global<U32x4> {
        self.x.rows(self.row_bytes).row(piece.place).cast()
    }

    /// How many rows an expert keeps, of so many of a source rank.
    #[inline(always)]
    pub(super) fn kept(&self, of_source: u32) -> u32 {
        if of_source < self.capacity_per_source { of_source } else { self.capacity_per_source }
    }
}

/// Starts with a piece of a row that is there, if it came: its places need not be known. Warp-collective.
#[inline(always)]
pub(super) fn start(a: &PackArgs, piece: Piece) -> Started {
    let ([first, end], lane) = (piece.vectors, warp::lane());
    let came = piece.came();
    let vectors = load(a.row_of(piece), first, if came { end } else { first });
    let (mut weight, mut scales) = (0.0, [0; 4]);
    if came && first == 0 {
        if piece.expert >= 0 {
            weight = a.weights.rows(a.top_k_stride).row(piece.place).load_weak(lane);
        }
        if lane < a.scale_stride / 4 {
            scales = a.scales.rows(a.scale_stride).row(piece.place).cast::<U32x4>().load_weak(lane);
        }
    }
    Started { piece, vectors, weight, scales }
}

/// Copies a piece to all its places, with what goes with the row if it is the first, which is of this `source`. Warp-collective.
#[inline(always)]
pub(super) fn lay(a: &PackArgs, started: Started, source: impl FnOnce() -> u64) {
    let Started { piece, vectors: mut loaded, weight, scales } = started;
    if !piece.came() {
        return;
    }
    let ([first, end], kept) = (piece.vectors, warp::ballot(warp::ALL, piece.to != NO_ROW));
    if first == 0 {
        beside(a, piece, weight, source);
        lay_scales(a, piece, scales, kept);
    }
    let mut at = first;
    while at < end {
        let mut left = kept;
        while left != 0 {
            let row = warp::shuffle(warp::ALL, piece.to, left.trailing_zeros());
            left &= left - 1;
            let row = a.to.x.rows(a.row_bytes).row(row).cast::<U32x4>().at(at + warp::lane());
            unroll!(V in 16 => {
                if at + warp::lane() + V as u32 * warp::LANES < end {
                    row.store_weak(V as u32 * warp::LANES, loaded[V]);
                }
            });
        }
        at += VECTORS * warp::LANES;
        loaded = load(a.row_of(piece), at, end);
    }
}

/// Loads this lane's vectors from `first` on, a warp apart and below `end`.
#[inline(always)]
fn load(from: Global<U32x4>, first: u32, end: u32) -> [U32x4; VECTORS as usize] {
    let mut loaded = [[0; 4]; VECTORS as usize];
    let at = first + warp::lane();
    unroll!(V in 16 => {
        if at + V as u32 * warp::LANES < end {
            loaded[V] = from.load_weak(at + V as u32 * warp::LANES);
        }
    });
    loaded
}

/// Writes which row each selection has become, and what goes with that. Per thread.
#[inline(always)]
fn beside(a: &PackArgs, piece: Piece, weight: f32, source: impl FnOnce() -> u64) {
    let Piece { place, expert, to, .. } = piece;
    if expert < 0 {
        return;
    }
    a.to.places.rows(a.top_k_stride).row(place).store_weak(warp::lane(), to);
    if to != NO_ROW {
        a.to.experts.store_weak(to, expert);
        a.to.weights.store_weak(to, weight);
        a.to.sources.store_weak(to, source());
    }
}

/// Copies the scales of a row, of which each lane has its `first` vector, to each of its places. Warp-collective.
#[inline(always)]
fn lay_scales(a: &PackArgs, piece: Piece, first: U32x4, kept: u32) {
    let (from, all) = (a.scales.rows(a.scale_stride).row(piece.place).cast::<U32x4>(), a.scale_stride / 4);
    let mut scales = first;
    for vector in thread::strided(warp::lane(), all.next_multiple_of(warp::LANES), warp::LANES) {
        let mut left = kept;
        while left != 0 {
            let row = warp::shuffle(warp::ALL, piece.to, left.trailing_zeros());
            left &= left - 1;
            if vector < all {
                a.to.scales.rows(a.scale_stride).row(row).cast::<U32x4>().store_weak(vector, scales);
            }
        }
        if vector + warp::LANES < all {
            scales = from.load_weak(vector + warp::LANES);
        }
    }
}

/// Writes what is beside rows that pad, and zeros to them where that is wanted. Warp-collective.
#[inline(always)]
pub(super) fn pad(a: &PackArgs, first: u32, end: u32) {
    for row in thread::strided(first + warp::lane(), end, warp::LANES) {
        a.to.experts.store_weak(row, -1);
        a.to.weights.store_weak(row, 0.0);
        a.to.sources.store_weak(row, Source::NOBODY);
    }
    if a.zero_padding == 0 {
        return;
    }
    for row in thread::strided(first, end, 1) {
        let x = a.to.x.rows(a.row_bytes).row(row).cast::<U32x4>();
        for vector in thread::strided(warp::lane(), a.row_bytes / 16, warp::LANES) {
            x.store_weak(vector, [0; 4]);
        }
        let scales = a.to.scales.rows(a.scale_stride).row(row).cast::<U32x4>();
        for vector in thread::strided(warp::lane(), a.scale_stride / 4, warp::LANES) {
            scales.store_weak(vector, [0; 4]);
        }
    }
}

/// Part number `number`, whose row's places are known. Warp-collective.
#[inline(always)]
pub(super) fn placed(a: &PackArgs, parts: Parts, number: u32) -> Piece {
    piece(a, parts, number, lane_of(a, parts, number))
}

/// This lane's expert of a part's row, or -1, and the packed row that its selection has become, which is known; any word where it has none.
#[inline(always)]
fn lane_of(a: &PackArgs, parts: Parts, number: u32) -> (i32, u32) {
    let (place, lane) = (parts.token(number), warp::lane());
    let mut of_lane = (-1, NO_ROW);
    if place < a.ranks * a.max_tokens && lane < a.top_k {
        let to = a.to.places.rows(a.top_k_stride).row(place).load_weak(lane);
        of_lane = (a.topk.rows(a.top_k_stride).row(place).load_weak(lane), to);
    }
    of_lane
}

/// Part number `number`, of whose row this lane has that.
#[inline(always)]
fn piece(a: &PackArgs, parts: Parts, number: u32, (expert, to): (i32, u32)) -> Piece {
    let to = if expert >= 0 { to } else { NO_ROW };
    Piece { place: parts.token(number), expert, to, vectors: parts.vectors(number, a.row_bytes / 2) }
}

/// Lays this warp's share of the rows, whose places are known and of which the first was started; `source` says whose the row in a place is. Warp-collective.
#[inline(always)]
pub(super) fn lay_share(a: &PackArgs, parts: Parts, first: Started, source: impl Fn(u32) -> u64) {
    let (mut number, mut started) = (grid_warps::index(), first);
    loop {
        number += grid_warps::count();
        // The next one's selections are on their way while this one is laid.
        let (place, next) = (started.piece.place, lane_of(a, parts, number));
        lay(a, started, || source(place));
        if parts.token(number) >= a.ranks * a.max_tokens {
            return;
        }
        started = start(a, piece(a, parts, number, next));
    }
}

/// Where what pads an expert's rows begins and ends, of which the counts are written; nothing of one that there is not.
#[inline(always)]
pub(super) fn padding_of(a: &PackArgs, expert: u32) -> [u32; 2] {
    if expert >= a.experts {
        return [0; 2];
    }
    let counts = a.to.counts.at(1 + a.ranks);
    let firsts = counts.at(a.experts + expert);
    [firsts.load_weak(0) + counts.load_weak(expert), firsts.load_weak(1)]
}

/// Writes what pads the experts' rows, of which the counts are written: this warp's share, but for its first expert's.
#[inline(always)]
pub(super) fn pad_others(a: &PackArgs) {
    for expert in thread::strided(grid_warps::index() + grid_warps::count(), a.experts, grid_warps::count()) {
        let [begin, end] = padding_of(a, expert);
        pad(a, begin, end);
    }
}

/// Writes that nothing is packed.
#[inline(always)]
pub(super) fn write_no_counts(a: &PackArgs) {
    for i in thread::strided(thread::index(), 1 + a.ranks + 2 * a.experts + 1, THREADS) {
        a.to.counts.store_weak(i, 0);
    }
}
