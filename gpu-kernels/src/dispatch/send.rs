//! Sending: every token's row, and what goes with it, to each rank that owns one of its experts.
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::args::{Chunk, DispatchArgs};
use super::count::Place;
use crate::layout::DispatchShared;
use crate::placement::quotient;
use crate::row::{Row, WarpMemory};
use crate::words::Source;

/// What a lane knows of one selection of a token.
#[derive(Clone, Copy)]
pub(super) struct Selected {
    /// Where the row goes for it, or -1.
    pub rank: i32,
    /// Its [`Place`].
    pub place: u32,
    /// The expert, or -1.
    pub index: i32,
    /// Its gate weight.
    pub weight: f32,
}

impl Selected {
    #[inline(always)]
    pub(super) fn load(a: &DispatchArgs, token: u32, end: u32) -> Self {
        let lane = warp::lane();
        let mut selected = Self { rank: -1, place: 0, index: -1, weight: 0.0 };
        if token < end && lane < a.top_k {
            // One index for all: where registers are short, each address of its own costs.
            let at = u64::from(token) * u64::from(a.top_k) + u64::from(lane);
            selected.rank = a.send_rank.load_weak(at);
            selected.place = a.send_row.load_weak(at);
            selected.index = a.selection(token, lane) as i32;
            selected.weight = a.topk_weights.load_weak(at);
        }
        selected
    }

    /// How many copies a row has at most whose selections these are: it need not be known that there are few where there are few ranks. Warp-collective.
    #[inline(always)]
    pub(super) fn copies(self, ranks: u32) -> u32 {
        if ranks <= 2 { ranks } else { warp::ballot(warp::ALL, self.rank >= 0).count_ones() }
    }

    /// The peer to which the row goes for this selection.
    #[inline(always)]
    pub(super) fn peer(self, window: Window) -> Option<Peer> {
        (self.rank >= 0).then_some(window.peer_of(Rank(self.rank as u32)))
    }
}

/// The copies of a token's row.
#[derive(Clone, Copy)]
struct Copies {
    /// The lanes whose selection sends one.
    lanes: u32,
    /// The row at this lane's destination.
    row: u32,
}

impl Copies {
    /// Finds their rows, and writes them to the handle if this warp `notes` them. Warp-collective.
    #[inline(always)]
    fn new(a: &DispatchArgs, token: u32, selected: Selected, notes: bool) -> Self {
        let mut row = 0;
        if let Some(Peer(peer)) = selected.peer(a.op.window()) {
            let Place { warp, number } = Place::from_word(selected.place);
            let base = Shared::<u32>::dynamic(a.shared.bases).load_weak(peer);
            let of_warp = Shared::<u32>::dynamic(a.shared.places).load_weak(warp * a.peers() + peer);
            row = base + of_warp + number;
            if notes {
                a.handle_rows(token).store_weak(warp::lane(), row);
            }
        }
        Self { lanes: warp::ballot(warp::ALL, selected.peer(a.op.window()).is_some()), row }
    }
}

/// A warp's first token, which is on its way.
pub(super) struct Begun<R: Row> {
    pub token: u32,
    pub selected: Selected,
    pub row: Option<R::Started>,
}

impl<R: Row> Begun<R> {
    /// Starts with this warp's first token of the block's, or a piece of it, as far as no place is needed: it touches nothing that a peer sees. Warp-collective; the
    /// block has met behind all that it did with the stages.
    #[inline(always)]
    pub(super) fn new(a: &DispatchArgs, chunk: Chunk) -> Self {
        let mut token = chunk.start + quotient(warp::index(), pieces::<R>(a, chunk));
        if warp::index() >= a.shared.copy_warps {
            token = chunk.end;
        }
        let mut row = None;
        if token < chunk.end {
            let piece = piece::<R>(a, chunk, token);
            row = Some(R::new(memory_of_warp::<R>(&a.shared)).start(&a.rows, token, piece));
        }
        Self { token, selected: Selected::load(a, token, chunk.end), row }
    }

    /// Whether this warp writes what goes with its token: of a row in pieces the first one's does.
    #[inline(always)]
    pub(super) fn is_first(piece: Option<u32>) -> bool {
        piece.is_none_or(|piece| piece == 0)
    }

    /// Goes nowhere with it.
    #[inline(always)]
    pub(super) fn give_up(self) {
        if let Some(row) = self.row {
            R::give_up(row);
        }
    }
}

/// Asks for this warp's first row to be brought to the L2 cache while its block counts; but not where another follows it, which takes more than it gains.
#[inline(always)]
pub(super) fn prefetch<R: Row>(a: &DispatchArgs, chunk: Chunk) {
    let token = chunk.start + warp::index();
    if chunk.end - chunk.start <= a.shared.copy_warps && token < chunk.end && warp::lane() == 0 {
        R::prefetch(&a.rows, token);
    }
}

