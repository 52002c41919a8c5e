//! Packing: rows that came to fixed places are laid by expert, a row for each selection, in memory that no peer touches.
//!
//! A whole dispatch of few selections packs its rows itself ([`super::packing`]). Behind others, and behind the receive half of one and one by an old
//! routing, a kernel does it, of which this is; [`super::lay`] is how a row is laid. It has no protocol: a rank works on its own rows, behind what brought them on its stream, and before its combine,
//! behind which peers may overwrite them. After a dispatch that failed the slot has no routing, and no row is read.
//!
//! **Where a row goes** follows from the index that the dispatch made, and not from who comes first: the entry of the row in its expert's part, from the
//! expert's first row on. So expert-contiguous rows lie as the index does; in slabs each expert's begin at its slab. Each lane finds its selection's
//! entry by bisection, as the part ascends.
//!
//! **Where selections are dropped** an expert keeps the first `capacity_per_source` of each source rank. Whether entry `i` of a part is kept is seen from the
//! part alone, as it ascends: it is, unless entry `i - capacity_per_source` is of the same source. A sender would drop the same ones: they
//! depend on its own tokens alone.
use epoxide_dsl::prelude::*;

use super::args::NO_ROW;
use super::lay::{PackArgs, Piece, lay, pad, start};
use crate::combine::Parts;
use crate::grid_warps;
use crate::placement::quotient;

/// A part of the index: the rows of an expert.
#[derive(Clone, Copy)]
struct Part {
    /// Its first entry.
    first: u32,
    /// Its entries, without what pads them.
    count: u32,
}

impl PackArgs {
    /// How many of the index's entries each expert has.
    #[inline(always)]
    fn counts(&self) -> Global<u32> {
        self.recv_counts.at(1 + self.ranks)
    }

    #[inline(always)]
    fn part(&self, expert: u32) -> Part {
        let counts = self.counts();
        Part { first: counts.load_weak(self.experts + expert), count: counts.load_weak(expert) }
    }

    /// The first row of an expert, or the end of all.
    #[inline(always)]
    fn begin(&self, expert: u32) -> u32 {
        if self.slab_rows != 0 { expert * self.slab_rows } else { self.counts().load_weak(self.experts + expert) }
    }

    /// Entry `entry` of the index, as the place of a row.
    #[inline(always)]
    fn row(&self, entry: u32) -> u32 {
        self.index.load_weak(entry)
    }

