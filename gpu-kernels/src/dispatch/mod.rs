//! Dispatch: every token's row goes once to each rank that owns one of its experts.
//!
//! # Protocol
//!
//! Operation `e` (its *epoch*, read from device memory by every block). All words below lie in the *reader's* memory and
//! carry `e`, so nothing is ever zeroed; those marked ² alternate with the parity of `e`: a rank can be one operation ahead
//! of a peer, never two, because every operation waits for a word from every peer.
//!
//! | word | written by | says | read by |
//! |---|---|---|---|
//! | `counts`² `[s][..]` at every rank | the blocks of `s`, relaxed: each word proves itself | distinct tokens of `s` per rank, selections per expert, the bad selection if any | the tokens per rank by all blocks, before the first row is written; the selections by the last block |
//! | `entry`² `[s]` at every rank | block 0 of `s`, release | `s` is in dispatch `e`; the receive regions of `s` are **free**: its consumers of the dispatch before were stream-ordered before this launch; its selections are valid or not | all blocks, acquire, before the first row is written |
//! | `landed`² `[s]` at rank d | the last block of `s` out, release, with the token of `wait_group 0` from every block | all rows of `s` for d are **there** | the last block of d out, acquire; d's consumers are stream-ordered after |
//!
//! When a dispatch completes, d may also write its expert outputs again: every peer's `entry` word of `e` was posted after
//! that peer's combine before was over, reads and all. (Who wants to write them earlier asks [`crate::lend`].)
//!
//! Why a row cannot be overwritten: rank s writes into d only after `entry[d]` of `e`, which d posts after its consumers of
//! the same regions; no two sources share a row, because the count matrix gives every (source, destination) its own range; no two
//! tokens of one source share a row, because a row's place in that range is the number of the source's earlier tokens
//! for the same destination.
//!
//! Why the order does not depend on timing: a row's place is a function of the count matrix and the token's number alone.
//!
//! A fault before the copy is seen by all blocks of all ranks in the same words, so no row is written; a timeout may leave
//! rows behind, but no `landed` word and zero counts. An operation that finds an abort word at its entry, before it
//! publishes, or at its end, files that it stopped: behind a fault nothing is published, and nothing reported as done.
use epoxide_dsl::prelude::*;

use crate::layout::{DispatchShared, RecvRegions};
use crate::placement::{Placement, quotient};
use crate::protocol::{self, Operation, STATUS_OK, STATUS_OUT_OF_RANGE, STATUS_REPEATED, Stamped, code, kind, phase};
use crate::quantize::{GROUP, encode, group_amax, inverse_scale, scale};

/// Threads of a block.
pub const THREADS: u32 = 512;
#[cfg(not(target_arch = "nvptx64"))]
const _: () = assert!(dispatch.threads() == THREADS);

/// Arguments of [`dispatch`].
///
/// Launch contract: `op` and `recv` describe windows laid out by `WindowLayout` for the same shape at every rank; `x`,
/// `topk_idx` and `topk_weights` hold `tokens` rows and are not written while the kernel runs; the launch has the block
/// count and the dynamic shared memory that the layouts were made for, and all blocks are resident together.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct DispatchArgs {
    /// Flags, counters, faults.
    pub op: Operation,
    /// Where rows land at every rank.
    pub recv: RecvRegions,
    /// Landed words, `[2 parities][ranks]`.
    pub landed: Region<u64>,
    /// The count matrix, `[2 parities][ranks][count_words]`.
    pub counts: Region<u64>,
    /// BF16 `[tokens][hidden]`, a multiple of 16 bytes.
    pub x: Global<u8>,
    /// `[tokens][top_k]` of the type that `index_type` names.
    pub topk_idx: Global<u8>,
    /// f32 `[tokens][top_k]`.
    pub topk_weights: Global<f32>,
    /// u32 `[blocks][ranks + experts]`.
    pub block_counts: Global<u32>,
    /// u64 `[blocks]`.
    pub block_bad: Global<u64>,
    /// i32 `[tokens][top_k]`: written: the rank that a selection's row went to, at the first selection of that rank; else -1.
    pub send_rank: Global<i32>,
    /// u32 `[tokens][top_k]`: written: the row there.
    pub send_row: Global<u32>,
    /// u32 `[1 + ranks + local experts]`: written: rows received, in all, by source rank, by local expert.
    pub recv_counts: Global<u32>,
    /// Which rank owns which expert.
    pub placement: Placement,
    /// The block's shared memory.
    pub shared: DispatchShared,
    /// Tokens of this rank.
    pub tokens: u32,
    /// Selections of a token.
    pub top_k: u32,
    /// Elements of a row.
    pub hidden: u32,
    /// f32 from one row's scales to the next's; 0 sends BF16.
    pub scale_stride: u32,
    /// A `protocol::index` type.
    pub index_type: u32,
    /// Words from one row's selections to the next's at the receiver.
    pub top_k_stride: u32,
}