/// In how many pieces the block's rows are made: in several where that takes long and there is a warp for each.
#[inline(always)]
fn pieces<R: Row>(a: &DispatchArgs, chunk: Chunk) -> u32 {
    let pieces = if R::IS_LONG { R::pieces(&a.rows) } else { 1 };
    if pieces > 1 && (chunk.end - chunk.start) * pieces <= a.shared.copy_warps { pieces } else { 1 }
}

/// Which piece of the row of `token` is this warp's, if it is in pieces.
#[inline(always)]
pub(super) fn piece<R: Row>(a: &DispatchArgs, chunk: Chunk, token: u32) -> Option<u32> {
    let pieces = pieces::<R>(a, chunk);
    (pieces > 1).then(|| warp::index() - (token - chunk.start) * pieces)
}

/// Sends this block's rows, a warp per token.
#[inline(always)]
pub(super) fn send<R: Row>(a: &DispatchArgs, chunk: Chunk, begun: Begun<R>, free: &BulkAccess) {
    let bytes = R::bytes(&a.rows);
    let Begun { mut token, mut selected, row: mut started } = begun;
    while let Some(on_its_way) = started {
        // Found once more for each token, so that no register need hold it.
        let piece = piece::<R>(a, chunk, token);
        let copies = Copies::new(a, token, selected, Begun::<R>::is_first(piece));
        let (of_token, following) = (selected, token + a.shared.copy_warps);
        if !R::SCALES {
            // The next token's loads are on their way while this one's row is; later than this one's use, because a wait for
            // a load waits for those behind it too.
            selected = Selected::load(a, following, chunk.end);
        }
        let row = if copies.lanes != 0 {
            let to =
                of_token.peer(a.op.window()).map(|peer| a.op.window().of(peer, a.recv.x).rows(bytes).row(copies.row));
            R::finish(on_its_way, &a.rows, token, piece, to, free, |scales| {
                send_beside::<R>(a, (token, piece), of_token, copies, scales);
            })
        } else {
            R::give_up(on_its_way)
        };
        // A warp that has a piece has that alone.
        token = following;
        if R::SCALES {
            // While a row is quantised no register is left to hold it.
            selected = Selected::load(a, token, chunk.end);
        }
        started = None;
        if token < chunk.end {
            started = Some(row.start_for(&a.rows, token, || selected.copies(a.peers())));
        }
    }
}

/// The shared memory of this warp.
#[inline(always)]
pub(crate) fn memory_of_warp<R: Row>(shared: &DispatchShared) -> WarpMemory {
    let stages = shared.stages + warp::index() * shared.stages_of_warp * shared.stage_bytes;
    let mbarriers = Shared::dynamic(warp::index() * R::STAGES * 8);
    WarpMemory { stages: Shared::dynamic(stages), stage_bytes: shared.stage_bytes, mbarriers }
}

/// Writes beside each copy what goes with it: local expert indices, gate weights, source, and the scales if there are some. A bulk copy
/// would cost more than these few bytes. Warp-collective.
#[inline(always)]
fn send_beside<R: Row>(
    a: &DispatchArgs,
    (token, piece): (u32, Option<u32>),
    selected: Selected,
    copies: Copies,
    scales: Shared<U32x4>,
) {
    let window = a.op.window();
    let lane = warp::lane();
    let Selected { rank, index, weight, .. } = selected;
    let mut lanes = copies.lanes;
    while lanes != 0 {
        let k = lanes.trailing_zeros();
        lanes &= lanes - 1;
        let to = window.peer_of(Rank(warp::shuffle(warp::ALL, rank as u32, k)));
        let row = warp::shuffle(warp::ALL, copies.row, k);
        let local = index - a.placement.first(to.0) as i32;
        let is_local = index >= 0 && local >= 0 && local < a.placement.count(to.0) as i32;
        let notes = Begun::<R>::is_first(piece);
        if lane < a.top_k_stride && notes {
            let topk = window.of(to, a.recv.topk).rows(a.top_k_stride).row(row);
            topk.store_weak(lane, if is_local { local } else { -1 });
            let weights = window.of(to, a.recv.weights).rows(a.top_k_stride).row(row);
            weights.store_weak(lane, if is_local { weight } else { 0.0 });
        }
        if lane == 0 && notes {
            let source = Source { rank: window.rank(), token }.to_word();
            window.of(to, a.recv.source).store_weak(row, source);
        }
        if R::SCALES {
            let vectors = R::scale_vectors(&a.rows, piece);
            send_scales(window.of(to, a.recv.scales), a.rows.scale_stride, row, scales, vectors);
        }
    }
}

/// Writes these vectors of a row's scales to where one copy of it goes. Warp-collective.
#[inline(always)]
pub(super) fn send_scales(to: Symmetric<u32>, stride: u32, row: u32, scales: Shared<U32x4>, (first, end): (u32, u32)) {
    let beside = to.rows(stride).row(row).cast::<U32x4>();
    for vector in thread::strided(first + warp::lane(), end, warp::LANES) {
        beside.store_weak(vector, scales.load_weak(vector));
    }
}
