//! Dispatch again: new rows of the same tokens, by a routing that a dispatch has made.
//!
//! # Protocol
//!
//! Operation `e`. It selects nothing and counts nothing: where each row goes is in the handle, which lies in a *routing slot* of every rank, as
//! do the selections, gate weights, sources and counts that the dispatch brought there. These stay as they are; only rows and scales are
//! written. It is no dispatch by number, since it writes no word that carries one ([`super`] has the words).
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | `entry`² `[s]` at every rank, of `e` | block 0 of `s`, relaxed, [behind its launch](Symmetric::store_behind_launch) | `s` sends by the routing of this slot and dispatch; the receive regions of `s` are **free**: its consumers of the rows before were stream-ordered before this launch | all blocks, acquire, before the first row is written |
//! | `landed`² `[s]` at rank r, of `e` | the last block of `s` out, release, with the token of `wait_group 0` from every block | all rows of `s` for r are **there** | the last block of r out, acquire; r's consumers are stream-ordered after |
//!
//! Why a row cannot be overwritten: as in a dispatch. Its place is the one that it had there, so no two rows share one if all ranks
//! replay the same dispatch. That is what the entry word says, of slot and number, and every rank sees the same words.
//!
//! Where rows lie by expert there is [another](super::again_by_expert) second half.
//!
//! A slot whose dispatch failed has the number 0: a rank that finds that files it and posts no entry word. After a replay that failed the
//! slot has no routing either, and its counts are zero, as are the offsets of its index by expert, so that consumers behind it have nothing to do.
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::args::Chunk;
use super::finish::exchange;
use super::send::{memory_of_warp, send_scales};
use crate::layout::{DispatchShared, RecvRegions, THREADS};
use crate::row::{Row, RowArgs};
use crate::words::{Flags, Kind, Operation, Phase, no_routing};

/// Arguments of a dispatch by an old routing.
///
/// Launch contract: `op`, `recv` and `landed` describe windows laid out by `WindowLayout` for the same shape at every rank; `send_rank`,
/// `send_row`, `recv_counts`, `index_offsets` and `routing` are of one slot, which a dispatch of `tokens` tokens has written; `rows` holds as many
/// rows and is not written while the kernel runs; the launch has no more blocks than the layouts were made for, and their dynamic shared memory,
/// and all blocks are resident together.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct DispatchAgainArgs {
    /// Flags, counters, faults.
    pub op: Operation,
    /// Where rows land at every rank.
    pub recv: RecvRegions,
    /// Landed words: the epoch.
    pub landed: Flags<2>,
    /// The rows.
    pub rows: RowArgs,
    /// `[1]`: the number of the dispatch whose routing this slot has; 0 is none.
    pub routing: Global<u64>,
    /// i32 `[tokens][top_k]`: the handle.
    pub send_rank: Global<i32>,
    /// u32 `[tokens][top_k]`: the handle.
    pub send_row: Global<u32>,
    /// u32 `[counts]`: the received counts of the slot; zeroed by a replay that fails.
    pub recv_counts: Global<u32>,
    /// u32 `[offsets]`: where each expert's part of the slot's index begins, and the end; zeroed by a replay that fails.
    pub index_offsets: Global<u32>,
    /// The block's shared memory.
    pub shared: DispatchShared,
    /// Tokens of this rank.
    pub tokens: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// How many received counts there are.
    pub counts: u32,
    /// The slot.
    pub slot: u32,
    /// How many offsets its index has; 0 where there is none.
    pub offsets: u32,
    /// Keeps the size a multiple of 8 bytes.
    pub reserved: u32,
}

/// Moves the rows.
#[inline(always)]
pub(crate) fn run<R: Row>(a: &DispatchAgainArgs) {
    let watch = wait::Watch::begin(a.op.fault, a.op.next_epoch());
    let mut ended = attempt::<R>(a, &watch);
    let landed = bulk::land();
    let last = a.op.grid.last_out(landed, ended.is_err());
    if let Some(last) = &last {
        let finished = finish(a, &watch, last);
        ended = ended.and(finished);
    }
    if let Err(stopped) = ended {
        watch.file_of_grid(stopped, last.is_some());
    }
}

/// A block's part: meets all ranks, and sends.
#[inline(always)]
fn attempt<R: Row>(a: &DispatchAgainArgs, watch: &wait::Watch) -> Result<(), fault::Stopped> {
    let free = enter(a, watch)?;
    send::<R, false>(a, &free);
    Ok(())
}

