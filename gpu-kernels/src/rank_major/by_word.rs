//! Rows of few tokens, which prove themselves: they are sent word by word, and who receives them writes them to their places.
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::Poll;

use super::args::DispatchRankMajorArgs;
use super::send::{Routed, Selected, free_slot};
use crate::dispatch::memory_of_warp;
use crate::layout::THREADS;
use crate::placement::quotient;
use crate::row::Row;
use crate::words::{Kind, Phase, ProvenRow, Sent, proven, proven_weight, proven_word};

/// A sending block's part, of `senders`: its pieces of tokens.
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
    let warps = a.shared.copy_warps * senders;
    let pieces = R::held_pieces(&a.rows, if a.tokens == 0 { 1 } else { quotient(warps, a.tokens) });
    let piece_of = |unit: u32| {
        let token = quotient(unit, pieces);
        (token, (unit - token * pieces, pieces))
    };
    // Neighbours go to different blocks: few tokens take as many blocks as there are.
    let mut unit = sender + warp::index() * senders;
    if warp::index() >= a.shared.copy_warps {
        unit = a.tokens * pieces;
    }
    let memory = memory_of_warp::<R>(&a.shared);
    // All are on their way together: whether somebody gave up, whether the slot is free, the first token's selections, and the piece of its row.
    let (look, freed) = (watch.look(), a.freed.load_weak(0));
    let (token, piece) = piece_of(unit);
    let selected = Selected::load(a, token);
    let mut held = None;
    if token < a.tokens {
        held = Some(R::hold(memory, &a.rows, token, piece));
    }
    enter(a, watch, number, (look, freed), (sender, senders))?;
    if let Some(held) = held {
        send_piece::<R>(a, number, token, piece, selected, &held);
    }
    // Where there are more pieces than warps.
    unit += warps;
    while unit < a.tokens * pieces {
        let (token, piece) = piece_of(unit);
        let selected = Selected::load(a, token);
        send_piece::<R>(a, number, token, piece, selected, &R::hold(memory, &a.rows, token, piece));
        unit += warps;
    }
    Ok(())
}

/// Before anything is sent: that nobody gave up, and the slot is free. Then it is told how many tokens there are.
#[inline(always)]
fn enter(
    a: &DispatchRankMajorArgs,
    watch: &wait::Watch,
    number: u64,
    (look, freed): (wait::Look, u64),
    sender: (u32, u32),
) -> Result<(), fault::Stopped> {
    let window = a.op.window();
    // Behind a fault nothing is published.
    watch.found(look, Phase::Entry as u32).settle()?;
    let _free = free_slot(a, watch, freed)?;
    if thread::index() < window.peers {
        let peer = Peer(thread::index());
        if sender.0 == 0 {
            a.selections.tell_tokens(window, number, peer, Sent { tokens: a.tokens, by_word: true });
        }
        // Rows say by themselves that they are there.
        a.landings.add(window, peer, sender, None);
    }
    Ok(())
}

/// Sends a piece of a token's row to every rank that owns one of its experts: word by word, or to its place here. Warp-collective.
#[inline(always)]
fn send_piece<R: Row>(
    a: &DispatchRankMajorArgs,
    number: u64,
    token: u32,
    piece: (u32, u32),
    selected: Selected,
    held: &R::Piece,
) {
    let (window, lane) = (a.op.window(), warp::lane());
    let routed = Routed::new::<true>(a, number, token, selected, piece.0 == 0);
    let has_weight = piece.0 == 0 && lane < a.top_k_stride;
    let mut lanes = warp::ballot(warp::ALL, routed.sends);
    while lanes != 0 {
        let to = warp::shuffle(warp::ALL, routed.owner, lanes.trailing_zeros());
        lanes &= lanes - 1;
        let weight = if routed.owner == to { routed.weight } else { 0.0 };
        if to == window.me.0 {
            R::each_vector(held, &a.rows, token, piece, |vector, data| put(a, routed.row, vector, data));
            if has_weight {
                window.own(a.recv.weights).rows(a.top_k_stride).row(routed.row).store_weak(lane, weight);
            }
        } else {
            let row = a.proven.row(window, Peer(to), window.me, token);
            R::each_vector(held, &a.rows, token, piece, |vector, data| row.put(number, vector, data));
            if has_weight {
                row.put_weight(number, lane, weight);
            }
        }
    }
}

/// Writes 16 bytes of a row, or of its scales behind it, to their place here. Per thread.
#[inline(always)]
fn put(a: &DispatchRankMajorArgs, row: u32, vector: u32, data: U32x4) {
    let (window, vectors) = (a.op.window(), a.proven.data_vectors());
    if vector < vectors {
        window.own(a.recv.x).rows(vectors * 16).row(row).cast::<U32x4>().store_weak(vector, data);
    } else {
        let scales = window.own(a.recv.scales).rows(a.rows.scale_stride).row(row).cast::<U32x4>();
        scales.store_weak(vector - vectors, data);
    }
}