/// No selection's key is this large.
const NOTHING_BAD: u64 = u64::MAX;

/// Moves the rows.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch(args: DispatchArgs) {
    let a = &args;
    let epoch = a.op.epoch.load_weak(0) + 1;
    let watch = wait::Watch::begin(a.op.fault, epoch);
    let chunk = Chunk::of_block(a.tokens);

    if !watch.aborted(phase::COUNTED) {
        count(a, chunk);
    }
    let counted = matches!(a.op.grid.sync(&watch, phase::COUNTED), wait::Outcome::Ready(_));
    // A block that found the abort word has counted nothing; after the grid's barrier every block finds it.
    let mut ready = counted && !watch.aborted(phase::COUNTED);
    if ready {
        publish_counts(a, epoch);
        place_within_block(a, chunk);
        ready = match agree(a, &watch, epoch) {
            Some(acquired) => {
                base_rows(a, epoch);
                // The free edges order the owners' reads with this block's bulk stores.
                send(a, chunk, &acquired.for_bulk_copies());
                true
            }
            None => false,
        };
    }
    if let Some(grid) = a.op.grid.last_out(bulk::land()) {
        finish(a, &watch, epoch, ready, &grid);
    }
}

/// The contiguous tokens of one block.
#[derive(Clone, Copy)]
struct Chunk {
    start: u32,
    end: u32,
}

impl Chunk {
    #[inline(always)]
    fn of_block(tokens: u32) -> Self {
        let per_block = tokens.div_ceil(thread::grid_blocks());
        let start = u64::from(per_block) * u64::from(thread::block_index());
        let start = if start < u64::from(tokens) { start as u32 } else { tokens };
        let end = if tokens - start < per_block { tokens } else { start + per_block };
        Self { start, end }
    }
}

impl DispatchArgs {
    #[inline(always)]
    fn ranks(&self) -> u32 {
        self.op.window().ranks
    }
    #[inline(always)]
    fn me(&self) -> u32 {
        self.op.window().rank
    }
    /// Counts of a block or a rank: distinct tokens per rank, then selections per expert.
    #[inline(always)]
    fn counters(&self) -> u32 {
        self.ranks() + self.placement.experts
    }
    /// Index of word `word` in row `source` of the count matrix of `epoch`.
    #[inline(always)]
    fn count_index(&self, epoch: u64, source: u32, word: u32) -> u64 {
        let words = u64::from(self.counters() + protocol::DETAIL_WORDS);
        self.op.alternating(epoch, source) * words + u64::from(word)
    }
    #[inline(always)]
    #[track_caller]
    fn own_count(&self, epoch: u64, source: u32, word: u32) -> u32 {
        let own = self.op.window().own(self.counts);
        Stamped::from_word(own.load_relaxed::<System>(self.count_index(epoch, source, word))).payload
    }
    /// Selection `position` of `token` as an i64, whatever its type.
    #[inline(always)]
    #[track_caller]
    fn selection(&self, token: u32, position: u32) -> i64 {
        let i = u64::from(token) * u64::from(self.top_k) + u64::from(position);
        match self.index_type {
            protocol::index::I64 => self.topk_idx.cast::<i64>().load_weak(i),
            index_type => {
                let bits = self.topk_idx.cast::<u32>().load_weak(i);
                // "No selection" is all ones in every type.
                if index_type == protocol::index::U32 && bits != u32::MAX {
                    i64::from(bits)
                } else {
                    i64::from(bits as i32)
                }
            }
        }
    }
}

