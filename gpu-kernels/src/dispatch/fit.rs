//! Whether a dispatch fits, and what it does if not, where it may bring more rows than there is room for ([`crate::bound`]).
//!
//! # Protocol
//!
//! The counts that every block of every rank waits for anyway, before the first row is written, say of every rank, or of every expert where
//! each has a slab, how many rows come. So each finds by itself whether all fit, and if not, which is the first that they do not fit: nobody
//! is told. Where rows lie by source all blocks wait for the counts by expert too, for which without a bound the last one alone does.
//!
//! A dispatch that does not fit moves no row and is no fault: it has its number, its words are posted and waited for, and what follows is as
//! behind any other. In its routing slot it leaves counts of zero, a handle in which no selection was sent, and the words below; so a
//! combine behind it sums nothing, and a replay sends nothing.
//!
//! Where selections are dropped instead, an expert keeps the first ones, by source rank, then token. Of a dropped one the handle says what it says of
//! no selection, and nothing is sent for it.
use epoxide_dsl::prelude::*;

use super::args::{Chunk, DispatchArgs, Now};
use super::by_expert::tell_tokens;
use crate::bound::{WORDS, word};
use crate::layout::THREADS;
use crate::order::Order;
use crate::placement::round_up;
use crate::sum::sum;

/// Whether the dispatch does not fit, once bases are found. Block-uniform.
#[inline(always)]
pub(super) fn is_exceeded(a: &DispatchArgs) -> bool {
    a.found().over.load_weak(0) != u32::MAX
}

/// Notes of this block's tokens that nothing was sent, and of this rank's experts that nothing came. Block-collective.
#[inline(always)]
pub(super) fn route_nothing<O: Order>(a: &DispatchArgs, now: Now, chunk: Chunk) {
    let mut sent = a.handle_ranks(chunk.start);
    if O::BY_EXPERT {
        tell_tokens(a, now.epoch);
        sent = a.op.window().own(a.handle_rank).as_global().rows(a.top_k).row(chunk.start);
    }
    for selection in thread::strided(thread::index(), (chunk.end - chunk.start) * a.top_k, THREADS) {
        sent.store_weak(selection, -1);
    }
    if O::BY_EXPERT {
        let owned = a.owned();
        for word in thread::strided(thread::index(), 2 * owned.experts + 1, THREADS) {
            owned.words.store_weak(word, 0);
        }
        block::sync();
    }
}

/// The last block out says what became of the bound: of a dispatch that is `complete`, whose rows `came` or were too many.
#[inline(always)]
pub(super) fn tell<O: Order>(a: &DispatchArgs, now: Now, complete: bool, came: bool) {
    if warp::index() != 0 || !a.bound.is_set() {
        return;
    }
    let (owned, window) = (a.owned(), a.op.window());
    let exceeded = complete && !came;
    let (mut rank, mut expert, mut wanted) = (0, u32::MAX, 0);
    if exceeded {
        rank = a.found().over.load_weak(0);
        if O::BY_EXPERT && a.bound.slabs != 0 {
            expert = rank;
            rank = a.placement.owner(expert);
        }
        wanted = wanted_rows::<O>(a, now, rank, expert);
    }
    let mut word = 0;
    match warp::lane() {
        word::EXCEEDED => word = exceeded.into(),
        word::RANK => word = rank,
        word::EXPERT => word = expert,
        word::WANTED => word = wanted,
        word::EPOCH_LOW => word = now.epoch as u32,
        word::EPOCH_HIGH => word = (now.epoch >> 32) as u32,
        _ => {}
    }
    if O::BY_EXPERT
        && came
        && a.bound.drops != 0
        && (warp::lane() == word::DROPPED || warp::lane() == word::DROPPED_IN_ALL)
    {
        word = owned.dropped().load_weak(warp::lane() - word::DROPPED);
    }
    let offsets = if O::BY_EXPERT { owned.experts + 1 } else { 0 };
    if warp::lane() < WORDS {
        a.recv_counts.store_weak(1 + window.peers + owned.experts + offsets + warp::lane(), word);
    }
    let filed = a.bound.overflow;
    if exceeded && warp::lane() == 0 && filed.load_weak(0) == 0 {
        filed.store_weak(1, u64::from(rank) << 32 | u64::from(expert));
        filed.store_weak(2, u64::from(wanted));
        filed.store_weak(0, now.epoch);
    }
}

/// How many rows `rank` was to get, or its `expert` where each has a slab. Warp-collective.
#[inline(always)]
fn wanted_rows<O: Order>(a: &DispatchArgs, now: Now, rank: u32, expert: u32) -> u32 {
    let window = a.op.window();
    let of = |counter| sum(window.peers, |source| a.counts.count(window, now.dispatch, Peer(source), counter));
    if !O::BY_EXPERT {
        return of(rank);
    }
    if expert != u32::MAX {
        return of(a.counts.of_expert(expert));
    }
    let mut rows = 0;
    for local in thread::strided(warp::lane(), a.placement.count(rank), warp::LANES) {
        rows += round_up(of(a.counts.of_expert(a.placement.first(rank) + local)), a.alignment);
    }
    warp::sum(warp::ALL, rows)
}
