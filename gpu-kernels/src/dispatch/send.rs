//! Sending: every token's row, and what goes with it, to each rank that owns one of its experts.
use epoxide_dsl::prelude::*;

use super::{Chunk, DispatchArgs};
use crate::quantize::{GROUP, VECTORS, quantize_vectors, scale_group};

/// Vectors of eight elements that a warp quantises at once.
const PIECE: u32 = VECTORS as u32 * warp::LANES;

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
        // The next token's loads are on their way while this one's row is.
        next = Selected::load(a, token + a.shared.copy_warps, chunk.end);
        let going = Going::new(a, token, selected);
        if going.lanes != 0 {
            let loading = stage.load(free, row_of(a, token), bytes);
            send_metadata(a, token, selected, going);
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
        next = Selected::load(a, token + a.shared.copy_warps, chunk.end);
        if token + a.shared.copy_warps < chunk.end && warp::lane() == 0 {
            row_of(a, token + a.shared.copy_warps).prefetch(a.hidden * 2);
        }
        let going = Going::new(a, token, selected);
        if going.lanes != 0 {
            let editable = outbox.open(turn);
            quantize_row(a, token, outbox.data(), &editable);
            let source = outbox.seal(editable);
            if selected.goes() {
                let (window, row, to) = (a.op.window(), u64::from(going.row), selected.rank as u32);
                let x = window.of_rank(to, a.recv.x).at(row * u64::from(a.hidden));
                outbox.store(&source, 0, x, a.hidden);
                let scales = window.of_rank(to, a.recv.scales).at(row * u64::from(a.scale_stride));
                outbox.store(&source, a.hidden, scales.cast(), a.scale_stride * 4);
            }
            turn = outbox.send(source);
            send_metadata(a, token, selected, going);
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
    let lane = warp::lane();
    let x = row_of(a, token).cast::<U32x4>();
    let codes = stage.cast::<u64>();
    let scales = stage.at(a.hidden).cast::<f32>();
    let (vectors, groups) = (a.hidden / 8, a.hidden.div_ceil(GROUP));
    let load = |first: u32| {
        let mut loaded = [[0u32; 4]; VECTORS];
        unroll!(J in 4 => {
            let v = first + J as u32 * warp::LANES + lane;
            if v < vectors {
                loaded[J] = x.load_weak_streaming(u64::from(v));
            }
        });
        loaded
    };
    let mut first = 0;
    let mut next = load(first);
    while first < vectors {
        let here = next;
        // The next piece is on its way while this one is worked on.
        next = load(first + PIECE);
        let (quantized, scale) = quantize_vectors(&here);
        unroll!(J in 4 => {
            let v = first + J as u32 * warp::LANES + lane;
            if v < vectors {
                codes.store_weak(v, quantized[J]);
            }
        });
        let group = first * 8 / GROUP + scale_group();
        if lane & 3 == 0 && group < groups {
            scales.store_weak(group, scale);
        }
        first += PIECE;
    }
    // The padding travels too: it is zero, so that a received row is a function of the row sent.
    if groups + lane < a.scale_stride {
        scales.store_weak(groups + lane, 0.0);
    }
}

/// Writes each copy's local expert indices, gate weights and source beside the row. Warp-collective.
#[inline(always)]
#[track_caller]
fn send_metadata(a: &DispatchArgs, token: u32, selected: Selected, going: Going) {
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
    }
}
