//! Dispatch again where rows lie by expert: a row crosses to a rank once.
//!
//! # Protocol
//!
//! That of [`super::again`] up to the rows; then, in place of its landed words, that of a dispatch by expert:
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | `block_landed`² `[s][b]` at rank r, of `e` | block `b` of `s`, release, with the token of its `wait_group 0` | the rows of `s` that its block `b` sends to r are **there** | block `b` of r, acquire, which copies them on |
//!
//! A row goes to the place of the token's first selection on the rank, which the receiver copies to the others; the sender's own go to all their places from
//! shared memory. Where to both read from the sender's handle, which a dispatch before has written in its window, with the number of the sender's tokens
//! at every peer; every peer's entry word of `e` publishes both, and nobody writes there before a later dispatch, for which all ranks must have come.
//!
//! What is copied on is written by the owner alone, to places that no source writes in this operation, and by one block. All blocks are resident
//! together, all ranks have as many, and none waits for a block word before it has posted its own, so all come. When the last block is out, all of
//! this rank's have seen those of every peer: the operation is whole.
use bulk::{Loads, Ring};
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::again::{Copy, DispatchAgainArgs, close, enter};
use super::args::Chunk;
use super::send::{memory_of_warp, send_scales};
use crate::layout::WARPS;
use crate::row::Row;
use crate::turns;
use crate::words::{BlockFlags, Phase};

/// Arguments of a dispatch by an old routing where rows lie by expert.
///
/// Launch contract: that of `again`; `tokens_of`, `handle_rank` and `handle_row` are of the same slot as it, in windows laid out for the same shape at
/// every rank, and all ranks launch as many blocks as the dispatch of that routing had.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct DispatchAgainByExpertArgs {
    /// The rows, and by which routing.
    pub again: DispatchAgainArgs,
    /// u32 `[ranks]`: how many tokens each rank has dispatched.
    pub tokens_of: Region<u32>,
    /// i32 `[tokens][top_k]` at every rank: the handle's ranks.
    pub handle_rank: Region<i32>,
    /// u32 `[tokens][top_k]` at every rank: the handle's rows.
    pub handle_row: Region<u32>,
    /// The blocks' landed words: the epoch.
    pub block_landed: BlockFlags,
}

/// Moves the rows.
#[inline(always)]
pub(crate) fn run<R: Row>(a: &DispatchAgainByExpertArgs) {
    let op = &a.again.op;
    let watch = wait::Watch::begin(op.fault, op.next_epoch());
    let mut ended = attempt::<R>(a, &watch);
    ended = multiply::<R>(a, &watch, ended);
    let landed = bulk::land();
    let last = op.grid.last_out(landed, ended.is_err());
    if let Some(last) = &last {
        let mut arrived = Ok(());
        let mut complete = false;
        // No block of this rank has stopped, so all have seen every peer's; a peer may have since.
        if last.landed().is_some() {
            arrived = watch.unless_aborted(Phase::End as u32);
            complete = arrived.is_ok();
        }
        close(&a.again, &watch, complete);
        ended = ended.and(arrived);
    }
    if let Err(stopped) = ended {
        watch.file_of_grid(stopped, last.is_some());
    }
}

/// A block's part up to its own rows: meets all ranks, and sends.
#[inline(always)]
fn attempt<R: Row>(a: &DispatchAgainByExpertArgs, watch: &wait::Watch) -> Result<(), fault::Stopped> {
    let free = enter(&a.again, watch)?;
    send::<R>(&a.again, &free);
    Ok(())
}

/// The second half: tells the blocks of this number that its rows are there, waits for theirs, and copies them on.
#[inline(always)]
fn multiply<R: Row>(
    a: &DispatchAgainByExpertArgs,
    watch: &wait::Watch,
    ended: Result<(), fault::Stopped>,
) -> Result<(), fault::Stopped> {
    let landed = bulk::land();
    // A block that has stopped posts nothing, and what it files ends the others' wait.
    ended?;
    let window = a.again.op.window();
    a.block_landed.post(window, watch.epoch(), &landed);
    let here = a.block_landed.wait(window, watch, Phase::Landed, watch.epoch())?;
    copy_on::<R>(a, &here.for_bulk_copies());
    Ok(())
}

