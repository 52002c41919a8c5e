//! Counting: what this rank sends to each rank and expert, told to every peer, and where its rows go.
use epoxide_dsl::prelude::*;

use super::args::{Chunk, DispatchArgs, Now, index};
use crate::grid_warps;
use crate::layout::{THREADS, WARPS};
use crate::order::{Counted, Order};
use crate::placement::quotient;
use crate::sum::sum;
use crate::words::{BadSelection, BlockCounts, Kind, Phase};

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

/// Turns that a block's warps take at most where every block counts all tokens of the rank: so many cost about as much as to tell what each has counted.
const TURNS: u32 = 4;

/// Lanes for a token, as a power of two: as many as hold its selections.
#[inline(always)]
fn lanes_log2(a: &DispatchArgs) -> u32 {
    32 - (a.top_k - 1).leading_zeros()
}

/// Whether every block counts all tokens of the rank by itself, and not its own ones, which are added up then. The same in all blocks.
#[inline(always)]
pub(super) fn each_counts_all(a: &DispatchArgs) -> bool {
    a.tokens <= (TURNS * a.shared.count_warps * warp::LANES) >> lanes_log2(a)
}

/// Counts tokens per rank and expert, the rank's or this block's own, finds their first bad selection, and notes where each selection of this
/// block's goes. Each warp takes tokens that lie side by side, so that it can number them by itself.
#[inline(always)]
pub(super) fn count<O: Order>(a: &DispatchArgs, now: Now, chunk: Chunk, begun: Begun) {
    let counters = Shared::<u32>::dynamic(a.shared.stages);
    let places = Shared::<u32>::dynamic(a.shared.places);
    let bad = Shared::<u32>::dynamic(a.shared.bad);
    // The masks behind them too.
    for i in thread::strided(thread::index(), a.counts.counters() * (1 + a.shared.count_warps), THREADS) {
        counters.store_weak(i, 0);
    }
    let (keys, _) = O::keys(&a.counts);
    for i in thread::strided(thread::index(), keys * WARPS, THREADS) {
        places.store_weak(i, 0);
    }
    O::begin(a.placement, &a.bound, &a.found());
    if thread::index() == 0 {
        bad.store_weak(0, BadSelection::NONE.key());
        a.found().over.store_weak(0, u32::MAX);
        a.found().apart.store_weak(0, 0);
    }
    block::sync();

    if warp::index() < a.shared.count_warps {
        count_of_warp::<O>(a, chunk, begun);
    }
    block::sync();

    number_behind_earlier_warps::<O>(a);
    if thread::index() == 0 {
        counters.store_weak(a.counts.first_bad(), bad.load_weak(0));
        // From here on a rank's.
        bad.store_weak(0, u32::MAX);
    }
    block::sync();

    if each_counts_all(a) {
        return;
    }
    let (told, own) = (block_counts(a, now), counts_of_blocks(a).row(thread::block_index()));
    for i in thread::strided(thread::index(), a.counts.counters(), THREADS) {
        let count = counters.load_weak(i);
        if O::BY_EXPERT {
            own.store_weak(i, count);
        } else {
            told.tell(i, count);
        }
    }
}

/// What blocks have counted where rows lie by expert: so many counts are looked for there that a barrier takes less than to look at numbers too.
#[inline(always)]
fn counts_of_blocks(a: &DispatchArgs) -> Rows<Global<u32>> {
    a.block_counts.cast::<u32>().rows(a.counts.counters())
}

/// What blocks tell each other where rows lie by source.
#[inline(always)]
fn block_counts(a: &DispatchArgs, now: Now) -> BlockCounts {
    BlockCounts::new(a.block_counts, a.counts, now.dispatch)
}

/// The tokens that a warp counts.
#[derive(Clone, Copy)]
pub(super) struct Begun {
    tokens: Chunk,
    /// This lane's selection of its first turn.
    first: index::Selected,
}

