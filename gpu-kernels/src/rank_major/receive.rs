//! Receiving: what comes is known and indexed by expert while rows travel; then the rows are there.
use epoxide_dsl::fault::Fault;
use epoxide_dsl::prelude::*;

use super::args::{DispatchRankMajorArgs, NO_ROW};
use crate::block_sums;
use crate::layout::{DispatchShared, THREADS, WARPS};
use crate::placement::quotient;
use crate::shape::MOST_PACKED_SELECTIONS;
use crate::words::{BadSelection, Kind, Selection, Source};

/// A row's number and a selection are 16 bits each.
const _: () = assert!(MOST_PACKED_SELECTIONS <= 1 << 16);

/// Where the receiving block keeps what it finds: where the stages were.
#[derive(Clone, Copy)]
pub(super) struct Found {
    /// `[ranks]`: tokens of each rank.
    tokens: Shared<u32>,
    /// `[ranks + 1]`: how many selections the ranks before it have.
    begins: Shared<u32>,
    /// `[2]`: the first rank with a bad selection, and its first one; all ones where there is none.
    pub bad: Shared<u32>,
    /// `[1]`: 1 when some rank is in another operation.
    apart: Shared<u32>,
    /// `[WARPS]`: what each warp has counted.
    pub of_warps: Shared<u32>,
    /// `[experts + 1]`: where each one's part of the index begins, and the end.
    pub firsts: Shared<u32>,
    /// `[experts + 1]` of `[ranks][words]`, and what makes their number odd: a bit for each token that selects the expert; behind them, one for each that
    /// selects any.
    bits: Shared<u32>,
    /// `[experts][ranks + 1]`, only where rows are packed: how many selections an expert has of the ranks before each, and of all.
    starts: Shared<u32>,
    /// `[selections]`, only where rows are packed: what each is, and of which row.
    selected: Shared<u32>,
    /// This rank's experts.
    pub experts: u32,
    /// Words of the bits of a rank's tokens.
    words: u32,
    /// Words from an expert's bits to the next one's.
    of_expert: u32,
    /// The ranks.
    pub ranks: u32,
}

impl Found {
    #[inline(always)]
    fn new(a: &DispatchRankMajorArgs) -> Self {
        let (window, words) = (a.op.window(), DispatchShared::index_words(a.max_tokens));
        let (ranks, experts) = (window.peers, a.placement.count(window.me.0));
        let tokens = Shared::<u32>::dynamic(a.shared.stages);
        let begins = tokens.at(ranks);
        let bad = begins.at(ranks + 1);
        let apart = bad.at(2);
        let of_warps = apart.at(1);
        let firsts = of_warps.at(WARPS);
        let bits = firsts.at(experts + 1);
        let of_expert = DispatchShared::index_stride(ranks, words);
        let starts = bits.at((experts + 1) * of_expert);
        let selected = starts.at(experts * (ranks + 1));
        Self { tokens, begins, bad, apart, of_warps, firsts, bits, starts, selected, experts, words, of_expert, ranks }
    }

    /// Words of an expert's bits in which a rank's tokens are: a batch may have far fewer tokens than the buffer takes.
    #[inline(always)]
    fn words_of(self, source: u32) -> u32 {
        self.tokens.load_weak(source).div_ceil(32)
    }

    /// How many selections there are, of all ranks.
    #[inline(always)]
    pub fn selections(self) -> u32 {
        self.begins.load_weak(self.ranks)
    }

    /// The source, token and position of selection `i` of all.
    #[inline(always)]
    fn which(self, a: &DispatchRankMajorArgs, i: u32) -> (u32, u32, u32) {
        let source = source_of(self.ranks, self, i);
        let within = i - self.begins.load_weak(source);
        let token = quotient(within, a.top_k);
        (source, token, within - token * a.top_k)
    }

    /// Keeps what a selection is for [`Self::kept_selection`], where the dispatch packs itself. Per thread.
    #[inline(always)]
    pub fn keep_selection(
        self,
        a: &DispatchRankMajorArgs,
        (source, token, position): (u32, u32, u32),
        selection: Selection,
    ) {
        let i = self.begins.load_weak(source) + token * a.top_k + position;
        self.selected.store_weak(i, a.row(source, token) << 16 | selection.bits());
    }

    /// What selection `i` of all is, and its source, token and position. Per thread.
    #[inline(always)]
    pub fn kept_selection(self, a: &DispatchRankMajorArgs, i: u32) -> ((u32, u32, u32), Selection) {
        let word = self.selected.load_weak(i);
        let (row, selection) = (word >> 16, Selection::from_bits(word & 0xffff));
        let source = quotient(row, a.max_tokens);
        let token = row - source * a.max_tokens;
        ((source, token, i - self.begins.load_weak(source) - token * a.top_k), selection)
    }

