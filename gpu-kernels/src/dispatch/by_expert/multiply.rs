//! Copying on: rows that crossed once, to the other rows of their tokens here.
use bulk::{Loads, Ring};
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::super::args::{Chunk, DispatchArgs, Now};
use super::super::fit;
use super::super::send::memory_of_warp;
use super::write_counts;
use crate::grid_warps;
use crate::layout::WARPS;
use crate::order::Order;
use crate::placement::remainder;
use crate::row::Row;
use crate::turns;
use crate::words::{Phase, Source};

/// The second half of a block's part, which has `ended` the first so: it tells the blocks of its number that its rows are there, waits for
/// theirs, and copies them on.
///
/// # Errors
///
/// That the block stops, or has stopped before.
#[inline(always)]
pub(in super::super) fn multiply<R: Row, O: Order>(
    a: &DispatchArgs,
    watch: &wait::Watch,
    now: Now,
    ended: Result<(), fault::Stopped>,
) -> Result<(), fault::Stopped> {
    let landed = bulk::land();
    // A block that has stopped posts nothing. What it files ends the others' wait, or all blocks of all ranks have found the same: a fault
    // that is told here alone is one that each finds in the same words.
    ended?;
    a.block_landed.post(a.op.window(), watch.epoch(), &landed);
    // While peers' rows are awaited, which do not lie there; whoever reads it comes behind the kernel.
    mark_padding(a);
    // By the block with the fewest tokens.
    if thread::block_index() + 1 == thread::grid_blocks() {
        write_counts::<O>(a, now, !(O::OBSERVED && fit::is_exceeded(a)));
    }
    if a.zero_padding != 0 {
        zero_padding::<R>(a);
    }
    let here = a.block_landed.wait(a.op.window(), watch, Phase::Landed, watch.epoch())?;
    copy_on::<R>(a, &here.for_bulk_copies());
    Ok(())
}

/// A token of a peer's that the block of this number there has sent.
#[derive(Clone, Copy)]
struct Sent {
    /// Its number among the block's, over all peers.
    number: u32,
    /// Where this lane's selection sent its row, or -1.
    rank: i32,
    /// The row there.
    row: u32,
}

impl Sent {
    /// Number `number` of this block.
    #[inline(always)]
    fn load(a: &DispatchArgs, number: u32) -> Self {
        let window = a.op.window();
        let (peer, of_peer) = turns::work(window, number);
        let mut sent = Self { number, rank: -1, row: 0 };
        if peer.0 < window.peers {
            let chunk = Chunk::of_block(tokens_of(a, peer));
            let (token, lane) = (chunk.start + of_peer, warp::lane());
            if of_peer < chunk.end - chunk.start && lane < a.top_k {
                let at = u64::from(token) * u64::from(a.top_k) + u64::from(lane);
                sent.rank = window.of(peer, a.handle_rank).load_weak(at);
                sent.row = window.of(peer, a.handle_row).load_weak(at);
            }
        }
        sent
    }
}

/// How many tokens a peer dispatches, which its block of this number has told.
#[inline(always)]
fn tokens_of(a: &DispatchArgs, peer: Peer) -> u32 {
    a.op.window().own(a.tokens_of).load_relaxed::<System>(peer)
}

/// Copies on the rows that the blocks of this number have sent.
#[inline(always)]
fn copy_on<R: Row>(a: &DispatchArgs, free: &BulkAccess) {
    if warp::index() >= a.shared.copy_warps {
        return;
    }
    let (memory, window, bytes) = (memory_of_warp::<R>(&a.shared), a.op.window(), R::bytes(&a.rows));
    // Behind those of the stages, since nobody knows any more in which phase these are.
    let mbarrier = Shared::<u64>::dynamic(WARPS * 8 * a.shared.stages_of_warp).at(warp::index());
    let mut ring = Ring::<1, Loads>::with_loads(memory.stages, a.shared.stage_bytes, mbarrier);
    let rows = window.own(a.recv.x).rows(bytes);
    let end = turns::end(window, |peer| {
        let chunk = Chunk::of_block(tokens_of(a, peer));
        chunk.end - chunk.start
    });
    let mut next = Sent::load(a, warp::index());
    while next.number < end {
        let Sent { number, rank, row } = next;
        let here = warp::ballot(warp::ALL, rank == window.rank().0 as i32);
        // The next one's handle is on its way while this one's row is.
        next = Sent::load(a, number + a.shared.copy_warps);
        // It came to the first, if to any.
        let (first, others) = (here.trailing_zeros(), here & here.wrapping_sub(1));
        if others != 0 {
            let came = warp::shuffle(warp::ALL, row, first);
            let loading = ring.load(rows.row(came).as_global(), bytes);
            let source = loading.wait();
            if others >> warp::lane() & 1 != 0 {
                source.store(free, 0, rows.row(row), bytes);
            }
            if R::SCALES {
                copy_scales(a, came, row, others);
            }
            ring = source.send();
        }
    }
}

/// Marks what pads the rows of this rank's experts: a warp of the grid for each expert.
#[inline(always)]
fn mark_padding(a: &DispatchArgs) {
    let owned = a.owned();
    for expert in thread::strided(grid_warps::index(), owned.experts, grid_warps::count()) {
        let (first, end) = (owned.first(expert) + owned.count(expert), owned.first(expert + 1));
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

/// Copies the scales of row `came` to the row that each of the lanes `others` has. Warp-collective.
#[inline(always)]
fn copy_scales(a: &DispatchArgs, came: u32, row: u32, mut others: u32) {
    let scales = a.op.window().own(a.recv.scales).rows(a.rows.scale_stride);
    let from = scales.row(came).cast::<U32x4>();
    while others != 0 {
        let to = scales.row(warp::shuffle(warp::ALL, row, others.trailing_zeros())).cast::<U32x4>();
        others &= others - 1;
        for vector in thread::strided(warp::lane(), a.rows.scale_stride / 4, warp::LANES) {
            to.store_weak(vector, from.load_weak(vector));
        }
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
