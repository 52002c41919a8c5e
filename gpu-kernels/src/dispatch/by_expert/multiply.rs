//! The second half of a dispatch where rows lie by expert: rows that crossed once are copied on, and what pads is marked meanwhile.
use epoxide_dsl::prelude::*;

use super::super::args::{DispatchArgs, Now};
use super::super::fit;
use super::crossed::{Ahead, Crossed};
use super::write_counts;
use crate::grid_warps;
use crate::order::Order;
use crate::placement::remainder;
use crate::row::Row;
use crate::words::{Phase, Source};

/// The first part of a block's second half, which has `ended` the first half so: it tells the blocks of its number that its rows are there, and waits for
/// theirs.
///
/// # Errors
///
/// That the block stops, or has stopped before.
#[inline(always)]
pub(in super::super) fn exchange<R: Row, O: Order>(
    a: &DispatchArgs,
    watch: &wait::Watch,
    ended: Result<(), fault::Stopped>,
) -> Result<(Ahead<R>, wait::BulkAccess), fault::Stopped> {
    let flag = a.block_landed.of_block(a.op.window(), watch.epoch());
    let landed = bulk::land();
    // A block that has stopped posts nothing. What it files ends the others' wait, or all blocks of all ranks have found the same: a fault
    // that is told here alone is one that each finds in the same words.
    ended?;
    if let Some(flag) = flag {
        flag.post(&landed);
    }
    // While peers' rows are awaited, which do not lie there; whoever reads it comes behind the kernel.
    mark_padding::<O>(a);
    // By the block with the fewest tokens.
    if thread::block_index() + 1 == thread::grid_blocks() {
        write_counts::<O>(a, Now::load(a), !(O::OBSERVED && fit::is_exceeded(a)));
    }
    if a.zero_padding != 0 {
        zero_padding::<R>(a);
    }
    // Told since, as a rule.
    let ahead = Crossed::of(a).told(&a.places, watch.epoch());
    let here = a.block_landed.wait(a.op.window(), watch, Phase::Landed, watch.epoch())?;
    Ok((ahead, here.for_bulk_copies()))
}

/// Marks what pads the rows of this rank's experts: a warp of the grid for each expert.
///
/// In slabs what a dispatch into this routing slot has marked, and no row has come to since, is marked still. That is most of them: a slab has room for the
/// most that may come. Behind a dispatch that failed, rows of which may have come to any place, a reset forgets what is marked.
#[inline(always)]
fn mark_padding<O: Order>(a: &DispatchArgs) {
    let owned = a.owned();
    for expert in thread::strided(grid_warps::index(), owned.experts, grid_warps::count()) {
        let (first, mut end) = (owned.first(expert) + owned.count(expert), owned.first(expert + 1));
        // Where the dispatch did not fit all rows end at the first, and nothing has come.
        if O::OBSERVED && a.bound.slabs != 0 && end != 0 {
            let mut marked = 0;
            if warp::lane() == 0 {
                marked = a.bound.marked.load_weak(expert);
                a.bound.marked.store_weak(expert, end - first);
            }
            marked = warp::shuffle(warp::ALL, marked, 0);
            end = if marked < end - first { end - marked } else { first };
        }
        for row in thread::strided(first + warp::lane(), end, warp::LANES) {
            mark(a, row);
        }
    }
}

/// Zeroes this block's share of what pads the rows of this rank's experts.
#[inline(always)]
fn zero_padding<R: Row>(a: &DispatchArgs) {
    let (owned, bytes) = (a.owned(), R::bytes(&a.rows));
    let (mine, warps) = (grid_warps::index(), grid_warps::count());
    // How many of all experts' rows were dealt out before.
    let mut dealt = 0;
    for expert in thread::strided(0, owned.experts, 1) {
        let (first, end) = (owned.first(expert) + owned.count(expert), owned.first(expert + 1));
        // The warp whose turn it is takes the first, and so on.
        let before = remainder(dealt, warps);
        let skipped = if mine < before { mine + warps - before } else { mine - before };
        for row in thread::strided(first + skipped, end, warps) {
            zero::<R>(a, row, bytes);
        }
        dealt += end - first;
    }
}

/// Says of a row that it pads: it is of no token. Per thread.
#[inline(always)]
fn mark(a: &DispatchArgs, row: u32) {
    let window = a.op.window();
    window.own(a.recv.source).store_weak(row, Source::NOBODY);
    window.own(a.recv.topk).store_weak(row, -1);
    window.own(a.recv.weights).store_weak(row, 0.0);
}

/// Zeroes a row, and its scales. Warp-collective.
#[inline(always)]
fn zero<R: Row>(a: &DispatchArgs, row: u32, bytes: u32) {
    let window = a.op.window();
    let zero = |at: Symmetric<U32x4>, vectors: u32| {
        for vector in thread::strided(warp::lane(), vectors, warp::LANES) {
            at.store_weak(vector, [0; 4]);
        }
    };
    zero(window.own(a.recv.x).rows(bytes).row(row).cast(), bytes / 16);
    if R::SCALES {
        zero(window.own(a.recv.scales).rows(a.rows.scale_stride).row(row).cast(), a.rows.scale_stride / 4);
    }
}