    /// How many entries of a part are of a row before `place`. Per thread.
    #[inline(always)]
    fn entries_before(&self, part: Part, place: u32) -> u32 {
        let (mut low, mut high) = (0, part.count);
        while low < high {
            let middle = (low + high) / 2;
            if self.row(part.first + middle) < place {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Whether an entry of a part, which there is, is kept. Per thread.
    #[inline(always)]
    fn keeps(&self, part: Part, entry: u32) -> bool {
        if entry < self.capacity_per_source {
            return true;
        }
        let source = |entry: u32| quotient(self.row(part.first + entry), self.max_tokens);
        source(entry - self.capacity_per_source) != source(entry)
    }

    /// How many entries of a part are kept that are of a row before `place`, and whether that one's is. Warp-collective, uniform.
    #[inline(always)]
    fn kept_before(&self, part: Part, place: u32) -> (u32, bool) {
        let (mut before, mut first, mut itself) = (0, 0, false);
        while first < part.count {
            let entry = first + warp::lane();
            let mut row = NO_ROW;
            let mut kept = false;
            if entry < part.count {
                row = self.row(part.first + entry);
                kept = self.keeps(part, entry);
            }
            before += warp::ballot(warp::ALL, kept && row < place).count_ones();
            itself |= warp::ballot(warp::ALL, kept && row == place) != 0;
            first += warp::LANES;
        }
        (before, itself)
    }
}

/// Packs all rows; `DROPS` those that are too many for an expert.
#[inline(always)]
pub(crate) fn run<const DROPS: bool>(a: &PackArgs) {
    // It waits for nobody, so its blocks are all there soon.
    grid::let_the_next_one_begin();
    // As many bytes as so many elements of BF16.
    let parts = Parts::new(a.row_bytes / 2, a.ranks * a.max_tokens);
    let routing = a.routing.load_weak(0);
    let first = expert_of_lane(a, parts, grid_warps::index());
    let came = routing != 0;
    if came {
        pack_all::<DROPS>(a, parts, first);
    }
    // Behind the rows of the first warps, which have most: from the last warp on.
    let number = grid_warps::count() - 1 - grid_warps::index();
    for expert in thread::strided(number, a.experts, grid_warps::count()) {
        close_expert::<DROPS>(a, expert, came);
    }
    for source in thread::strided(number, a.ranks, grid_warps::count()) {
        let selections = if came { count_source::<DROPS>(a, source) } else { 0 };
        if warp::lane() == 0 {
            a.to.counts.store_weak(1 + source, selections);
        }
    }
    if number == 0 && warp::lane() == 0 {
        let end = if came { a.begin(a.experts) } else { 0 };
        a.to.counts.store_weak(0, end);
        a.to.counts.store_weak(1 + a.ranks + 2 * a.experts, end);
    }
}

/// Packs this warp's share of the rows, or of pieces of them, where there are fewer rows than warps.
#[inline(always)]
fn pack_all<const DROPS: bool>(a: &PackArgs, parts: Parts, first: i32) {
    let (mut number, mut next) = (grid_warps::index(), first);
    while parts.token(number) < a.ranks * a.max_tokens {
        let (of_part, expert) = (number, next);
        number += grid_warps::count();
        // The next one's selections are on their way while this one is laid.
        next = expert_of_lane(a, parts, number);
        if warp::ballot(warp::ALL, expert >= 0) != 0 {
            pack::<DROPS>(a, parts.token(of_part), expert, parts.vectors(of_part, a.row_bytes / 2));
        }
    }
}

/// This lane's expert of a part's row; -1 where it has none.
#[inline(always)]
fn expert_of_lane(a: &PackArgs, parts: Parts, number: u32) -> i32 {
    let (place, lane) = (parts.token(number), warp::lane());
    let mut expert = -1;
    if place < a.ranks * a.max_tokens && lane < a.top_k {
        expert = a.topk.rows(a.top_k_stride).row(place).load_weak(lane);
    }
    expert
}

/// Copies the `vectors` of the row in `place` to where each lane's `expert` has it, with what goes with the row if they are its first. Warp-collective.
#[inline(always)]
fn pack<const DROPS: bool>(a: &PackArgs, place: u32, expert: i32, vectors: [u32; 2]) {
    // The row is on its way while its places are found.
    let mut started = start(a, Piece { place, expert, to: NO_ROW, vectors });
    let mut to = NO_ROW;
    if DROPS {
        let mut selected = warp::ballot(warp::ALL, expert >= 0);
        while selected != 0 {
            let lane = selected.trailing_zeros();
            selected &= selected - 1;
            let of_lane = warp::shuffle(warp::ALL, expert as u32, lane);
            let (before, itself) = a.kept_before(a.part(of_lane), place);
            if itself && lane == warp::lane() {
                to = a.begin(of_lane) + before;
            }
        }
    } else if expert >= 0 {
        to = a.begin(expert as u32) + a.entries_before(a.part(expert as u32), place);
    }
    started.piece.to = to;
    lay(a, started, || a.sources.load_weak(place));
}

/// Writes how many rows an expert has, and what pads them. Warp-collective.
#[inline(always)]
fn close_expert<const DROPS: bool>(a: &PackArgs, expert: u32, came: bool) {
    let counts = a.to.counts.at(1 + a.ranks);
    if !came {
        if warp::lane() == 0 {
            counts.store_weak(expert, 0);
            counts.store_weak(a.experts + expert, 0);
        }
        return;
    }
    let part = a.part(expert);
    let rows = if DROPS { a.kept_before(part, NO_ROW).0 } else { part.count };
    let (begin, end) = (a.begin(expert), a.begin(expert + 1));
    if warp::lane() == 0 {
        counts.store_weak(expert, rows);
        counts.store_weak(a.experts + expert, begin);
    }
    pad(a, begin + rows, end);
}

/// How many packed rows are of a source rank. Warp-collective.
#[inline(always)]
fn count_source<const DROPS: bool>(a: &PackArgs, source: u32) -> u32 {
    let mut selections = 0;
    let begin = source * a.max_tokens;
    if DROPS {
        for expert in thread::strided(warp::lane(), a.experts, warp::LANES) {
            let part = a.part(expert);
            let of_source = a.entries_before(part, begin + a.max_tokens) - a.entries_before(part, begin);
            selections += a.kept(of_source);
        }
    } else {
        // What pads a row's selections is -1.
        let topk = a.topk.rows(a.top_k_stride).row(begin).cast::<U32x4>();
        for vector in thread::strided(warp::lane(), a.max_tokens * a.top_k_stride / 4, warp::LANES) {
            let four = topk.load_weak(vector);
            unroll!(I in 4 => {
                selections += u32::from(four[I] as i32 >= 0);
            });
        }
    }
    warp::sum(warp::ALL, selections)
}