/// Sends this block's rows, a warp per token: to another rank one, to the own rank all.
#[inline(always)]
fn send<R: Row>(a: &DispatchAgainArgs, free: &BulkAccess) {
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
        let same = warp::match_any(warp::ALL, copy.rank as u32);
        let (first, own) = (same.trailing_zeros() == warp::lane(), copy.rank == window.rank().0 as i32);
        let stored = copy.rank >= 0 && (first || own);
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
                    send_scales(window.of(to, a.recv.scales), a.rows.scale_stride, at, scales);
                }
            });
        }
        token += a.shared.copy_warps;
    }
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
    fn load(a: &DispatchAgainByExpertArgs, number: u32) -> Self {
        let window = a.again.op.window();
        let (peer, of_peer) = turns::work(window, number);
        let mut sent = Self { number, rank: -1, row: 0 };
        if peer.0 < window.peers {
            let chunk = Chunk::of_block(tokens_of(a, peer));
            let (token, lane) = (chunk.start + of_peer, warp::lane());
            if of_peer < chunk.end - chunk.start && lane < a.again.top_k {
                let at = u64::from(token) * u64::from(a.again.top_k) + u64::from(lane);
                sent.rank = window.of(peer, a.handle_rank).load_weak(at);
                sent.row = window.of(peer, a.handle_row).load_weak(at);
            }
        }
        sent
    }
}

/// How many tokens a peer has dispatched, by the routing that is replayed.
#[inline(always)]
fn tokens_of(a: &DispatchAgainByExpertArgs, peer: Peer) -> u32 {
    a.again.op.window().own(a.tokens_of).load_relaxed::<System>(peer)
}

/// Copies on the rows that the blocks of this number have sent.
#[inline(always)]
fn copy_on<R: Row>(a: &DispatchAgainByExpertArgs, free: &BulkAccess) {
    let shared = &a.again.shared;
    if warp::index() >= shared.copy_warps {
        return;
    }
    let (memory, window, bytes) = (memory_of_warp::<R>(shared), a.again.op.window(), R::bytes(&a.again.rows));
    // Behind those of the stages, since nobody knows any more in which phase these are.
    let mbarrier = Shared::<u64>::dynamic(WARPS * 8 * shared.stages_of_warp).at(warp::index());
    let mut ring = Ring::<1, Loads>::with_loads(memory.stages, shared.stage_bytes, mbarrier);
    let rows = window.own(a.again.recv.x).rows(bytes);
    let end = turns::end(window, |peer| {
        let chunk = Chunk::of_block(tokens_of(a, peer));
        chunk.end - chunk.start
    });
    let mut next = Sent::load(a, warp::index());
    while next.number < end {
        let Sent { number, rank, row } = next;
        let here = warp::ballot(warp::ALL, rank == window.rank().0 as i32);
        // The next one's handle is on its way while this one's row is.
        next = Sent::load(a, number + shared.copy_warps);
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

/// Copies the scales of row `came` to the row that each of the lanes `others` has. Warp-collective.
#[inline(always)]
fn copy_scales(a: &DispatchAgainByExpertArgs, came: u32, row: u32, mut others: u32) {
    let stride = a.again.rows.scale_stride;
    let scales = a.again.op.window().own(a.again.recv.scales).rows(stride);
    let from = scales.row(came).cast::<U32x4>();
    while others != 0 {
        let to = scales.row(warp::shuffle(warp::ALL, row, others.trailing_zeros())).cast::<U32x4>();
        others &= others - 1;
        for vector in thread::strided(warp::lane(), stride / 4, warp::LANES) {
            to.store_weak(vector, from.load_weak(vector));
        }
    }
}
