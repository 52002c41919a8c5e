//! Counting: what this rank sends to each rank and expert, told to every peer, and where its rows go.
use epoxide_dsl::prelude::*;

use super::args::{Chunk, DispatchArgs, Now};
use crate::layout::{THREADS, WARPS};
use crate::order::{Counted, Order, number};
use crate::sum::sum;
use crate::words::{BadSelection, Kind, Status};

/// Where a token's copy goes among those of its key, a rank or an expert, while only its warp's are numbered: the warp, and the number there. The handle
/// holds it until the copy is made.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The warp that counted the token.
    pub warp: u32,
    /// How many of the warp's earlier copies have the same key.
    pub number: u32,
}

/// Bits of a number: a block has fewer tokens than they count.
const NUMBER_BITS: u32 = 24;
const _: () = assert!(crate::shape::MAX_TOKENS < 1 << NUMBER_BITS && WARPS <= 1 << (32 - NUMBER_BITS));

impl Place {
    #[inline(always)]
    fn to_word(self) -> u32 {
        self.warp << NUMBER_BITS | self.number
    }
    #[inline(always)]
    pub(super) fn from_word(word: u32) -> Self {
        Self { warp: word >> NUMBER_BITS, number: word & ((1 << NUMBER_BITS) - 1) }
    }
}

/// Counts this block's tokens per rank and expert, finds its first bad selection, and notes where each selection goes. Each warp takes
/// tokens that lie side by side, so that it can number them by itself.
#[inline(always)]
pub(super) fn count<O: Order>(a: &DispatchArgs, chunk: Chunk) {
    let counters = Shared::<u32>::dynamic(a.shared.stages);
    let places = Shared::<u32>::dynamic(a.shared.places);
    let bad = Shared::<u32>::dynamic(a.shared.bad);
    for i in thread::strided(thread::index(), a.counts.counters(), THREADS) {
        counters.store_weak(i, 0);
    }
    let (keys, first_key) = O::keys(&a.counts);
    for i in thread::strided(thread::index(), keys * WARPS, THREADS) {
        places.store_weak(i, 0);
    }
    if thread::index() == 0 {
        bad.store_weak(0, BadSelection::NONE.key());
    }
    block::sync();

    // As many lanes for a token as hold its selections, and a power of two, so that a warp takes several tokens at once.
    let lanes_log2 = 32 - (a.top_k - 1).leading_zeros();
    let (of_warp, position) = (warp::lane() >> lanes_log2, warp::lane() & ((1 << lanes_log2) - 1));
    let at_once = warp::LANES >> lanes_log2;
    let mine = chunk.of_warp(at_once);
    let counted = places.at(warp::index() * keys);
    let load = |token: u32| if token < mine.end && position < a.top_k { a.selection(token, position) } else { -1 };
    let mut first = mine.start;
    let mut next = load(first + of_warp);
    while first < mine.end {
        let (token, index) = (first + of_warp, next);
        first += at_once;
        // The next tokens' selections are on their way while these are counted.
        next = load(first + of_warp);
        let selects = index >= 0 && index < i64::from(a.placement.experts);
        // Tokens are kept apart. Nobody asks whom a lane with nothing to match matches; the fewer keys, the faster.
        let of_token = of_warp << 16;
        let nobody = u32::MAX;
        let owner = if selects { a.placement.owner(index as u32) } else { 0 };
        let same_expert = warp::match_any(warp::ALL, if selects { of_token | index as u32 } else { nobody });
        let same_rank = warp::match_any(warp::ALL, if selects { of_token | owner } else { nobody });
        let first_of_rank = selects && same_rank.trailing_zeros() == warp::lane();
        let repeated = selects && same_expert.trailing_zeros() != warp::lane();
        let (sends, key) = if O::BY_EXPERT { (selects, index as u32) } else { (first_of_rank, owner) };
        let number = number(counted, sends.then_some(key));
        if token < mine.end && position < a.top_k {
            let out_of_range = index < -1 || index >= i64::from(a.placement.experts);
            if out_of_range || repeated {
                bad.fetch_min_relaxed(0, BadSelection::new(token, position, repeated).key());
            }
            // The others are counted by their places.
            if O::BY_EXPERT && first_of_rank {
                counters.fetch_add_relaxed(owner, 1);
            } else if !O::BY_EXPERT && selects {
                counters.fetch_add_relaxed(a.counts.of_expert(index as u32), 1);
            }
            let place = Place { warp: warp::index(), number };
            a.handle_ranks(token)
                .store_weak(position, if sends { a.op.window().rank_of(Peer(owner)).0 as i32 } else { -1 });
            a.handle_rows(token).store_weak(position, if sends { place.to_word() } else { 0 });
        }
    }
    block::sync();

    // Each warp's rows for a key come after those of the warps before it: a lane for each warp.
    for key in thread::strided(warp::index(), keys, WARPS) {
        let of_warp = places.at(warp::lane() * keys + key);
        let mut counted = 0;
        if warp::lane() < WARPS {
            counted = of_warp.load_weak(0);
        }
        let up_to_here = warp::prefix_sum(counted);
        if warp::lane() < WARPS {
            of_warp.store_weak(0, up_to_here - counted);
        }
        if warp::lane() == warp::LANES - 1 {
            counters.store_weak(first_key + key, up_to_here);
        }
    }
    block::sync();

    let own = a.block_counts.rows(a.counts.counters()).row(thread::block_index());
    for i in thread::strided(thread::index(), a.counts.counters(), THREADS) {
        own.store_weak(i, counters.load_weak(i));
    }
    if thread::index() == 0 {
        a.block_bad.store_weak(thread::block_index(), bad.load_weak(0));
    }
}

