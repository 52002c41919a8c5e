//! Counting: what this rank sends to each rank and expert, told to every peer, and where its rows go.
use epoxide_dsl::prelude::*;

use super::{Chunk, DispatchArgs, Now, THREADS};
use crate::protocol::{STATUS_OK, STATUS_OUT_OF_RANGE, STATUS_REPEATED, Stamped, kind};

/// No selection's key is this large.
const NOTHING_BAD: u64 = u64::MAX;

/// Counts this block's tokens per rank and expert, finds its first bad selection, and notes where each selection goes.
#[inline(always)]
#[track_caller]
pub(super) fn count(a: &DispatchArgs, chunk: Chunk) {
    let counters = Shared::<u32>::dynamic(a.shared.counters);
    let bad = Shared::<u64>::dynamic(a.shared.bad);
    let mut i = thread::index();
    while i < a.counters() {
        counters.store_weak(i, 0);
        i += THREADS;
    }
    if thread::index() == 0 {
        bad.store_weak(0, NOTHING_BAD);
    }
    block::sync();

    // As many lanes for a token as hold its selections, and a power of two, so that a warp takes several tokens at once.
    let lanes_log2 = 32 - (a.top_k - 1).leading_zeros();
    let (of_warp, position) = (warp::lane() >> lanes_log2, warp::lane() & ((1 << lanes_log2) - 1));
    let at_once = warp::LANES >> lanes_log2;
    let load = |token: u32| if token < chunk.end && position < a.top_k { a.selection(token, position) } else { -1 };
    let mut first = chunk.start + warp::index() * at_once;
    let mut next = load(first + of_warp);
    while first < chunk.end {
        let (token, index) = (first + of_warp, next);
        first += THREADS / warp::LANES * at_once;
        // The next tokens' selections are on their way while these are counted.
        next = load(first + of_warp);
        let selects = index >= 0 && index < i64::from(a.placement.experts);
        // Tokens are kept apart, and a lane with nothing to match gets a key of its own.
        let of_token = of_warp << 16;
        let nobody = 0x8000_0000 | warp::lane();
        let owner = if selects { a.placement.owner(index as u32) } else { 0 };
        let same_expert = warp::match_any(warp::ALL, if selects { of_token | index as u32 } else { nobody });
        let same_rank = warp::match_any(warp::ALL, if selects { of_token | owner } else { nobody });
        let first_of_rank = selects && same_rank.trailing_zeros() == warp::lane();
        let repeated = selects && same_expert.trailing_zeros() != warp::lane();
        if token < chunk.end && position < a.top_k {
            let out_of_range = index < -1 || index >= i64::from(a.placement.experts);
            if out_of_range || repeated {
                bad.fetch_min_relaxed(0, u64::from(token) << 8 | u64::from(position) << 1 | u64::from(repeated));
            }
            if selects {
                counters.fetch_add_relaxed(a.ranks() + index as u32, 1);
            }
            if first_of_rank {
                counters.fetch_add_relaxed(owner, 1);
            }
            let at = u64::from(token) * u64::from(a.top_k) + u64::from(position);
            a.send_rank.store_weak(at, if first_of_rank { owner as i32 } else { -1 });
            a.send_row.store_weak(at, 0);
        }
    }
    block::sync();

    let mut i = thread::index();
    while i < a.counters() {
        a.block_counts.store_weak(block_index(a, thread::block_index(), i), counters.load_weak(i));
        i += THREADS;
    }
    if thread::index() == 0 {
        a.block_bad.store_weak(u64::from(thread::block_index()), bad.load_weak(0));
    }
}