/// Counts this block's tokens per rank and expert, finds its first bad selection, and notes where each selection goes.
#[inline(always)]
#[track_caller]
fn count(a: &DispatchArgs, chunk: Chunk) {
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

    let lane = warp::lane();
    let mut token = chunk.start + warp::index();
    while token < chunk.end {
        let index = if lane < a.top_k { a.selection(token, lane) } else { -1 };
        let selects = index >= 0 && index < i64::from(a.placement.experts);
        // A lane with nothing to match gets a key of its own.
        let nobody = 0x8000_0000 | lane;
        let same_expert = warp::match_any(warp::ALL, if selects { index as u32 } else { nobody });
        let owner = if selects { a.placement.owner(index as u32) } else { nobody };
        let same_rank = warp::match_any(warp::ALL, owner);
        let first_of_rank = selects && same_rank.trailing_zeros() == lane;
        let repeated = selects && same_expert.trailing_zeros() != lane;
        if lane < a.top_k {
            let out_of_range = index < -1 || index >= i64::from(a.placement.experts);
            if out_of_range || repeated {
                bad.fetch_min_relaxed(0, u64::from(token) << 8 | u64::from(lane) << 1 | u64::from(repeated));
            }
            if selects {
                counters.fetch_add_relaxed(a.ranks() + index as u32, 1);
            }
            if first_of_rank {
                counters.fetch_add_relaxed(owner, 1);
            }
            let at = u64::from(token) * u64::from(a.top_k) + u64::from(lane);
            a.send_rank.store_weak(at, if first_of_rank { owner as i32 } else { -1 });
            a.send_row.store_weak(at, 0);
        }
        token += THREADS / warp::LANES;
    }
    block::sync();

    let mut i = thread::index();
    while i < a.counters() {
        let at = u64::from(thread::block_index()) * u64::from(a.counters()) + u64::from(i);
        a.block_counts.store_weak(at, counters.load_weak(i));
        i += THREADS;
    }
    if thread::index() == 0 {
        a.block_bad.store_weak(u64::from(thread::block_index()), bad.load_weak(0));
    }
}

/// Gives this rank's row of the count matrix to every peer: each block a slice of it, block 0 the entry word.
#[inline(always)]
#[track_caller]
fn publish_counts(a: &DispatchArgs, epoch: u64) {
    let blocks = thread::grid_blocks();
    let mut word = thread::block_index() * THREADS + thread::index();
    while word < a.counters() {
        let mut total = 0;
        let mut block = 0;
        while block < blocks {
            total += a.block_counts.load_weak(u64::from(block) * u64::from(a.counters()) + u64::from(word));
            block += 1;
        }
        let mut peer = 0;
        while peer < a.ranks() {
            a.op.window()
                .of_rank(peer, a.counts)
                .store_relaxed::<System>(a.count_index(epoch, a.me(), word), Stamped::new(total, epoch).to_word());
            peer += 1;
        }
        word += blocks * THREADS;
    }
    let peer = thread::index();
    if thread::block_index() == 0 && peer < a.ranks() {
        let mut first = NOTHING_BAD;
        let mut block = 0;
        while block < blocks {
            let bad = a.block_bad.load_weak(u64::from(block));
            if bad < first {
                first = bad;
            }
            block += 1;
        }
        let mut status = STATUS_OK;
        if first != NOTHING_BAD {
            let (token, position) = ((first >> 8) as u32, (first >> 1) as u32 & 0x7f);
            status = if first & 1 == 1 { STATUS_REPEATED } else { STATUS_OUT_OF_RANGE };
            let index = a.selection(token, position) as u64;
            let details = [token, position, index as u32, (index >> 32) as u32];
            let row = a.op.window().of_rank(peer, a.counts);
            unroll!(I in 4 => {
                let at = a.count_index(epoch, a.me(), a.counters() + I as u32);
                row.store_relaxed::<System>(at, Stamped::new(details[I], epoch).to_word());
            });
        }
        // Released after the details, so that who acquires a bad status finds them.
        a.op.post_entry(peer, epoch, kind::DISPATCH, status);
    }
}