impl Begun {
    #[inline(always)]
    pub(super) fn new(a: &DispatchArgs, chunk: Chunk) -> Self {
        let of_block = if each_counts_all(a) { Chunk { start: 0, end: a.tokens } } else { chunk };
        let tokens = of_block.of_warp(a.shared.count_warps, warp::LANES >> lanes_log2(a));
        let mut begun = Self { tokens, first: index::Selected::NONE };
        let (token, position) = begun.at(a, tokens.start);
        begun.first = begun.load(a, token, position);
        begun
    }

    /// Token and position of this lane in the turn that begins with token `first`: a warp takes several tokens at once.
    #[inline(always)]
    fn at(self, a: &DispatchArgs, first: u32) -> (u32, u32) {
        let (lanes_log2, lane) = (lanes_log2(a), warp::lane());
        (first + (lane >> lanes_log2), lane & ((1 << lanes_log2) - 1))
    }

    #[inline(always)]
    fn load(self, a: &DispatchArgs, token: u32, position: u32) -> index::Selected {
        if token < self.tokens.end && position < a.top_k {
            a.load_selection(token, position)
        } else {
            index::Selected::NONE
        }
    }
}

/// A warp's part of it.
#[inline(always)]
fn count_of_warp<O: Order>(a: &DispatchArgs, chunk: Chunk, begun: Begun) {
    let counters = Shared::<u32>::dynamic(a.shared.stages);
    let bad = Shared::<u32>::dynamic(a.shared.bad);
    // Which lanes have an expert in this turn: 0 between turns.
    let lanes_of = counters.at((1 + warp::index()) * a.counts.counters());
    let (keys, _) = O::keys(&a.counts);
    let counted = Shared::<u32>::dynamic(a.shared.places).at(warp::index() * keys);

    // A warp takes several tokens at once.
    let (lanes_log2, lane) = (lanes_log2(a), warp::lane());
    let (of_warp, position) = (lane >> lanes_log2, lane & ((1 << lanes_log2) - 1));
    let at_once = warp::LANES >> lanes_log2;
    let earlier = (1 << lane) - 1;
    let earlier_of_token = earlier & (u32::MAX << (of_warp << lanes_log2));
    let mine = begun.tokens;
    let load = |token: u32| begun.load(a, token, position);
    let (mut first, mut next) = (mine.start, begun.first);
    while first < mine.end {
        let (token, selected) = (first + of_warp, next);
        first += at_once;
        // The next tokens' selections are on their way while these are counted.
        next = load(first + of_warp);
        let is_expert = selected.expert(a.placement.experts);
        let (selects, index) = (is_expert.is_some(), is_expert.unwrap_or(0));
        let (owner, expert) = (a.placement.owner(index), a.counts.of_expert(index));
        if selects {
            lanes_of.fetch_add_relaxed(expert, 1 << lane);
            if !O::BY_EXPERT {
                // Rows are counted by their places.
                counters.fetch_add_relaxed(expert, 1);
            }
        }
        // Ranks are few, and many lanes have the same one: they would add one after another.
        let same_rank =
            if O::BY_EXPERT { 0 } else { warp::match_any(warp::ALL, if selects { owner } else { u32::MAX }) };
        warp::sync(warp::ALL);
        let mut same_expert = 0;
        if selects {
            same_expert = lanes_of.load_weak(expert);
        }
        let repeated = same_expert & earlier_of_token != 0;
        // Who sends a row, and which lanes do for the same key.
        let (mut sends, mut key, mut same) = (selects, index, same_expert);
        if !O::BY_EXPERT {
            (sends, key) = (selects && same_rank & earlier_of_token == 0, owner);
            same = same_rank & warp::ballot(warp::ALL, sends);
        }
        let mut number = 0;
        if sends {
            number = counted.load_weak(key) + (same & earlier).count_ones();
        }
        // All have read before the first lanes count and clear, and these have before the next turn.
        warp::sync(warp::ALL);
        if sends && same & earlier == 0 {
            counted.store_weak(key, number + same.count_ones());
        }
        if selects && same_expert & earlier == 0 {
            lanes_of.store_weak(expert, 0);
        }
        warp::sync(warp::ALL);
        if repeated || !selects && !selected.is_none(a.index_type) {
            bad.fetch_min_relaxed(0, BadSelection::new(token, position, repeated).key());
        }
        if token >= chunk.start && token < chunk.end && position < a.top_k {
            let place = Place { warp: warp::index(), number };
            a.handle_ranks(token)
                .store_weak(position, if sends { a.op.window().rank_of(Peer(owner)).0 as i32 } else { -1 });
            a.handle_rows(token).store_weak(position, if sends { place.to_word() } else { 0 });
        }
    }
}

