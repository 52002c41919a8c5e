//! Sending: every token's row to its place at each rank that owns one of its experts, and which those are to all.
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::args::DispatchRankMajorArgs;
use crate::dispatch::{index, memory_of_warp};
use crate::placement::quotient;
use crate::row::Row;
use crate::words::{Kind, Phase, Selection};

/// A sending block's part, of `senders`: its tokens.
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
    let window = a.op.window();
    // Rows go by pieces where there is a warp for each, and it pays: making one takes long, or blocks have several, which pieces divide more evenly.
    let warps = a.shared.copy_warps * senders;
    let pays = R::IS_LONG || a.tokens > senders;
    let pieces = if pays && a.tokens * R::pieces(&a.rows) <= warps { R::pieces(&a.rows) } else { 1 };
    // Neighbours go to different blocks: few tokens take as many blocks as there are.
    let number_of_warp = sender + warp::index() * senders;
    let mut token = if pieces == 1 { number_of_warp } else { quotient(number_of_warp, pieces) };
    let piece = (pieces > 1).then(|| number_of_warp - token * pieces);
    if warp::index() >= a.shared.copy_warps {
        token = a.tokens;
    }
    // All are on their way together: whether somebody gave up, whether the slot is free, the first token's selections, and its row.
    let (look, freed) = (watch.look(), a.freed.load_weak(0));
    let mut next = Selected::load(a, token);
    let mut started = None;
    if token < a.tokens {
        started = Some(R::new(memory_of_warp::<R>(&a.shared)).start(&a.rows, token, piece));
    }
    // Behind a fault nothing is published.
    let entered = watch.found(look, Phase::Entry as u32).settle();
    let free = match entered.and_then(|()| free_slot(a, watch, freed)) {
        Ok(free) => free,
        Err(stopped) => {
            if let Some(row) = started {
                R::give_up(row);
            }
            return Err(stopped);
        }
    };
    if sender == 0 && thread::index() < window.peers {
        a.selections.tell_tokens(window, number, Peer(thread::index()), a.tokens);
    }
    // What is told waits for no row: not for this warp's first, nor do its later tokens for their turn. Of a row in pieces one warp tells.
    let tells = piece.is_none_or(|piece| piece == 0);
    let mut routed = Routed::NOWHERE;
    let mut told = token;
    while told < a.tokens {
        let selected = next;
        next = Selected::load(a, told + warps);
        let of_token = Routed::new::<true>(a, number, told, selected, tells);
        if told == token {
            routed = of_token;
        }
        told += warps;
    }
    let mut sends = false;
    while let Some(row) = started {
        sends = true;
        let sent =
            R::send_started(row, &a.rows, token, piece, &free, |scales| send_beside::<R>(a, routed, piece, scales));
        // A warp that has a piece has that alone.
        token += warps;
        started = None;
        if token < a.tokens {
            routed = Routed::new::<false>(a, number, token, Selected::load(a, token), false);
            started = Some(sent.start(&a.rows, token, None));
        }
    }
    let landing = a.landings.of_block(window, (sender, senders));
    let sends = block::any(sends).get();
    let landed = bulk::land();
    if let Some(landing) = landing {
        // Of a block without tokens there is nothing to wait for.
        landing.add(sends.then_some(&landed));
    }
    Ok(())
}

/// What a lane knows of one selection of a token.
#[derive(Clone, Copy)]
struct Selected {
    /// As the caller gave it.
    index: index::Selected,
    /// Its gate weight.
    weight: f32,
}

impl Selected {
    #[inline(always)]
    fn load(a: &DispatchRankMajorArgs, token: u32) -> Self {
        let lane = warp::lane();
        let mut selected = Self { index: index::Selected::NONE, weight: 0.0 };
        if token < a.tokens && lane < a.top_k {
            selected.index = a.load_selection(token, lane);
            selected.weight = a.topk_weights.rows(a.top_k).row(token).load_weak(lane);
        }
        selected
    }
}

/// Where a token's row goes.
#[derive(Clone, Copy)]
struct Routed {
    /// The row, wherever it goes.
    row: u32,
    /// The rank of this lane's expert, or none's.
    owner: u32,
    /// This lane's gate weight.
    weight: f32,
    /// Whether this lane copies the row to its rank.
    sends: bool,
}

impl Routed {
    const NOWHERE: Self = Self { row: 0, owner: 0, weight: 0.0, sends: false };