/// Gives this rank's row of the count matrix to every peer: each block a slice of it, block 0 the entry word.
#[inline(always)]
pub(super) fn publish(a: &DispatchArgs, now: Now) {
    let blocks = thread::grid_blocks();
    let (window, counted) = (a.op.window(), a.block_counts.rows(a.counts.counters()));
    let mut counter = thread::block_index() * THREADS + thread::index();
    while counter < a.counts.counters() {
        let total = sum(blocks, |block| counted.row(block).load_weak(counter));
        a.counts.publish(window, now.dispatch, counter, total);
        counter += blocks * THREADS;
    }
    let peer = Peer(thread::index());
    // The warps whose threads have a peer, whole.
    if thread::block_index() == 0 && warp::index() * warp::LANES < window.peers {
        let mut key = BadSelection::NONE.key();
        for block in thread::strided(warp::lane(), blocks, warp::LANES) {
            key = key.min(a.block_bad.load_weak(block));
        }
        let first = BadSelection::from_key(warp::min(warp::ALL, key));
        if peer.0 >= window.peers {
            return;
        }
        let status = first.status();
        if status != Status::Ok {
            let index = a.selection(first.token(), first.position()) as u64;
            let details = [first.token(), first.position(), index as u32, (index >> 32) as u32];
            a.counts.publish_details(window, now.dispatch, peer, details);
        }
        // Released after the details, so that who acquires a bad status finds them.
        a.op.entry.post(window, peer, now.epoch, Kind::Dispatch, status);
    }
}

/// Moves this block's rows behind those of the blocks before it, for every key.
#[inline(always)]
pub(super) fn place_behind_earlier_blocks<O: Order>(a: &DispatchArgs) {
    let places = Shared::<u32>::dynamic(a.shared.places);
    let counted = a.block_counts.rows(a.counts.counters());
    let (keys, first_key) = O::keys(&a.counts);
    let lane = warp::lane();
    if O::BY_EXPERT {
        // Keys are many: a thread for each.
        for key in thread::strided(thread::index(), keys, THREADS) {
            let placed = sum(thread::block_index(), |block| counted.row(block).load_weak(first_key + key));
            for of_warp in thread::strided(0, WARPS, 1) {
                let at = places.at(of_warp * keys + key);
                at.store_weak(0, at.load_weak(0) + placed);
            }
        }
        return;
    }
    for key in thread::strided(warp::index(), keys, WARPS) {
        let mut placed = 0;
        for block in thread::strided(lane, thread::block_index(), warp::LANES) {
            placed += counted.row(block).load_weak(first_key + key);
        }
        placed = warp::sum(warp::ALL, placed);
        if lane < WARPS {
            let at = places.at(lane * keys + key);
            at.store_weak(0, at.load_weak(0) + placed);
        }
    }
}

/// Finds where this rank's rows begin for each key. The places of all warps are there afterwards too.
#[inline(always)]
pub(super) fn base_rows<O: Order>(a: &DispatchArgs, now: Now) {
    let (window, placement) = (a.op.window(), a.placement);
    let (number, alignment) = (now.dispatch, a.alignment);
    let counted = Counted { counts: a.counts, window, number, placement, alignment, bound: a.bound };
    O::bases(&counted, &a.found());
}
