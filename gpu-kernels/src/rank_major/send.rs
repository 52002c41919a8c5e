//! Sending: every token's row to its place at each rank that owns one of its experts, and which those are to all.
use epoxide_dsl::prelude::*;

use super::args::DispatchRankMajorArgs;
use crate::dispatch::memory_of_warp;
use crate::dispatch::send_scales;
use crate::row::Row;
use crate::words::{Phase, Selection};

/// A sending block's part, of `senders`: its tokens.
///
/// # Errors
///
/// That the block stops.
#[inline(always)]
pub(super) fn send<R: Row>(
    a: &DispatchRankMajorArgs,
    watch: &wait::Watch,
    number: u64,
    (sender, senders): (u32, u32),
) -> Result<(), fault::Stopped> {
    let window = a.op.window();
    let (copy_warps, step) = (a.shared.copy_warps, a.shared.copy_warps * senders);
    let copies = warp::index() < copy_warps;
    // Neighbours go to different blocks: few tokens take as many blocks as there are.
    let mut token = if copies { sender + warp::index() * senders } else { a.tokens };
    // All are on their way together: whether somebody gave up, whether the slot is free, the first token's selections, and its row.
    let (look, freed) = (watch.look(), a.freed.load_weak(0));
    let mut next = Selected::load(a, token);
    let mut started = None;
    if token < a.tokens {
        started = Some(R::new(memory_of_warp::<R>(&a.shared)).start(&a.rows, token));
    }
    // Behind a fault nothing is published.
    let entered = watch.found(look, Phase::Entry as u32).settle();
    let free = match entered.and_then(|()| super::free(a, watch, freed)) {
        Ok(free) => free,
        Err(stopped) => {
            if let Some(row) = started {
                R::give_up(row);
            }
            return Err(stopped);
        }
    };
    if sender == 0 && thread::index() < window.peers {
        a.selections.tell_tokens(window, number, Peer(thread::index()), a.tokens);
    }
    while let Some(row) = started {
        let selected = next;
        next = Selected::load(a, token + step);
        let sent =
            R::send_started(row, &a.rows, token, &free, |scales| send_beside::<R>(a, number, token, selected, scales));
        token += step;
        started = if token < a.tokens { Some(sent.start(&a.rows, token)) } else { None };
    }
    let landed = bulk::land();
    if thread::index() < window.peers {
        // Of a block without tokens there is nothing to wait for.
        let landed = if sender < a.tokens { Some(&landed) } else { None };
        a.landings.add(window, Peer(thread::index()), (sender, senders), landed);
    }
    Ok(())
}

/// What a lane knows of one selection of a token.
#[derive(Clone, Copy)]
struct Selected {
    /// As the caller gave it; -1 where there is none.
    index: i64,
    /// Its gate weight.
    weight: f32,
}

impl Selected {
    #[inline(always)]
    fn load(a: &DispatchRankMajorArgs, token: u32) -> Self {
        let lane = warp::lane();
        let mut selected = Self { index: -1, weight: 0.0 };
        if token < a.tokens && lane < a.top_k {
            selected.index = a.selection(token, lane);
            selected.weight = a.topk_weights.rows(a.top_k).row(token).load_weak(lane);
        }
        selected
    }
}

/// Tells every rank what the token selects there, writes what goes with the row to where it goes, and the handle; says where this lane copies the row to.
/// Warp-collective.
#[inline(always)]
fn send_beside<R: Row>(
    a: &DispatchRankMajorArgs,
    number: u64,
    token: u32,
    selected: Selected,
    scales: Shared<U32x4>,
) -> Option<Symmetric<u8>> {
    let (window, lane) = (a.op.window(), warp::lane());
    let Selected { index, weight } = selected;
    let earlier = (1 << lane) - 1;
    let selects = index >= 0 && index < i64::from(a.placement.experts);
    // Lanes that select nothing are like no other.
    let expert = if selects { index as u32 } else { u32::MAX - lane };
    let owner = if selects { a.placement.owner(expert) } else { u32::MAX - lane };
    let (same_expert, same_rank) = (warp::match_any(warp::ALL, expert), warp::match_any(warp::ALL, owner));
    let (repeated, is_first) = (same_expert & earlier != 0, same_rank & earlier == 0);
    let mut selection = Selection::NONE;
    if selects {
        selection = Selection::of_expert(expert - a.placement.first(owner));
    }
    if repeated {
        selection = Selection::REPEATED;
    } else if index < -1 || index >= i64::from(a.placement.experts) {
        selection = Selection::OUT_OF_RANGE;
    }
    // The row of a token with a bad one goes nowhere: every rank is told.
    let any_bad = warp::ballot(warp::ALL, selection.is_bad()) != 0;
    let row = a.row(window.me.0, token);
    if any_bad {
        if selection.is_bad() {
            tell_index(a, row, index as u64);
        }
        // Other lanes write their words.
        warp::sync(warp::ALL);
    }
    tell(a, number, token, owner, selection);

    let sends = selects && is_first && !any_bad;
    if lane < a.top_k {
        let at = u64::from(token) * u64::from(a.top_k) + u64::from(lane);
        a.send_rank.store_weak(at, if sends { window.rank_of(Peer(owner)).0 as i32 } else { -1 });
        a.send_row.store_weak(at, row);
    }
    let mut lanes = warp::ballot(warp::ALL, sends);
    while lanes != 0 {
        let k = lanes.trailing_zeros();
        lanes &= lanes - 1;
        let to = warp::shuffle(warp::ALL, owner, k);
        if lane < a.top_k_stride {
            let weights = window.of(Peer(to), a.recv.weights).rows(a.top_k_stride).row(row);
            weights.store_weak(lane, if owner == to { weight } else { 0.0 });
        }
        if R::SCALES {
            send_scales(window.of(Peer(to), a.recv.scales), a.rows.scale_stride, row, scales);
        }
    }
    sends.then(|| window.of(Peer(owner), a.recv.x).rows(R::bytes(&a.rows)).row(row))
}

/// Tells every rank what each selection of a token is to it: so many ranks at once as the warp has lanes for. Warp-collective.
#[inline(always)]
fn tell(a: &DispatchRankMajorArgs, number: u64, token: u32, owner: u32, selection: Selection) {
    let (window, lane) = (a.op.window(), warp::lane());
    let lanes_log2 = 32 - (a.top_k - 1).leading_zeros();
    let position = lane & ((1 << lanes_log2) - 1);
    let owner = warp::shuffle(warp::ALL, owner, position);
    let selection = Selection::from_bits(warp::shuffle(warp::ALL, selection.bits(), position));
    let ranks = if position < a.top_k { window.peers } else { 0 };
    for peer in thread::strided(lane >> lanes_log2, ranks, warp::LANES >> lanes_log2) {
        let told = if selection.is_bad() || owner == peer { selection } else { Selection::NONE };
        a.selections.tell(window, number, Peer(peer), (token, position), told);
    }
}

/// Writes at every rank, where the selection's local expert and weight would be, the index that is bad. Its word, which another lane writes, comes behind it.
/// Per thread.
#[inline(always)]
fn tell_index(a: &DispatchRankMajorArgs, row: u32, index: u64) {
    let (window, position) = (a.op.window(), warp::lane());
    for peer in thread::strided(0, window.peers, 1) {
        window.of(Peer(peer), a.recv.topk).rows(a.top_k_stride).row(row).store_weak(position, index as i32);
        let high = f32::from_bits((index >> 32) as u32);
        window.of(Peer(peer), a.recv.weights).rows(a.top_k_stride).row(row).store_weak(position, high);
    }
}