/// Numbers this block's tokens within each destination: `send_row` = how many earlier tokens of this *rank* go there too.
#[inline(always)]
#[track_caller]
fn place_within_block(a: &DispatchArgs, chunk: Chunk) {
    let lane = warp::lane();
    let mut rank = warp::index();
    while rank < a.ranks() {
        let mut placed = 0;
        let mut block = lane;
        while block < thread::block_index() {
            placed += a.block_counts.load_weak(u64::from(block) * u64::from(a.counters()) + u64::from(rank));
            block += warp::LANES;
        }
        placed = warp::sum(warp::ALL, placed);
        let mut first = chunk.start;
        while first < chunk.end {
            let token = first + lane;
            let mut at = u64::MAX;
            if token < chunk.end {
                let row = u64::from(token) * u64::from(a.top_k);
                let mut k = 0;
                while k < a.top_k {
                    if a.send_rank.load_weak(row + u64::from(k)) == rank as i32 {
                        at = row + u64::from(k);
                    }
                    k += 1;
                }
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

/// Waits until every rank has entered and told its counts; `None` if there is nothing to send because of a fault.
#[inline(always)]
#[track_caller]
fn agree(a: &DispatchArgs, watch: &wait::Watch, epoch: u64) -> Option<wait::Acquired> {
    let wait::Outcome::Ready(acquired) = a.op.wait_entries(watch, epoch, kind::DISPATCH) else {
        return None;
    };
    if a.op.disagreement(watch, epoch, kind::DISPATCH) || bad_selection(a, watch, epoch) {
        return None;
    }
    // The tokens of every rank for every rank.
    let ranks = a.ranks();
    let own = a.op.window().own(a.counts);
    let outcome = watch.wait_until(phase::COUNTS, ranks * ranks, |flag| {
        let source = quotient(flag, ranks);
        // Relaxed: the word is all that it publishes.
        let seen = own.load_relaxed::<System>(a.count_index(epoch, source, flag - source * ranks));
        wait::Poll {
            peer: source,
            expected: Stamped::new(0, epoch).to_word(),
            seen,
            ready: Stamped::from_word(seen).is_of(epoch),
        }
    });
    if let wait::Outcome::Ready(_) = outcome { Some(acquired) } else { None }
}

/// Whether some rank has a bad selection; files the fault of the lowest such rank. Block-collective, uniform.
#[inline(always)]
#[track_caller]
fn bad_selection(a: &DispatchArgs, watch: &wait::Watch, epoch: u64) -> bool {
    let peer = thread::index();
    if !block::any(peer < a.ranks() && a.op.entry_of(peer, epoch).status != STATUS_OK) {
        return false;
    }
    if thread::index() == 0 {
        let mut found = false;
        let mut rank = 0;
        while rank < a.ranks() && !found {
            let status = a.op.entry_of(rank, epoch).status;
            if status != STATUS_OK {
                found = true;
                let code = if status == STATUS_REPEATED { code::INDEX_REPEATED } else { code::INDEX_OUT_OF_RANGE };
                let word = |i| u64::from(a.own_count(epoch, rank, a.counters() + i));
                let fault = fault::Fault {
                    detail: [word(0), word(1), word(2) | word(3) << 32],
                    ..watch.fault(code, phase::ENTRY, rank)
                };
                a.op.fault.file_here(thread::block_index(), fault);
            }
            rank += 1;
        }
    }
    true
}

/// Where this rank's rows begin at each destination: after those of all lower ranks.
#[inline(always)]
#[track_caller]
fn base_rows(a: &DispatchArgs, epoch: u64) {
    let bases = Shared::<u32>::dynamic(a.shared.bases);
    let rank = thread::index();
    if rank < a.ranks() {
        let mut base = 0;
        let mut source = 0;
        while source < a.me() {
            base += a.own_count(epoch, source, rank);
            source += 1;
        }
        bases.store_weak(rank, base);
    }
    block::sync();
}

/// What a lane knows of one selection of a token.
#[derive(Clone, Copy)]
struct Selected {
    /// Where the row goes for it, or -1.
    rank: i32,
    /// How many earlier tokens of this rank go there.
    place: u32,
    /// The expert, or -1.
    index: i32,
    /// Its gate weight.
    weight: f32,
}

impl Selected {
    #[inline(always)]
    #[track_caller]
    fn load(a: &DispatchArgs, token: u32, end: u32) -> Self {
        let lane = warp::lane();
        let mut selected = Self { rank: -1, place: 0, index: -1, weight: 0.0 };
        if token < end && lane < a.top_k {
            let at = u64::from(token) * u64::from(a.top_k) + u64::from(lane);
            selected.rank = a.send_rank.load_weak(at);
            selected.place = a.send_row.load_weak(at);
            selected.index = a.selection(token, lane) as i32;
            selected.weight = a.topk_weights.load_weak(at);
        }
        selected
    }
}

/// Sends this block's rows, a warp per token.
#[inline(always)]
#[track_caller]
fn send(a: &DispatchArgs, chunk: Chunk, _free: &wait::BulkAccess) {
    if warp::index() >= a.shared.copy_warps {
        return;
    }
    let bases = Shared::<u32>::dynamic(a.shared.bases);
    let lane = warp::lane();
    let (mut stage, mut free) = bulk::Stage::new(
        Shared::dynamic(a.shared.stages + warp::index() * a.shared.stage_bytes),
        Shared::dynamic(warp::index() * 8),
    );
    let mut token = chunk.start + warp::index();
    let mut next = Selected::load(a, token, chunk.end);
    while token < chunk.end {
        let Selected { rank, place, index, weight } = next;
        // The next token's loads are on their way while this one's row is.
        next = Selected::load(a, token + a.shared.copy_warps, chunk.end);
        let x = a.x.at(u64::from(token) * u64::from(a.hidden) * 2);
        let mut row = 0;
        if rank >= 0 {
            row = bases.load_weak(rank as u32) + place;
            a.send_row.store_weak(u64::from(token) * u64::from(a.top_k) + u64::from(lane), row);
        }
        let going = warp::ballot(warp::ALL, rank >= 0);
        if going != 0 {
            let loading = stage.load(free, x, a.hidden * 2);
            send_metadata(a, token, going, rank, row, index, weight);
            let source = if a.scale_stride == 0 {
                stage.wait(loading)
            } else {
                let editable = stage.wait_to_edit(loading);
                quantize_row(a, &stage, &editable);
                stage.seal(editable)
            };
            if rank >= 0 {
                store_row(a, &stage, &source, rank as u32, row);
            }
            free = stage.recycle(source);
        }
        token += a.shared.copy_warps;
    }
}

/// Starts this lane's copy of the staged row to `rank`.
#[inline(always)]
#[track_caller]
fn store_row(a: &DispatchArgs, stage: &bulk::Stage, source: &bulk::Source, rank: u32, row: u32) {
    let window = a.op.window();
    let row = u64::from(row);
    let x = window.of_rank(rank, a.recv.x);
    if a.scale_stride == 0 {
        let bytes = a.hidden * 2;
        stage.store(source, 0, x.at(row * u64::from(bytes)), bytes);
    } else {
        stage.store(source, 0, x.at(row * u64::from(a.hidden)), a.hidden);
        let scales = window.of_rank(rank, a.recv.scales).at(row * u64::from(a.scale_stride));
        stage.store(source, a.hidden * 2, scales.cast(), a.scale_stride * 4);
    }
}

/// Quantises the row in the stage where it lies: afterwards it is the codes, then the scales. Warp-collective.
#[inline(always)]
#[track_caller]
fn quantize_row(a: &DispatchArgs, stage: &bulk::Stage, _editable: &bulk::Editable) {
    let lane = warp::lane();
    let x = stage.data().cast::<U32x4>();
    let codes = stage.data().cast::<u64>();
    // Beyond the row: the group's largest magnitude first, its scale in the end.
    let amax = stage.data().at(a.hidden * 2).cast::<f32>();
    let inverse = amax.at(a.scale_stride);
    let vectors = a.hidden / 8;

    let mut first = 0;
    while first < vectors {
        // Four independent chains of shuffles, so that they overlap.
        let mut of_group = [0.0; 4];
        unroll!(J in 4 => {
            let v = first + J as u32 * warp::LANES + lane;
            of_group[J] = group_amax(if v < vectors { x.load_weak(v) } else { [0; 4] });
        });
        unroll!(J in 4 => {
            let v = first + J as u32 * warp::LANES + lane;
            if v < vectors && lane.is_multiple_of(16) {
                amax.store_weak(v * 8 / GROUP, of_group[J]);
            }
        });
        first += 4 * warp::LANES;
    }
    warp::sync(warp::ALL);

    // The divisions, a lane for each group and not a group for all lanes. The padding travels too: it is zero, so that a
    // received row is a function of the row sent.
    let groups = a.hidden.div_ceil(GROUP);
    let mut group = lane;
    while group < a.scale_stride {
        let mut of_group = 0.0;
        if group < groups {
            let largest = amax.load_weak(group);
            inverse.store_weak(group, inverse_scale(largest));
            of_group = scale(largest);
        }
        amax.store_weak(group, of_group);
        group += warp::LANES;
    }
    warp::sync(warp::ALL);

    let mut first = 0;
    while first < vectors {
        let mut values = [[0u32; 4]; 4];
        let mut factors = [0.0; 4];
        unroll!(J in 4 => {
            let v = first + J as u32 * warp::LANES + lane;
            if v < vectors {
                values[J] = x.load_weak(v);
                factors[J] = inverse.load_weak(v * 8 / GROUP);
            }
        });
        // The codes overwrite what these four turns, or earlier ones, have read.
        warp::sync(warp::ALL);
        unroll!(J in 4 => {
            let v = first + J as u32 * warp::LANES + lane;
            if v < vectors {
                codes.store_weak(v, encode(values[J], factors[J]));
            }
        });
        first += 4 * warp::LANES;
    }
}

/// Writes each copy's local expert indices, gate weights and source beside the row. Warp-collective.
#[inline(always)]
#[track_caller]
fn send_metadata(a: &DispatchArgs, token: u32, mut going: u32, rank: i32, row: u32, index: i32, weight: f32) {
    let window = a.op.window();
    let lane = warp::lane();
    while going != 0 {
        let k = going.trailing_zeros();
        going &= going - 1;
        let to = warp::shuffle(warp::ALL, rank as u32, k);
        let row = u64::from(warp::shuffle(warp::ALL, row, k));
        let first = a.placement.first(to) as i32;
        let local = index - first;
        let is_local = index >= 0 && local >= 0 && local < a.placement.count(to) as i32;
        if lane < a.top_k_stride {
            let at = row * u64::from(a.top_k_stride) + u64::from(lane);
            window.of_rank(to, a.recv.topk).store_weak(at, if is_local { local } else { -1 });
            window.of_rank(to, a.recv.weights).store_weak(at, if is_local { weight } else { 0.0 });
        }
        if lane == 0 {
            let source = u64::from(a.me()) << 32 | u64::from(token);
            window.of_rank(to, a.recv.source).store_weak(row, source);
        }
    }
}

/// The last block out: tells every peer that its rows are there, waits for theirs, writes the counts, advances the epoch.
#[inline(always)]
#[track_caller]
fn finish(a: &DispatchArgs, watch: &wait::Watch, epoch: u64, ready: bool, grid: &grid::GridLanded) {
    let (ranks, me) = (a.ranks(), a.me());
    let local_experts = a.placement.count(me);
    // Another block of this rank may have faulted where this one did not, or a peer.
    let whole = ready && !watch.aborted(phase::END);
    let mut complete = false;
    if whole {
        let peer = thread::index();
        if peer < ranks {
            let flag = a.op.window().of_rank(peer, a.landed).at(a.op.alternating(epoch, me));
            grid.publish(flag, Stamped::new(0, epoch).to_word());
        }
        complete = arrivals(a, watch, epoch) && !watch.aborted(phase::END);
    }
    let mut i = thread::index();
    while i <= ranks + local_experts {
        let mut rows = 0;
        if complete {
            let mut source = 0;
            while source < ranks {
                let here = a.own_count(epoch, source, me);
                rows += if i == 0 || i == 1 + source {
                    here
                } else if i > ranks {
                    a.own_count(epoch, source, ranks + a.placement.first(me) + i - 1 - ranks)
                } else {
                    0
                };
                source += 1;
            }
        }
        a.recv_counts.store_weak(u64::from(i), rows);
        i += THREADS;
    }
    if thread::index() == 0 {
        a.op.epoch.store_weak(0, epoch);
    }
}

/// Waits for every peer's rows and for the counts of this rank's experts.
#[inline(always)]
#[track_caller]
fn arrivals(a: &DispatchArgs, watch: &wait::Watch, epoch: u64) -> bool {
    let (ranks, me) = (a.ranks(), a.me());
    let window = a.op.window();
    let landed = window.own(a.landed);
    let counts = window.own(a.counts);
    let local_experts = a.placement.count(me);
    let first_word = ranks + a.placement.first(me);
    let expected = Stamped::new(0, epoch).to_word();
    let outcome = watch.wait_until(phase::LANDED, ranks + ranks * local_experts, |flag| {
        let (peer, seen) = if flag < ranks {
            (flag, landed.load_acquire::<System>(a.op.alternating(epoch, flag)))
        } else {
            let source = quotient(flag - ranks, local_experts);
            let word = first_word + (flag - ranks - source * local_experts);
            (source, counts.load_relaxed::<System>(a.count_index(epoch, source, word)))
        };
        wait::Poll { peer, expected, seen, ready: Stamped::from_word(seen).is_of(epoch) }
    });
    matches!(outcome, wait::Outcome::Ready(_))
}