/// What a thread takes at once: two vectors, or a weight.
const VECTORS: u32 = 2;

/// A block's part, of `senders`, of taking what other ranks sent word by word to its place here.
///
/// # Errors
///
/// That the block stops.
#[inline(always)]
pub(super) fn take(
    a: &DispatchRankMajorArgs,
    watch: &wait::Watch,
    number: u64,
    (sender, senders): (u32, u32),
) -> Result<(), fault::Stopped> {
    let (window, entry) = (a.op.window(), a.op.entry);
    let ranks = window.peers;
    // Where the stages were, which are read.
    let tokens = Shared::<u32>::dynamic(a.shared.stages);
    let (most, apart) = (tokens.at(ranks), tokens.at(ranks + 1));
    block::sync();
    if thread::index() == 0 {
        most.store_weak(0, 0);
        apart.store_weak(0, 0);
    }
    block::sync();
    // Of a rank whose rows land in bulk there is nothing to take, nor of this one.
    let come = |source, sent: Sent| {
        let takes = if source != window.me.0 && sent.by_word { sent.tokens } else { 0 };
        tokens.store_weak(source, takes);
        most.fetch_max_relaxed(0, takes);
    };
    // Who is in another operation tells nothing, as in `receive`.
    let never = |source| {
        let disagrees = entry.disagrees(window, Peer(source), watch.epoch(), Kind::Dispatch);
        apart.fetch_or_relaxed(0, disagrees.into()) != 0 || disagrees
    };
    let _told = a.selections.wait_tokens(window, watch, number, come, never)?;
    block::sync();
    let forgets = a.proven.forgets(number);
    let vectors = a.proven.vectors().div_ceil(VECTORS);
    let of_row = vectors + a.proven.weights();
    let rows = if forgets { a.proven.tokens() } else { most.load_weak(0) } * ranks;
    // The blocks take turns of as many as a block has threads.
    let turns = (rows * of_row).div_ceil(THREADS);
    let turns = if sender < turns { quotient(turns - sender + senders - 1, senders) } else { 0 };
    let _taken = watch.wait_until(Phase::Landed as u32, turns * THREADS, |i| {
        let turn = i / THREADS;
        let item = (turn * senders + sender) * THREADS + i % THREADS;
        let row = quotient(item, of_row);
        let part = item - row * of_row;
        let token = quotient(row, ranks);
        let source = row - token * ranks;
        // Behind the last row nothing is of any rank's.
        let from = if row < rows { source } else { window.me.0 };
        let words = a.proven.row(window, window.me, Peer(from), if row < rows { token } else { 0 });
        let (at, expected) = (words.words(0), proven_word(number, 0));
        if row >= rows || (token >= tokens.load_weak(source) && !forgets) {
            return Poll::made(at, 0, source, expected, expected, true);
        }
        let place = a.row(source, token);
        let (seen, came) = if part < vectors {
            take_vectors(a, number, words, place, part * VECTORS)
        } else {
            take_weight(a, number, words, place, part - vectors)
        };
        if came {
            return Poll::made(at, 0, source, expected, seen, true);
        }
        let comes =
            token < tokens.load_weak(source) && a.selections.comes(window, number, Peer(source), token) != Some(false);
        if !comes && forgets {
            forget(number, words, part, vectors, a);
        }
        Poll::made(at, 0, source, expected, seen, !comes)
    })?;
    Ok(())
}

/// Takes two vectors of a row, if they are there. Returns the first word that was seen, and whether they are. Per thread.
#[inline(always)]
fn take_vectors(a: &DispatchRankMajorArgs, number: u64, words: ProvenRow, place: u32, first: u32) -> (u64, bool) {
    let second = if first + 1 < a.proven.vectors() { first + 1 } else { first };
    let (low, high) = (words.look(first), words.look(second));
    let (Some(x), Some(y)) = (proven(low, number), proven(high, number)) else {
        return (low[0][0], false);
    };
    put(a, place, first, x);
    if second != first {
        put(a, place, second, y);
    }
    (low[0][0], true)
}

/// Takes a weight, if it is there. Per thread.
#[inline(always)]
fn take_weight(a: &DispatchRankMajorArgs, number: u64, words: ProvenRow, place: u32, position: u32) -> (u64, bool) {
    let seen = words.look_weight(position);
    let Some(weight) = proven_weight(seen, number) else {
        return (seen, false);
    };
    a.op.window().own(a.recv.weights).rows(a.top_k_stride).row(place).store_weak(position, weight);
    (seen, true)
}

/// Makes the words of a part that does not come look like those of the dispatch before. Per thread.
#[inline(always)]
fn forget(number: u64, words: ProvenRow, part: u32, vectors: u32, a: &DispatchRankMajorArgs) {
    let before = number - 1;
    if part >= vectors {
        words.put_weight(before, part - vectors, 0.0);
        return;
    }
    for vector in thread::strided(part * VECTORS, (part + 1) * VECTORS, 1) {
        if vector < a.proven.vectors() {
            words.put(before, vector, [0; 4]);
        }
    }
}