    /// Finds where the row of `token` goes. If it `tells`, which an instance with `TELLS` may, every rank is told what the token selects there, and the
    /// handle written. Warp-collective.
    #[inline(always)]
    fn new<const TELLS: bool>(
        a: &DispatchRankMajorArgs,
        number: u64,
        token: u32,
        selected: Selected,
        tells: bool,
    ) -> Self {
        let (window, lane) = (a.op.window(), warp::lane());
        let Selected { index, weight } = selected;
        let earlier = (1 << lane) - 1;
        let is_expert = index.expert(a.placement.experts);
        // Lanes that select nothing are alike: each different value in the warp takes its time.
        let (selects, expert) = (is_expert.is_some(), is_expert.unwrap_or(u32::MAX));
        let owner = if selects { a.placement.owner(expert) } else { u32::MAX };
        let (same_expert, same_rank) = (warp::match_any(warp::ALL, expert), warp::match_any(warp::ALL, owner));
        let (repeated, is_first) = (selects && same_expert & earlier != 0, same_rank & earlier == 0);
        let mut selection = Selection::NONE;
        if selects {
            selection = Selection::of_expert(expert - a.placement.first(owner));
        }
        if repeated {
            selection = Selection::REPEATED;
        } else if !selects && !index.is_none(a.index_type) {
            selection = Selection::OUT_OF_RANGE;
        }
        // The row of a token with a bad one goes nowhere: every rank is told.
        let any_bad = warp::ballot(warp::ALL, selection.is_bad()) != 0;
        let row = a.row(window.me.0, token);
        let sends = selects && is_first && !any_bad;
        if TELLS && tells {
            if any_bad {
                if selection.is_bad() {
                    tell_index(a, row, index.value(a.index_type) as u64);
                }
                // Other lanes write their words.
                warp::sync(warp::ALL);
            }
            tell(a, number, token, owner, selection);
            if lane < a.top_k {
                let at = u64::from(token) * u64::from(a.top_k) + u64::from(lane);
                a.send_rank.store_weak(at, if sends { window.rank_of(Peer(owner)).0 as i32 } else { -1 });
                a.send_row.store_weak(at, row);
            }
        }
        Self { row, owner, weight, sends }
    }
}

/// Writes what goes with a row, or a piece of it, to where it goes; says where this lane copies the row to. Warp-collective.
#[inline(always)]
fn send_beside<R: Row>(
    a: &DispatchRankMajorArgs,
    routed: Routed,
    piece: Option<u32>,
    scales: Shared<U32x4>,
) -> Option<Symmetric<u8>> {
    let (window, lane) = (a.op.window(), warp::lane());
    let Routed { row, owner, weight, sends } = routed;
    let (first, end) = R::scale_vectors(&a.rows, piece);
    let mut lanes = warp::ballot(warp::ALL, sends);
    while lanes != 0 {
        let k = lanes.trailing_zeros();
        lanes &= lanes - 1;
        let to = warp::shuffle(warp::ALL, owner, k);
        if lane < a.top_k_stride && piece.is_none_or(|piece| piece == 0) {
            let weights = window.of(Peer(to), a.recv.weights).rows(a.top_k_stride).row(row);
            weights.store_weak(lane, if owner == to { weight } else { 0.0 });
        }
        if R::SCALES {
            let beside = window.of(Peer(to), a.recv.scales).rows(a.rows.scale_stride).row(row).cast::<U32x4>();
            for vector in thread::strided(first + lane, end, warp::LANES) {
                beside.store_weak(vector, scales.load_weak(vector));
            }
        }
    }
    sends.then(|| window.of(Peer(owner), a.recv.x).rows(R::bytes(&a.rows)).row(row))
}

/// Tells every rank what each selection of a token is to it: so many ranks at once as the warp has lanes for. Warp-collective.
#[inline(always)]
fn tell(a: &DispatchRankMajorArgs, number: u64, token: u32, owner: u32, selection: Selection) {
    let (window, lane) = (a.op.window(), warp::lane());
    let lanes_log2 = 32 - (a.top_k - 1).leading_zeros();
    let position = lane & ((1 << lanes_log2) - 1);
    let owner = warp::shuffle(warp::ALL, owner, position);
    let selection = Selection::from_bits(warp::shuffle(warp::ALL, selection.bits(), position));
    let ranks = if position < a.top_k { window.peers } else { 0 };
    for peer in thread::strided(lane >> lanes_log2, ranks, warp::LANES >> lanes_log2) {
        let told = if selection.is_bad() || owner == peer { selection } else { Selection::NONE };
        a.selections.tell(window, number, Peer(peer), (token, position), told);
    }
}

/// Writes at every rank, where the selection's local expert and weight would be, the index that is bad. Its word, which another lane writes, comes behind it.
/// Per thread.
#[inline(always)]
fn tell_index(a: &DispatchRankMajorArgs, row: u32, index: u64) {
    let (window, position) = (a.op.window(), warp::lane());
    for peer in thread::strided(0, window.peers, 1) {
        window.of(Peer(peer), a.recv.topk).rows(a.top_k_stride).row(row).store_weak(position, index as i32);
        let high = f32::from_bits((index >> 32) as u32);
        window.of(Peer(peer), a.recv.weights).rows(a.top_k_stride).row(row).store_weak(position, high);
    }
}

/// What says that the slot is free at every rank: the combine before this dispatch, which left its epoch, or else the entry words.
#[inline(always)]
fn free_slot(a: &DispatchRankMajorArgs, watch: &wait::Watch, freed: u64) -> Result<BulkAccess, fault::Stopped> {
    // The same in all threads: nobody writes it meanwhile. Before the first combine it is 0, as no epoch is.
    if freed != 0 && watch.epoch() == freed + 1 {
        return Ok(BulkAccess::left_by_an_earlier_operation());
    }
    Ok(a.op.entry.meet(a.op.window(), watch, Kind::Dispatch)?.for_bulk_copies())
}