/// Gives this rank's row of the count matrix to every peer: each block a slice of it, block 0 the entry word.
#[inline(always)]
#[track_caller]
pub(super) fn publish(a: &DispatchArgs, now: Now) {
    let blocks = thread::grid_blocks();
    let mut word = thread::block_index() * THREADS + thread::index();
    while word < a.counters() {
        let total = sum(blocks, |block| a.block_counts.load_weak(block_index(a, block, word)));
        let mut peer = 0;
        while peer < a.ranks() {
            a.op.window()
                .of_rank(peer, a.counts)
                .store_relaxed::<System>(a.count_index(now, a.me(), word), Stamped::new(total, now.dispatch).to_word());
            peer += 1;
        }
        word += blocks * THREADS;
    }
    let peer = thread::index();
    if thread::block_index() == 0 && peer < a.ranks() {
        let first = fold(blocks, NOTHING_BAD, |block| a.block_bad.load_weak(u64::from(block)), u64::min);
        let mut status = STATUS_OK;
        if first != NOTHING_BAD {
            let (token, position) = ((first >> 8) as u32, (first >> 1) as u32 & 0x7f);
            status = if first & 1 == 1 { STATUS_REPEATED } else { STATUS_OUT_OF_RANGE };
            let index = a.selection(token, position) as u64;
            let details = [token, position, index as u32, (index >> 32) as u32];
            let row = a.op.window().of_rank(peer, a.counts);
            unroll!(I in 4 => {
                let at = a.count_index(now, a.me(), a.counters() + I as u32);
                row.store_relaxed::<System>(at, Stamped::new(details[I], now.dispatch).to_word());
            });
        }
        // Released after the details, so that who acquires a bad status finds them.
        a.op.post_entry(peer, now.epoch, kind::DISPATCH, status);
    }
}

/// Numbers this block's tokens within each destination: `send_row` = how many earlier tokens of this *rank* go there too.
#[inline(always)]
#[track_caller]
pub(super) fn place_within_block(a: &DispatchArgs, chunk: Chunk) {
    let lane = warp::lane();
    let mut rank = warp::index();
    while rank < a.ranks() {
        let mut placed = 0;
        let mut block = lane;
        while block < thread::block_index() {
            placed += a.block_counts.load_weak(block_index(a, block, rank));
            block += warp::LANES;
        }
        placed = warp::sum(warp::ALL, placed);
        let mut first = chunk.start;
        while first < chunk.end {
            let token = first + lane;
            let mut at = u64::MAX;
            if token < chunk.end {
                let row = u64::from(token) * u64::from(a.top_k);
                // At most one of a token's selections sends to the rank.
                at = fold(
                    a.top_k,
                    at,
                    |k| if a.send_rank.load_weak(row + u64::from(k)) == rank as i32 { row + u64::from(k) } else { at },
                    u64::min,
                );
            }
            let going = warp::ballot(warp::ALL, at != u64::MAX);
            if at != u64::MAX {
                let before = going & ((1 << lane) - 1);
                a.send_row.store_weak(at, placed + before.count_ones());
            }
            placed += going.count_ones();
            first += warp::LANES;
        }
        rank += THREADS / warp::LANES;
    }
}

/// Where this rank's rows begin at each destination: after those of all lower ranks.
#[inline(always)]
#[track_caller]
pub(super) fn base_rows(a: &DispatchArgs, now: Now) {
    let bases = Shared::<u32>::dynamic(a.shared.bases);
    let rank = thread::index();
    if rank < a.ranks() {
        bases.store_weak(rank, sum(a.me(), |source| a.own_count(now, source, rank)));
    }
    block::sync();
}

/// Index of counter `counter` of `block`.
#[inline(always)]
fn block_index(a: &DispatchArgs, block: u32, counter: u32) -> u64 {
    u64::from(block) * u64::from(a.counters()) + u64::from(counter)
}

/// The sum of `load` over `0..count`.
#[inline(always)]
#[track_caller]
pub(super) fn sum(count: u32, load: impl Fn(u32) -> u32) -> u32 {
    fold(count, 0, load, |a, b| a + b)
}

/// Folds what `load` gives for `0..count` into `value`. Eight loads are under way at a time: one after the other, each would wait
/// for the memory.
#[inline(always)]
#[track_caller]
fn fold<T: Copy>(count: u32, value: T, load: impl Fn(u32) -> T, with: impl Fn(T, T) -> T) -> T {
    let mut folded = value;
    let mut first = 0;
    while first < count {
        let mut loaded = [value; 8];
        unroll!(J in 8 => {
            if first + (J as u32) < count {
                loaded[J] = load(first + J as u32);
            }
        });
        unroll!(J in 8 => {
            folded = with(folded, loaded[J]);
        });
        first += 8;
    }
    folded
}