/// Meets all ranks, which replay the same routing, at regions that are free.
#[inline(always)]
pub(super) fn enter(a: &DispatchAgainArgs, watch: &wait::Watch) -> Result<BulkAccess, fault::Stopped> {
    let look = watch.look();
    let dispatch = a.routing.load_weak(0);
    // Behind a fault nothing is published.
    no_routing(dispatch, a.slot, a.op.window(), watch.found(look, Phase::Entry as u32)).settle()?;
    let (window, entry) = (a.op.window(), a.op.entry.of_dispatch(dispatch));
    if thread::block_index() == 0 && thread::index() < window.peers {
        entry.post(window, Peer(thread::index()), watch.epoch(), Kind::DispatchAgain);
    }
    let acquired = entry.meet(window, watch, Kind::DispatchAgain)?;
    // The free edges order the owners' reads with this block's bulk stores.
    Ok(acquired.for_bulk_copies())
}

/// Where this lane's selection sends the row of a token.
#[derive(Clone, Copy)]
struct Copy {
    /// The rank, or -1.
    rank: i32,
    /// The row there.
    row: u32,
}

impl Copy {
    #[inline(always)]
    fn load(a: &DispatchAgainArgs, token: u32, end: u32) -> Self {
        let mut copy = Self { rank: -1, row: 0 };
        if token < end && warp::lane() < a.top_k {
            let at = u64::from(token) * u64::from(a.top_k) + u64::from(warp::lane());
            copy.rank = a.send_rank.load_weak(at);
            copy.row = a.send_row.load_weak(at);
        }
        copy
    }
}

/// Sends this block's rows, a warp per token. Where rows lie `BY_EXPERT`, and the handle has a row for each selection, another rank gets one, and
/// the own rank all.
#[inline(always)]
pub(super) fn send<R: Row, const BY_EXPERT: bool>(a: &DispatchAgainArgs, free: &BulkAccess) {
    if warp::index() >= a.shared.copy_warps {
        return;
    }
    let (window, chunk) = (a.op.window(), Chunk::of_block(a.tokens));
    let bytes = R::bytes(&a.rows);
    let mut row = R::new(memory_of_warp::<R>(&a.shared));
    let mut token = chunk.start + warp::index();
    let mut next = Copy::load(a, token, chunk.end);
    while token < chunk.end {
        let copy = next;
        let mut stored = copy.rank >= 0;
        if BY_EXPERT {
            let same = warp::match_any(warp::ALL, copy.rank as u32);
            let (first, own) = (same.trailing_zeros() == warp::lane(), copy.rank == window.rank().0 as i32);
            stored = stored && (first || own);
        }
        let mut lanes = warp::ballot(warp::ALL, stored);
        // The next token's loads are on their way while this one's row is.
        next = Copy::load(a, token + a.shared.copy_warps, chunk.end);
        if lanes != 0 {
            let mut to = None;
            if stored {
                to = Some(window.of(window.peer_of(Rank(copy.rank as u32)), a.recv.x).rows(bytes).row(copy.row));
            }
            row = row.send(&a.rows, token, lanes.count_ones(), to, free, |scales| {
                while R::SCALES && lanes != 0 {
                    let k = lanes.trailing_zeros();
                    lanes &= lanes - 1;
                    let to = window.peer_of(Rank(warp::shuffle(warp::ALL, copy.rank as u32, k)));
                    let at = warp::shuffle(warp::ALL, copy.row, k);
                    let vectors = R::scale_vectors(&a.rows, None);
                    send_scales(window.of(to, a.recv.scales), a.rows.scale_stride, at, scales, vectors);
                }
            });
        }
        token += a.shared.copy_warps;
    }
}

/// The last block out: tells every peer that its rows are there, waits for theirs, advances the epoch. It says whether it stopped at that.
#[inline(always)]
fn finish(a: &DispatchAgainArgs, watch: &wait::Watch, last: &grid::LastOut) -> Result<(), fault::Stopped> {
    let mut arrived = Ok(());
    let mut complete = false;
    // No block of this rank has stopped; a peer may have.
    if let Some(landed) = last.landed() {
        arrived = exchange(&a.landed, a.op.window(), watch, landed);
        complete = arrived.is_ok();
    }
    close(a, watch, complete);
    arrived
}

/// Zeroes the counts if the operation is not `complete`, and the index's offsets, and its routing; advances the epoch.
#[inline(always)]
pub(super) fn close(a: &DispatchAgainArgs, watch: &wait::Watch, complete: bool) {
    if !complete {
        for i in thread::strided(thread::index(), a.counts, THREADS) {
            a.recv_counts.store_weak(i, 0);
        }
        for i in thread::strided(thread::index(), a.offsets, THREADS) {
            a.index_offsets.store_weak(i, 0);
        }
    }
    if thread::index() == 0 {
        if !complete {
            a.routing.store_weak(0, 0);
        }
        a.op.epoch.store_weak(0, watch.epoch());
    }
}
