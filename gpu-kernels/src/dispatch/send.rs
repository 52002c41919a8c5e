//! Sending: every token's row, and what goes with it, to each rank that owns one of its experts.
use epoxide_dsl::prelude::*;

use super::{Chunk, DispatchArgs};
use crate::quantize::{GROUP, code_word, quantize_vectors, scale_group};

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

    /// Whether the row goes somewhere for this selection.
    #[inline(always)]
    fn goes(self) -> bool {
        self.rank >= 0
    }
}

/// Where a token's row goes.
#[derive(Clone, Copy)]
struct Going {
    /// The lanes whose selection sends it.
    lanes: u32,
    /// The row at this lane's destination.
    row: u32,
}

impl Going {
    /// Finds out, and writes this lane's row to the handle. Warp-collective.
    #[inline(always)]
    #[track_caller]
    fn new(a: &DispatchArgs, token: u32, selected: Selected) -> Self {
        let mut row = 0;
        if selected.goes() {
            row = Shared::<u32>::dynamic(a.shared.bases).load_weak(selected.rank as u32) + selected.place;
            a.send_row.store_weak(u64::from(token) * u64::from(a.top_k) + u64::from(warp::lane()), row);
        }
        Self { lanes: warp::ballot(warp::ALL, selected.goes()), row }
    }
}

/// Sends this block's rows, a warp per token.
#[inline(always)]
#[track_caller]
pub(super) fn send(a: &DispatchArgs, chunk: Chunk, free: &wait::BulkAccess) {
    if warp::index() >= a.shared.copy_warps {
        return;
    }
    if a.scale_stride == 0 {
        send_bf16(a, chunk, free);
    } else {
        send_fp8(a, chunk, free);
    }
}

/// Sends rows as they are: each is loaded into the warp's stage, and copied from there to every destination.
#[inline(always)]
#[track_caller]
fn send_bf16(a: &DispatchArgs, chunk: Chunk, _free: &wait::BulkAccess) {
    let bytes = a.hidden * 2;
    let (mut stage, mut free) = bulk::Stage::new(stages_of_warp(a), Shared::dynamic(warp::index() * 8));
    let mut token = chunk.start + warp::index();
    let mut next = Selected::load(a, token, chunk.end);
    while token < chunk.end {
        let selected = next;
        let going = Going::new(a, token, selected);
        // The next token's loads are on their way while this one's row is; later than this one's use, because a wait for
        // a load waits for those behind it too.
        next = Selected::load(a, token + a.shared.copy_warps, chunk.end);
        if going.lanes != 0 {
            let loading = stage.load(free, row_of(a, token), bytes);
            send_metadata(a, token, selected, going, stage.data().cast());
            let source = stage.wait(loading);
            if selected.goes() {
                let x = a.op.window().of_rank(selected.rank as u32, a.recv.x);
                stage.store(&source, 0, x.at(u64::from(going.row) * u64::from(bytes)), bytes);
            }
            free = stage.recycle(source);
        }
        token += a.shared.copy_warps;
    }
}

/// Sends rows as codes and scales: each is quantised on its way from memory into the warp's outbox, and copied from there to
/// every destination while the next one is quantised.
#[inline(always)]
#[track_caller]
fn send_fp8(a: &DispatchArgs, chunk: Chunk, _free: &wait::BulkAccess) {
    let (mut outbox, mut turn) = bulk::Outbox::new(stages_of_warp(a), a.shared.stage_bytes);
    let mut token = chunk.start + warp::index();
    let mut next = Selected::load(a, token, chunk.end);
    while token < chunk.end {
        let selected = next;
        let going = Going::new(a, token, selected);
        next = Selected::load(a, token + a.shared.copy_warps, chunk.end);
        if going.lanes != 0 {
            // Of a row with few copies most of the time is its load. With many, memory is busy writing, and what is brought
            // to the L2 early may be gone before it is read.
            if going.lanes.count_ones() <= 2 && warp::lane() == 0 {
                row_of(a, token).prefetch(a.hidden * 2);
            }
            let editable = outbox.open(turn);
            quantize_row(a, token, outbox.data(), &editable);
            let source = outbox.seal(editable);
            if selected.goes() {
                let x = a.op.window().of_rank(selected.rank as u32, a.recv.x);
                outbox.store(&source, 0, x.at(u64::from(going.row) * u64::from(a.hidden)), a.hidden);
            }
            let scales = outbox.data().at(a.hidden).cast();
            turn = outbox.send(source);
            send_metadata(a, token, selected, going, scales);
        }
        token += a.shared.copy_warps;
    }
}