/// Moves each warp's rows for a key behind those of the warps before it, and counts the key's.
#[inline(always)]
fn number_behind_earlier_warps<O: Order>(a: &DispatchArgs) {
    let counters = Shared::<u32>::dynamic(a.shared.stages);
    let places = Shared::<u32>::dynamic(a.shared.places);
    let (keys, first_key) = O::keys(&a.counts);
    if O::BY_EXPERT {
        // Keys are many: a thread for each. What a warp reads lies side by side then.
        for key in thread::strided(thread::index(), keys, THREADS) {
            let mut counted = [0; WARPS as usize];
            unroll!(W in 16 => {
                counted[W] = places.load_weak(W as u32 * keys + key);
            });
            let mut before = 0;
            unroll!(W in 16 => {
                places.store_weak(W as u32 * keys + key, before);
                before += counted[W];
            });
            counters.store_weak(first_key + key, before);
        }
        return;
    }
    // A lane for each warp.
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
}
const _: () = assert!(WARPS == 16, "the warps are unrolled");

/// Posts this rank's entry word at every peer, by the last block.
#[inline(always)]
pub(super) fn enter(a: &DispatchArgs, watch: &wait::Watch) {
    let window = a.op.window();
    // By the last threads, whose warps have the fewest tokens.
    let first = THREADS - window.peers;
    if thread::block_index() + 1 == thread::grid_blocks() && thread::index() >= first {
        // Behind a fault nothing is published.
        let unless = || watch.is_aborted();
        a.op.entry.post_unless(window, Peer(thread::index() - first), watch.epoch(), Kind::Dispatch, unless);
    }
}

/// The counters that this block tells peers: every so-many-th, from one on.
#[derive(Clone, Copy)]
struct Telling {
    first: u32,
    step: u32,
    count: u32,
}

impl Telling {
    #[inline(always)]
    fn new<O: Order>(a: &DispatchArgs) -> Self {
        let (blocks, block) = (thread::grid_blocks(), thread::block_index());
        let (first, told) = O::told(&a.counts);
        Self { first: first + block, step: blocks, count: quotient(told + blocks - 1 - block, blocks) }
    }

    #[inline(always)]
    fn counter(self, i: u32) -> u32 {
        self.first + i * self.step
    }
}

/// Adds up what the blocks have told, where each has counted its own tokens and rows lie by source: the counters that this block tells peers, and for every rank those rows
/// of the blocks before it that its own come behind.
#[inline(always)]
pub(super) fn add_up<O: Order>(a: &DispatchArgs, watch: &wait::Watch, now: Now) -> wait::Outcome {
    let counters = Shared::<u32>::dynamic(a.shared.stages);
    let (told, telling, own) = (block_counts(a, now), Telling::new::<O>(a), thread::block_index());
    let (keys, first_key) = O::keys(&a.counts);
    let blocks = thread::grid_blocks();
    // A power of two, as a division takes ten times as long.
    let blocks_log2 = 32 - (blocks - 1).leading_zeros();
    // Blocks that there are not, and those behind this one, say nothing of it: it looks for its own.
    let which = |flag: u32| {
        let (i, block) = (flag >> blocks_log2, flag & ((1 << blocks_log2) - 1));
        let is_key = i >= telling.count;
        let (counter, end) = if is_key { (first_key + (i - telling.count), own) } else { (telling.counter(i), blocks) };
        (if block < end { block } else { own }, counter, is_key)
    };
    let look = |flag| {
        let (block, counter, _) = which(flag);
        told.look(block, counter)
    };
    let came = |flag, seen| {
        let (block, counter, is_key) = which(flag);
        let Some(count) = told.came(block, counter, seen) else {
            return false;
        };
        if block == own {
            return true;
        }
        if is_key {
            // With the rows of lower ranks.
            a.found().bases.fetch_add_relaxed(counter - first_key, count);
        } else if counter == a.counts.first_bad() {
            counters.fetch_min_relaxed(counter, count);
        } else {
            counters.fetch_add_relaxed(counter, count);
        }
        true
    };
    watch.wait_until_many(Phase::Counted as u32, (telling.count + keys) << blocks_log2, look, came)
}

