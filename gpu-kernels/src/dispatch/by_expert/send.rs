//! Sending where rows lie by expert.
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::super::args::{Chunk, DispatchArgs};
use super::super::count::Place;
use super::super::send::{Begun, Selected, piece, send_scales};
use crate::order::Order;
use crate::row::Row;
use crate::words::{PlaceWords, Source};

/// Where a lane's selection sends its row.
#[derive(Clone, Copy)]
struct Target {
    /// The owner, or -1 where there is no selection.
    rank: i32,
    /// The row there.
    row: u32,
    /// Whether this rank stores it, or the owner copies it.
    stored: bool,
}

impl Target {
    /// Finds it, and writes the row to the handle if this warp `notes` it. Warp-collective.
    #[inline(always)]
    fn new(a: &DispatchArgs, token: u32, selected: Selected, notes: bool) -> Self {
        let (lane, peer) = (warp::lane(), selected.peer(a.op.window()));
        let mut row = 0;
        if peer.is_some() {
            row = place(a, selected);
        }
        if lane < a.top_k && notes {
            let (window, at) = (a.op.window(), u64::from(token) * u64::from(a.top_k) + u64::from(lane));
            window.own(a.handle_rank).store_weak(at, selected.rank);
            window.own(a.handle_row).store_weak(at, row);
        }
        let same = warp::match_any(warp::ALL, selected.rank as u32);
        let first = same.trailing_zeros() == lane;
        let own = peer == Some(a.op.window().me);
        Self { rank: selected.rank, row, stored: peer.is_some() && (own || first) }
    }
}

/// The row of a selection where it is received. Per thread.
#[inline(always)]
fn place(a: &DispatchArgs, selected: Selected) -> u32 {
    let Place { warp, number } = Place::from_word(selected.place);
    let expert = selected.index as u32;
    let base = Shared::<u32>::dynamic(a.shared.bases).load_weak(expert);
    base + Shared::<u32>::dynamic(a.shared.places).load_weak(warp * a.placement.experts + expert) + number
}

/// The selection, or none if its expert's slab is full before it: then the handle has none either. Per thread.
#[inline(always)]
fn keep(a: &DispatchArgs, selected: Selected) -> Selected {
    let Some(peer) = selected.peer(a.op.window()) else { return selected };
    let local = selected.index as u32 - a.placement.first(peer.0);
    if place(a, selected) < (local + 1) * a.bound.capacity {
        return selected;
    }
    Selected { rank: -1, ..selected }
}

/// Sends this block's rows, a warp per token.
#[inline(always)]
pub(in super::super) fn send<R: Row, O: Order>(
    a: &DispatchArgs,
    watch: &wait::Watch,
    chunk: Chunk,
    begun: Begun<R>,
    free: &BulkAccess,
) {
    tell_tokens(a, watch.epoch());
    let bytes = R::bytes(&a.rows);
    let Begun { mut token, selected: mut next, row: mut started } = begun;
    while let Some(on_its_way) = started {
        let piece = piece::<R>(a, chunk, token);
        let notes = Begun::<R>::is_first(piece);
        let mut selected = next;
        if O::OBSERVED && a.bound.drops != 0 {
            selected = keep(a, selected);
        }
        let target = Target::new(a, token, selected, notes);
        if notes {
            tell_places(a, watch, token - chunk.start, target);
        }
        let stored = warp::ballot(warp::ALL, target.stored);
        let following = token + a.shared.copy_warps;
        if !R::SCALES {
            // As in the other order: later than this one's use.
            next = Selected::load(a, following, chunk.end);
        }
        let row = if stored != 0 {
            let mut to = None;
            if target.stored {
                let window = a.op.window();
                to = Some(window.of(window.peer_of(Rank(target.rank as u32)), a.recv.x).rows(bytes).row(target.row));
            }
            // Before the row is made, which takes most registers, so that what is written here need not be kept.
            if notes {
                send_beside(a, token, selected, target);
            }
            R::finish(on_its_way, &a.rows, token, piece, to, free, |scales| {
                if R::SCALES {
                    let vectors = R::scale_vectors(&a.rows, piece);
                    send_all_scales(a, stored, target.rank, target.row, scales, vectors);
                }
            })
        } else {
            R::give_up(on_its_way)
        };
        token = following;
        if R::SCALES {
            // While a row is quantised no register is left to hold it.
            next = Selected::load(a, token, chunk.end);
        }
        started = None;
        if token < chunk.end {
            // Each selection has one, but for what is copied on.
            let copies = || warp::ballot(warp::ALL, next.rank >= 0).count_ones();
            started = Some(row.start_for(&a.rows, token, copies));
        }
    }
}

/// Tells the peers' blocks of this number where the rows of the block's token `nth` lie, if it is among the first. Per thread.
#[inline(always)]
fn tell_places(a: &DispatchArgs, watch: &wait::Watch, nth: u32, target: Target) {
    if !a.places.is_first(nth) || warp::lane() >= a.top_k {
        return;
    }
    let window = a.op.window();
    for peer in thread::strided(0, window.peers, 1) {
        let peer = Peer(peer);
        if peer != window.me && window.is_there(peer) {
            let here = target.rank == window.rank_of(peer).0 as i32;
            let row = if here { target.row } else { PlaceWords::NOWHERE };
            a.places.tell(window, watch.epoch(), peer, (nth, warp::lane()), row);
        }
    }
}

/// Tells every peer how many tokens this rank has, in operation `number`. By every block, so that its landed word publishes it; and to the blocks of its number, who may know it before.
#[inline(always)]
pub(in super::super) fn tell_tokens(a: &DispatchArgs, number: u64) {
    let (window, peer) = (a.op.window(), Peer(thread::index()));
    if peer.0 < window.peers {
        window.of(peer, a.tokens_of).store_relaxed::<System>(window.me, a.tokens);
        if window.is_there(peer) {
            a.places.tell_tokens(window, number, peer, a.tokens);
        }
    }
}

/// Writes beside each row what goes with it, a lane for each. Per thread.
#[inline(always)]
fn send_beside(a: &DispatchArgs, token: u32, selected: Selected, target: Target) {
    let window = a.op.window();
    if let Some(peer) = selected.peer(a.op.window()) {
        let source = Source { rank: window.rank(), token }.to_word();
        window.of(peer, a.recv.source).store_weak(target.row, source);
        window.of(peer, a.recv.weights).store_weak(target.row, selected.weight);
        window.of(peer, a.recv.topk).store_weak(target.row, selected.index - a.placement.first(peer.0) as i32);
    }
}

/// Writes the scales beside the rows that the lanes of `stored` store. Warp-collective.
#[inline(always)]
fn send_all_scales(a: &DispatchArgs, stored: u32, rank: i32, row: u32, scales: Shared<U32x4>, vectors: (u32, u32)) {
    let mut lanes = stored;
    while lanes != 0 {
        let k = lanes.trailing_zeros();
        lanes &= lanes - 1;
        let peer = a.op.window().peer_of(Rank(warp::shuffle(warp::ALL, rank as u32, k)));
        let row = warp::shuffle(warp::ALL, row, k);
        send_scales(a.op.window().of(peer, a.recv.scales), a.rows.scale_stride, row, scales, vectors);
    }
}
