//! Copying on: rows that crossed once, to the other rows of their tokens here.
use bulk::{Loads, Ring};
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::super::args::DispatchArgs;
use super::super::send::memory_of_warp;
use super::link;
use crate::grid_warps;
use crate::layout::WARPS;
use crate::placement::remainder;
use crate::row::Row;
use crate::words::Phase;

/// The second half of a block's part, which has `ended` the first so: the last block of the grid tells every peer that its rows are there;
/// every block waits for theirs, and copies on its share of the rows.
///
/// # Errors
///
/// That the block stops, or has stopped before.
#[inline(always)]
pub(in super::super) fn multiply<R: Row>(
    a: &DispatchArgs,
    watch: &wait::Watch,
    ended: Result<(), fault::Stopped>,
) -> Result<(), fault::Stopped> {
    let landed = bulk::land();
    let last = a.half.last_out(landed, ended.is_err());
    ended?;
    // A block that has stopped posts nothing. What it files ends the others' wait, or all blocks of all ranks have found the same: a fault
    // that is told here alone is one that each finds in the same words.
    if let Some(landed) = last.as_ref().and_then(grid::LastOut::landed) {
        watch.unless_aborted(Phase::End as u32)?;
        a.landed.post(a.op.window(), watch.epoch(), landed);
    }
    if a.zero_padding != 0 {
        zero_padding::<R>(a);
    }
    let here = a.landed.wait(a.op.window(), watch, Phase::Landed, watch.epoch())?;
    copy_on::<R>(a, &here.for_bulk_copies());
    Ok(())
}

/// Copies on this block's share of the rows.
#[inline(always)]
fn copy_on<R: Row>(a: &DispatchArgs, free: &BulkAccess) {
    if warp::index() >= a.shared.copy_warps {
        return;
    }
    let (owned, memory, window) = (a.owned(), memory_of_warp::<R>(&a.shared), a.op.window());
    // Behind those of the stages, since nobody knows any more in which phase these are.
    let mbarrier = Shared::<u64>::dynamic(WARPS * 8 * a.shared.stages_of_warp).at(warp::index());
    let mut ring = Ring::<1, Loads>::with_loads(memory.stages, a.shared.stage_bytes, mbarrier);
    let (links, sources, bytes) = (window.own(a.recv.link), window.own(a.recv.source), R::bytes(&a.rows));
    let rows = window.own(a.recv.x).rows(bytes);
    let copying = a.shared.copy_warps * thread::grid_blocks();
    let mut turns = link::Turns::new(links, owned.first(owned.experts), grid_warps::index(), copying);
    while let Some((first, word)) = turns.next() {
        // Those of this rank's own tokens were stored to all their places.
        let mut here = link::is_first(word);
        if here {
            here = (sources.load_weak(first + warp::lane()) >> 32) as u32 != window.me.0;
        }
        let mut lanes = warp::ballot(warp::ALL, here);
        while lanes != 0 {
            let lane = lanes.trailing_zeros();
            lanes &= lanes - 1;
            let row = first + lane;
            let loading = ring.load(rows.row(row).as_global(), bytes);
            let (others, other) = link::others(links, warp::shuffle(warp::ALL, word, lane));
            let source = loading.wait();
            if let Some(other) = other {
                source.store(free, 0, rows.row(other), bytes);
            }
            if R::SCALES {
                copy_scales(a, row, other, others);
            }
            ring = source.send();
        }
    }
}

/// Marks what pads the rows of this rank's experts: a warp of the grid for each expert. Before the grid's first half is over, so that
/// whoever looks at links in the second finds it done.
#[inline(always)]
pub(in super::super) fn mark_padding(a: &DispatchArgs) {
    let owned = a.owned();
    for expert in thread::strided(grid_warps::index(), owned.experts, grid_warps::count()) {
        let (first, end) = (owned.first(expert) + owned.count(expert), owned.first(expert + 1));
        for row in thread::strided(first + warp::lane(), end, warp::LANES) {
            mark(a, row);
        }
    }
}

/// Zeroes this block's share of what pads the rows of this rank's experts. While peers' rows are awaited, which do not lie there; whoever
/// reads it comes behind the kernel.
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

/// Copies the scales of `row` to the row that each of the first `others` lanes has. Warp-collective.
#[inline(always)]
fn copy_scales(a: &DispatchArgs, row: u32, other: Option<u32>, others: u32) {
    let scales = a.op.window().own(a.recv.scales).rows(a.rows.scale_stride);
    let from = scales.row(row).cast::<U32x4>();
    let mut k = 0;
    while k < others {
        let to = scales.row(warp::shuffle(warp::ALL, other.unwrap_or(0), k)).cast::<U32x4>();
        for vector in thread::strided(warp::lane(), a.rows.scale_stride / 4, warp::LANES) {
            to.store_weak(vector, from.load_weak(vector));
        }
        k += 1;
    }
}

/// Says of a row that it pads: it is of no token. Per thread.
#[inline(always)]
fn mark(a: &DispatchArgs, row: u32) {
    let window = a.op.window();
    window.own(a.recv.source).store_weak(row, NOBODY);
    window.own(a.recv.topk).store_weak(row, -1);
    window.own(a.recv.link).store_weak(row, link::ALONE);
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

/// The source of a row that pads.
const NOBODY: u64 = u64::MAX;