/// Gives this rank's row of the count matrix to every peer: each block a part of it.
#[inline(always)]
pub(super) fn publish<O: Order>(a: &DispatchArgs, now: Now) {
    let (window, blocks) = (a.op.window(), thread::grid_blocks());
    if each_counts_all(a) || !O::BY_EXPERT {
        // This block has counted its part, or added it up.
        let (telling, counters) = (Telling::new::<O>(a), Shared::<u32>::dynamic(a.shared.stages));
        for i in thread::strided(thread::index(), telling.count * window.peers, THREADS) {
            let nth = quotient(i, window.peers);
            let (counter, peer) = (telling.counter(nth), Peer(i - nth * window.peers));
            tell(a, now, peer, counter, counters.load_weak(counter));
        }
        return;
    }
    let (first, told) = O::told(&a.counts);
    let counted = counts_of_blocks(a);
    // A warp of the grid for each counter.
    for counter in thread::strided(first + grid_warps::index(), first + told, grid_warps::count()) {
        let (mut total, mut least) = (0, u32::MAX);
        for block in thread::strided(warp::lane(), blocks, warp::LANES) {
            let count = counted.row(block).load_weak(counter);
            total += count;
            least = least.min(count);
        }
        total = warp::sum(warp::ALL, total);
        if counter == a.counts.first_bad() {
            total = warp::min(warp::ALL, least);
        }
        for peer in thread::strided(warp::lane(), window.peers, warp::LANES) {
            tell(a, now, Peer(peer), counter, total);
        }
    }
}

/// Gives a counter to a peer. Per thread.
#[inline(always)]
fn tell(a: &DispatchArgs, now: Now, peer: Peer, counter: u32, count: u32) {
    if counter != a.counts.first_bad() {
        a.counts.tell(a.op.window(), now.dispatch, peer, counter, count);
        return;
    }
    let bad = BadSelection::from_key(count);
    let index = || a.selection(bad.token(), bad.position()) as u64;
    a.counts.tell_bad(a.op.window(), now.dispatch, peer, bad, index);
}

/// Moves this block's rows behind those of the blocks before it, for every expert. Where rows lie by source [`add_up`] has.
#[inline(always)]
pub(super) fn place_behind_earlier_blocks<O: Order>(a: &DispatchArgs) {
    if each_counts_all(a) || !O::BY_EXPERT {
        return;
    }
    let places = Shared::<u32>::dynamic(a.shared.places);
    let counted = counts_of_blocks(a);
    let (keys, first_key) = O::keys(&a.counts);
    // Keys are many: a thread for each, or some that share the blocks.
    let sharing = if keys < THREADS { quotient(THREADS, keys) } else { 1 };
    for i in thread::strided(thread::index(), keys * sharing, THREADS) {
        let share = quotient(i, keys);
        let key = i - share * keys;
        let blocks = quotient(thread::block_index() + sharing - 1 - share, sharing);
        let placed = sum(blocks, |block| counted.row(share + block * sharing).load_weak(first_key + key));
        for of_warp in thread::strided(0, WARPS, 1) {
            places.fetch_add_relaxed(of_warp * keys + key, placed);
        }
    }
}

/// What is counted, and where this block keeps what it finds.
#[inline(always)]
pub(super) fn counted(a: &DispatchArgs, now: Now) -> Counted {
    let (window, placement, bound) = (a.op.window(), a.placement, a.bound);
    Counted { counts: a.counts, window, number: now.dispatch, placement, alignment: a.alignment, bound }
}