/// The shared memory of this warp's stage, or stages.
#[inline(always)]
fn stages_of_warp(a: &DispatchArgs) -> Shared<u8> {
    Shared::dynamic(a.shared.stages + warp::index() * a.shared.stages_of_warp * a.shared.stage_bytes)
}

/// The input row of a token.
#[inline(always)]
fn row_of(a: &DispatchArgs, token: u32) -> Global<u8> {
    a.x.at(u64::from(token) * u64::from(a.hidden) * 2)
}

/// Quantises a token's row from memory into a stage: the codes, then the scales. Warp-collective.
#[inline(always)]
#[track_caller]
fn quantize_row(a: &DispatchArgs, token: u32, stage: Shared<u8>, _editable: &bulk::Editable) {
    let x = row_of(a, token).cast::<U32x4>();
    let vectors = a.hidden / 8;
    let mut first = 0;
    while first + 8 * warp::LANES <= vectors {
        quantize_piece::<8, true>(a, x, stage, first);
        first += 8 * warp::LANES;
    }
    while first < vectors {
        quantize_piece::<4, false>(a, x, stage, first);
        first += 4 * warp::LANES;
    }
    // The padding travels too: it is zero, so that a received row is a function of the row sent.
    let groups = a.hidden.div_ceil(GROUP);
    if groups + warp::lane() < a.scale_stride {
        stage.at(a.hidden).cast::<f32>().store_weak(groups + warp::lane(), 0.0);
    }
}

/// Quantises `N` vectors of every lane, from vector `first` of the row on; all of them are in the row if it is `WHOLE` there.
/// Warp-collective.
#[inline(always)]
#[track_caller]
fn quantize_piece<const N: usize, const WHOLE: bool>(
    a: &DispatchArgs,
    x: Global<U32x4>,
    stage: Shared<u8>,
    first: u32,
) {
    let at = first + warp::lane();
    let inside = |j: usize| WHOLE || at + j as u32 * warp::LANES < a.hidden / 8;
    let mut loaded = [[0u32; 4]; N];
    unroll!(J in 8 => {
        if J < N && inside(J) {
            loaded[J] = x.load_weak_streaming(u64::from(at + J as u32 * warp::LANES));
        }
    });
    let (codes, scale) = quantize_vectors(&loaded);
    unroll!(J in 8 => {
        if J < N && inside(J) {
            stage.cast::<u64>().store_weak(at + J as u32 * warp::LANES, code_word(codes[J]));
        }
    });
    if let Some(group) = scale_group::<N>() {
        let group = first * 8 / GROUP + group;
        if WHOLE || group < a.hidden.div_ceil(GROUP) {
            stage.at(a.hidden).cast::<f32>().store_weak(group, scale);
        }
    }
}

/// Writes beside each copy what goes with it: local expert indices, gate weights, source, and in FP8 the scales, which lie in a
/// stage of the outbox that is not opened before the turn after the next. A bulk copy would cost more than these few bytes.
/// Warp-collective.
#[inline(always)]
#[track_caller]
fn send_metadata(a: &DispatchArgs, token: u32, selected: Selected, going: Going, scales: Shared<U32x4>) {
    let window = a.op.window();
    let lane = warp::lane();
    let Selected { rank, index, weight, .. } = selected;
    let mut lanes = going.lanes;
    while lanes != 0 {
        let k = lanes.trailing_zeros();
        lanes &= lanes - 1;
        let to = warp::shuffle(warp::ALL, rank as u32, k);
        let row = u64::from(warp::shuffle(warp::ALL, going.row, k));
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
        let mut vector = lane;
        while vector < a.scale_stride / 4 {
            let beside = window.of_rank(to, a.recv.scales).at(row * u64::from(a.scale_stride)).cast::<U32x4>();
            beside.store_weak(u64::from(vector), scales.load_weak(vector));
            vector += warp::LANES;
        }
    }
}
