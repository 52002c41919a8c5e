//! Copying on: rows that crossed once, to the other rows of their tokens here.
use bulk::{Loads, Ring};
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::super::args::DispatchArgs;
use super::super::send::memory_of_warp;
use super::link;
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
    // A block that has stopped posts nothing, and the file that it makes ends the others' wait.
    if let Some(landed) = last.as_ref().and_then(grid::LastOut::landed) {
        watch.unless_aborted(Phase::End as u32)?;
        a.landed.post(a.op.window(), watch.epoch(), landed);
    }
    let here = a.landed.wait(a.op.window(), watch, Phase::Landed, watch.epoch())?;
    copy_on::<R>(a, &here.for_bulk_copies());
    Ok(())
}

/// Copies this block's share of the rows, and clears what pads them. A warp takes every so-many-th row, whatever its expert, so that all
/// have as many.
#[inline(always)]
fn copy_on<R: Row>(a: &DispatchArgs, free: &BulkAccess) {
    let warps = a.shared.copy_warps * thread::grid_blocks();
    if warp::index() >= a.shared.copy_warps {
        return;
    }
    let (owned, memory) = (a.owned(), memory_of_warp::<R>(&a.shared));
    // Behind those of the stages, since nobody knows any more in which phase these are.
    let mbarrier = Shared::<u64>::dynamic(WARPS * 8 * a.shared.stages_of_warp).at(warp::index());
    let mut ring = Ring::<1, Loads>::with_loads(memory.stages, a.shared.stage_bytes, mbarrier);
    let mine = warp::index() * thread::grid_blocks() + thread::block_index();
    let window = a.op.window();
    let (links, sources, bytes) = (window.own(a.recv.link), window.own(a.recv.source), R::bytes(&a.rows));
    let rows = window.own(a.recv.x).rows(bytes);
    let mut expert = 0;
    while expert < owned.experts {
        let (first, end) = (owned.first(expert), owned.first(expert + 1));
        let filled = first + owned.count(expert);
        // The first row from `first` on whose number is this warp's, counted by `warps`.
        let mut row = first + remainder(mine + warps - remainder(first, warps), warps);
        while row < filled {
            let word = links.load_weak(row);
            // Those of this rank's own tokens were stored to all their places.
            if link::is_first(word) && (sources.load_weak(row) >> 32) as u32 != window.me.0 {
                let loading = ring.load(rows.row(row).as_global(), bytes);
                // Each lane takes one of the token's other rows.
                let (mut others, mut other, mut at) = (0, None, link::next(word));
                while let Some(next) = at
                    && others < warp::LANES
                {
                    if warp::lane() == others {
                        other = Some(next);
                    }
                    others += 1;
                    at = link::next(links.load_weak(next));
                }
                let source = loading.wait();
                if let Some(other) = other {
                    source.store(free, 0, rows.row(other), bytes);
                }
                if R::SCALES {
                    copy_scales(a, row, other, others);
                }
                ring = source.send();
            }
            row += warps;
        }
        while row < end {
            clear::<R>(a, row, bytes);
            row += warps;
        }
        expert += 1;
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

/// Clears a row that pads: it is of no token, and zero if that is asked for. Warp-collective.
#[inline(always)]
fn clear<R: Row>(a: &DispatchArgs, row: u32, bytes: u32) {
    let window = a.op.window();
    if warp::lane() == 0 {
        window.own(a.recv.source).store_weak(row, NOBODY);
        window.own(a.recv.topk).store_weak(row, -1);
        window.own(a.recv.link).store_weak(row, link::ALONE);
        window.own(a.recv.weights).store_weak(row, 0.0);
    }
    if a.zero_padding == 0 {
        return;
    }
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