    /// Of an expert `[ranks + 1]`: how many selections it has of the ranks before each, and of all.
    #[inline(always)]
    pub fn starts_of(self, expert: u32) -> Shared<u32> {
        self.starts.at(expert * (self.ranks + 1))
    }

    /// How many of a rank's tokens before this one select an expert.
    #[inline(always)]
    pub fn ones_before(self, expert: u32, source: u32, token: u32) -> u32 {
        let first = expert * self.of_expert + source * self.words;
        let mut ones = 0;
        for word in thread::strided(first, first + token / 32, 1) {
            ones += self.bits.load_weak(word).count_ones();
        }
        let earlier = (1 << (token % 32)) - 1;
        ones + (self.bits.load_weak(first + token / 32) & earlier).count_ones()
    }
}

/// The receiving block's part, if it has not stopped before: it waits for all that comes. `selected` is done with each selection, by some thread; `known` as soon as all
/// are known: it writes the counts and the index ([`index_rows`]). Where the block stops there are no counts.
///
/// # Errors
///
/// That the block stops.
#[inline(always)]
pub(super) fn receive(
    a: &DispatchRankMajorArgs,
    watch: &wait::Watch,
    number: u64,
    entered: Result<(), fault::Stopped>,
    selected: impl Fn(Found, (u32, u32, u32), Selection),
    known: impl FnOnce(Found),
) -> Result<(), fault::Stopped> {
    let found = Found::new(a);
    let mut ended = entered;
    if ended.is_ok() {
        ended = complete(a, watch, number, found, |at, selection| selected(found, at, selection), known);
    }
    if ended.is_err() {
        write_no_counts(a);
    }
    ended
}

/// Says whose routing the slot has, and advances the numbers: behind a fault when it is filed, so that a block that is late, and reads them then, files
/// nothing by another number.
#[inline(always)]
pub(super) fn advance(a: &DispatchRankMajorArgs, watch: &wait::Watch, number: u64, complete: bool) {
    if thread::index() == 0 {
        advance_by_thread(a, watch, number, complete);
    }
}

/// [`advance`], by one thread of the grid.
#[inline(always)]
pub(super) fn advance_by_thread(a: &DispatchRankMajorArgs, watch: &wait::Watch, number: u64, complete: bool) {
    a.routing.store_weak(0, if complete { number } else { 0 });
    a.dispatches.store_weak(0, number);
    a.op.epoch.store_weak(0, watch.epoch());
}

/// Waits for what the ranks select, indexes it while rows travel, and waits for the ranks and for their rows: nothing is left to do behind them.
#[inline(always)]
fn complete(
    a: &DispatchRankMajorArgs,
    watch: &wait::Watch,
    number: u64,
    found: Found,
    selected: impl Fn((u32, u32, u32), Selection),
    known: impl FnOnce(Found),
) -> Result<(), fault::Stopped> {
    let (window, entry) = (a.op.window(), a.op.entry);
    clear(found);
    let tokens = |source, tokens| found.tokens.store_weak(source, tokens);
    // Who is in another operation tells nothing; nor does who met it before it sent, this rank too. So one is enough, for all.
    let never = |source| {
        let apart = entry.disagrees(window, Peer(source), watch.epoch(), Kind::Dispatch);
        found.apart.fetch_or_relaxed(0, apart.into()) != 0 || apart
    };
    block::sync();
    let _told = a.selections.wait_tokens(window, watch, number, tokens, never)?;
    begin_sources(a, found);
    mark_absent(a, found);
    let (which, selections) = (|i| found.which(a, i), found.selections());
    let _selected = a.selections.wait(window, watch, number, selections, which, |at, selection| {
        note(a, found, at, selection);
        selected(at, selection);
    })?;
    block::sync();
    known(found);
    let _met = entry.meet(window, watch, Kind::Dispatch)?;
    stop_if_bad(a, found)?;
    let _here = a.landings.wait(window, watch, number)?;
    Ok(())
}

/// Clears what is found.
#[inline(always)]
fn clear(found: Found) {
    for i in thread::strided(thread::index(), (found.experts + 1) * found.of_expert, THREADS) {
        found.bits.store_weak(i, 0);
    }
    if thread::index() < 2 {
        found.bad.store_weak(thread::index(), u32::MAX);
        found.apart.store_weak(0, 0);
    }
}

/// Finds where each rank's selections begin among all. The block meets on both sides.
#[inline(always)]
fn begin_sources(a: &DispatchRankMajorArgs, found: Found) {
    block::sync();
    if warp::index() == 0 {
        let ranks = a.op.window().peers;
        let mut before = 0;
        let mut first = 0;
        while first < ranks {
            let source = first + warp::lane();
            let selections = if source < ranks { found.tokens.load_weak(source) * a.top_k } else { 0 };
            let up_to = warp::prefix_sum(selections);
            if source < ranks {
                found.begins.store_weak(source, before + up_to - selections);
            }
            before += warp::shuffle(warp::ALL, up_to, warp::LANES - 1);
            first += warp::LANES;
        }
        if warp::lane() == 0 {
            found.begins.store_weak(ranks, before);
        }
    }
    block::sync();
}

/// The rank of which selection `i` of all is.
#[inline(always)]
fn source_of(ranks: u32, found: Found, i: u32) -> u32 {
    let (mut low, mut high) = (0, ranks);
    // The last that begins at `i` or before, of ranks that may have none.
    while low + 1 < high {
        let middle = (low + high) / 2;
        if found.begins.load_weak(middle) <= i {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// Writes that what no rank's token is selects nothing: the rows of tokens that a rank has not, and what pads a row's selections.
#[inline(always)]
fn mark_absent(a: &DispatchRankMajorArgs, found: Found) {
    let topk = a.op.window().own(a.recv.topk);
    let of_rank = a.max_tokens * a.top_k_stride;
    for source in thread::strided(0, a.op.window().peers, 1) {
        let row = topk.at(u64::from(source) * u64::from(of_rank));
        for i in thread::strided(found.tokens.load_weak(source) * a.top_k_stride + thread::index(), of_rank, THREADS) {
            row.store_weak(i, -1);
        }
    }
}

/// Notes what a selection is, in the rows and for the index. Per thread.
#[inline(always)]
fn note(a: &DispatchRankMajorArgs, found: Found, (source, token, position): (u32, u32, u32), selection: Selection) {
    if selection.is_bad() {
        found.bad.fetch_min_relaxed(0, source);
        return;
    }
    let window = a.op.window();
    let row = a.row(source, token);
    let topk = window.own(a.recv.topk).rows(a.top_k_stride).row(row);
    topk.store_weak(position, selection.local());
    if position == 0 {
        let word = Source { rank: window.rank_of(Peer(source)), token }.to_word();
        window.own(a.recv.source).store_weak(row, word);
        for pad in thread::strided(a.top_k, a.top_k_stride, 1) {
            topk.store_weak(pad, -1);
        }
    }
    if selection != Selection::NONE {
        let (word, bit) = (source * found.words + token / 32, 1 << (token % 32));
        found.bits.fetch_or_relaxed(selection.local() as u32 * found.of_expert + word, bit);
        found.bits.fetch_or_relaxed(found.experts * found.of_expert + word, bit);
    }
}

/// Stops the block if some rank has a bad selection: of the first such rank, the first one. Every rank sees the same words, so each finds it by itself.
#[inline(always)]
fn stop_if_bad(a: &DispatchRankMajorArgs, found: Found) -> Result<(), fault::Stopped> {
    let source = found.bad.load_weak(0);
    if source == u32::MAX {
        return Ok(());
    }
    let window = a.op.window();
    // They have come; the index of each lies where its local expert would.
    for i in thread::strided(thread::index(), found.tokens.load_weak(source) * a.top_k, THREADS) {
        let token = quotient(i, a.top_k);
        let position = i - token * a.top_k;
        let selection = a.selections.acquire(window, source, token, position);
        if selection.is_bad() {
            let repeated = selection == Selection::REPEATED;
            found.bad.fetch_min_relaxed(1, BadSelection::new(token, position, repeated).key());
        }
    }
    block::sync();
    let mut fault = Fault::NONE;
    if thread::index() == 0 {
        let bad = BadSelection::from_key(found.bad.load_weak(1));
        // Once more, so that this thread has acquired it.
        let _acquired = a.selections.acquire(window, source, bad.token(), bad.position());
        let row = a.row(source, bad.token());
        let low = window.own(a.recv.topk).rows(a.top_k_stride).row(row).load_weak(bad.position());
        let high = window.own(a.recv.weights).rows(a.top_k_stride).row(row).load_weak(bad.position());
        let seen = u64::from(high.to_bits()) << 32 | u64::from(low as u32);
        fault = bad.fault(source, seen);
    }
    fault.settle()
}

/// Writes the counts and the index.
#[inline(always)]
pub(super) fn index_rows(a: &DispatchRankMajorArgs, found: Found) {
    count_rows(a, found);
    index(a, found);
}

/// Counts the rows of each rank, and writes how many.
#[inline(always)]
pub(super) fn count_rows(a: &DispatchRankMajorArgs, found: Found) {
    let ranks = a.op.window().peers;
    // A lane of the last warp for each rank: the others have experts.
    if warp::index() != WARPS - 1 {
        return;
    }
    let mut all = 0;
    for source in thread::strided(warp::lane(), ranks, warp::LANES) {
        let rows = ones(found, found.experts, source);
        a.recv_counts.store_weak(1 + source, rows);
        all += rows;
    }
    all = warp::sum(warp::ALL, all);
    if warp::lane() == 0 {
        a.recv_counts.store_weak(0, all);
    }
}

/// How many of a rank's tokens select an expert.
#[inline(always)]
pub(super) fn ones(found: Found, expert: u32, source: u32) -> u32 {
    let mut ones = 0;
    let first = expert * found.of_expert + source * found.words;
    for word in thread::strided(first, first + found.words_of(source), 1) {
        ones += found.bits.load_weak(word).count_ones();
    }
    ones
}

/// Counts the selections of each expert, finds where its part of the index begins, and writes both, and the index. A thread for each expert, where the
/// words of one are few; else a warp writes its rows.
#[inline(always)]
fn index(a: &DispatchRankMajorArgs, found: Found) {
    let ranks = a.op.window().peers;
    let mut words = 0;
    for source in thread::strided(warp::lane(), ranks, warp::LANES) {
        words += found.words_of(source);
    }
    let by_thread = warp::sum(warp::ALL, words) <= MOST_WORDS_OF_THREAD;
    let counts = a.recv_counts.at(1 + ranks);
    let firsts = counts.at(found.experts);
    let mut before = 0;
    // All threads take part in each turn: they meet.
    for turn in thread::strided(0, found.experts, THREADS) {
        let expert = turn + thread::index();
        let is_one = expert < found.experts;
        let (mut count, mut entries) = (0, 0);
        if is_one {
            for source in thread::strided(0, ranks, 1) {
                count += ones(found, expert, source);
            }
            entries = a.aligned(count);
        }
        let first = block_sums::before_this(found.of_warps, &mut before, entries);
        if is_one {
            counts.store_weak(expert, count);
            firsts.store_weak(expert, first);
            if by_thread {
                index_of_thread(a, found, expert, (first, entries));
            } else {
                found.firsts.store_weak(expert, first);
            }
        }
        // Before the next turn's, and before warps read what threads have found.
        block::sync();
    }
    if thread::index() == 0 {
        firsts.store_weak(found.experts, before);
        found.firsts.store_weak(found.experts, before);
    }
    if !by_thread {
        block::sync();
        for expert in thread::strided(warp::index(), found.experts, WARPS) {
            index_of_warp(a, found, expert);
        }
    }
}

/// Words of an expert's bits that one thread goes through.
const MOST_WORDS_OF_THREAD: u32 = 32;

/// Writes the rows of an expert, from entry `first` on, so many with what pads them. Per thread.
#[inline(always)]
fn index_of_thread(a: &DispatchRankMajorArgs, found: Found, expert: u32, (first, entries): (u32, u32)) {
    let bits = found.bits.at(expert * found.of_expert);
    let mut entry = first;
    for source in thread::strided(0, a.op.window().peers, 1) {
        for thirty_two in thread::strided(0, found.words_of(source), 1) {
            let mut tokens = bits.load_weak(source * found.words + thirty_two);
            while tokens != 0 {
                a.index.store_weak(entry, a.row(source, thirty_two * 32 + tokens.trailing_zeros()));
                tokens &= tokens - 1;
                entry += 1;
            }
        }
    }
    for pad in thread::strided(entry, first + entries, 1) {
        a.index.store_weak(pad, NO_ROW);
    }
}

/// Writes the rows of an expert. Warp-collective.
#[inline(always)]
fn index_of_warp(a: &DispatchRankMajorArgs, found: Found, expert: u32) {
    let (mut at, bits) = (found.firsts.load_weak(expert), found.bits.at(expert * found.of_expert));
    let end = found.firsts.load_weak(expert + 1);
    let mut first = 0;
    while first < found.of_expert {
        let word = first + warp::lane();
        let mut tokens = if word < found.of_expert { bits.load_weak(word) } else { 0 };
        let up_to = warp::prefix_sum(tokens.count_ones());
        let mut entry = at + up_to - tokens.count_ones();
        let source = quotient(word, found.words);
        let row = a.row(source, (word - source * found.words) * 32);
        while tokens != 0 {
            a.index.store_weak(entry, row + tokens.trailing_zeros());
            tokens &= tokens - 1;
            entry += 1;
        }
        at += warp::shuffle(warp::ALL, up_to, warp::LANES - 1);
        first += warp::LANES;
    }
    for pad in thread::strided(at + warp::lane(), end, warp::LANES) {
        a.index.store_weak(pad, NO_ROW);
    }
}

/// Writes that nothing came.
#[inline(always)]
pub(super) fn write_no_counts(a: &DispatchRankMajorArgs) {
    let (ranks, experts) = (a.op.window().peers, a.placement.count(a.op.window().me.0));
    for i in thread::strided(thread::index(), 1 + ranks + 2 * experts + 1, THREADS) {
        a.recv_counts.store_weak(i, 0);
    }
}
