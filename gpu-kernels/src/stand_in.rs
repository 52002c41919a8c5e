//! Going on without ranks that are gone: their words are written by those who wait for them, and selections of their experts are dropped.
//!
//! # Protocol
//!
//! Every word that a rank waits for lies in its own memory. So in front of each operation a rank writes there, in the order of its own stream,
//! what a *masked* rank would have posted that takes part and has nothing to say: its entry word, counts of zero, its landed, block and done
//! words. No peer writes these words any more: a masked rank's kernels are over, or it has not the windows that the others have moved to. The operation's own kernel knows nothing of it, waits for
//! every rank as ever, and finds no row of theirs.
//!
//! What living ranks post at a masked one goes to memory that nobody reads. Rows do not, nor is anything read from there:
//! [`without_masked`](crate::entries::without_masked) copies the selections in front of a dispatch, and those of a masked rank's experts become
//! "no selection". They are counted. Both read in device memory who is masked: so a graph that has them goes on when that changes.
use epoxide_dsl::prelude::*;

use crate::dispatch::index;
use crate::placement::Placement;
use crate::words::{BlockFlags, CountMatrix, Flags, Kind, Landings, Operation, SelectionWords};

/// Arguments of [`stand_in`](crate::entries::stand_in).
///
/// Launch contract: `op`, `landed`, `counts`, `blocks` and `tokens` describe windows laid out by `WindowLayout`, of which this kernel touches the
/// rank's own alone; it is followed on its stream by the operation that `op` and `kind` are of, with as many blocks; no kernel of a masked
/// rank runs any more that has these windows.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct StandInArgs {
    /// Words, and the number of the operation before.
    pub op: Operation,
    /// `[1]`: how many dispatches there were.
    pub dispatches: Global<u64>,
    /// `[1]`: the number of the dispatch whose routing the operation works by.
    pub routing: Global<u64>,
    /// Landed words: the epoch.
    pub landed: Flags<2>,
    /// The count matrix.
    pub counts: CountMatrix,
    /// Where rows lie by expert, the words of blocks: the epoch.
    pub blocks: BlockFlags,
    /// u32 `[ranks]`, where rows lie by expert: how many tokens each rank dispatches.
    pub tokens: Region<u32>,
    /// Where rows do not lie by expert, the landing counters: of the dispatch.
    pub landings: Landings,
    /// Where rows have fixed places, which experts tokens select: of the dispatch.
    pub selections: SelectionWords,
    /// `[1]`: a bit for each masked rank.
    pub masked: Global<u64>,
    /// What the operation is.
    pub kind: u32,
    /// 1 where rows lie by expert.
    pub by_expert: u32,
    /// 1 where rows have fixed places.
    pub rank_major: u32,
    /// Fills the struct to a multiple of 8 bytes.
    pub reserved: u32,
}

/// Writes the words of masked ranks.
#[inline(always)]
pub(crate) fn run(a: &StandInArgs) {
    let (window, epoch) = (a.op.window(), a.op.next_epoch());
    let is_dispatch = a.kind == Kind::Dispatch as u32;
    let dispatch = a.dispatches.load_weak(0) + 1;
    let (first, thread) = (thread::block_index() == 0, thread::index());
    let mut masked = a.masked.load_weak(0);
    while masked != 0 {
        let peer = Peer(masked.trailing_zeros());
        masked &= masked - 1;
        if a.by_expert != 0 && thread == 0 {
            a.blocks.stand_in(window, peer, epoch);
        }
        if first && thread == 0 {
            let entry = if is_dispatch { a.op.entry } else { a.op.entry.of_dispatch(a.routing.load_weak(0)) };
            entry.stand_in(window, peer, epoch, a.kind);
            a.landed.stand_in(window, peer, epoch);
            if is_dispatch && a.by_expert != 0 {
                window.own(a.tokens).store_weak(peer, 0);
            }
            if is_dispatch && a.by_expert == 0 {
                a.landings.stand_in(window, peer, dispatch);
            }
            if is_dispatch && a.rank_major != 0 {
                a.selections.stand_in(window, peer, dispatch);
            }
            if !is_dispatch && a.kind != Kind::DispatchAgain as u32 {
                a.op.done.stand_in(window, peer, a.op.combines.load_weak(0) + 1);
            }
        }
        let mut counter = thread;
        while first && is_dispatch && counter < a.counts.counters() {
            a.counts.stand_in(window, peer, dispatch, counter);
            counter += thread::block_threads();
        }
    }
}

/// Arguments of [`without_masked`](crate::entries::without_masked).
///
/// Launch contract: `topk_idx` holds `selections` elements of the type that `index_type` names, `kept` as many; nothing writes the one or
/// touches the other meanwhile.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct WithoutMaskedArgs {
    /// Selections.
    pub topk_idx: Global<u8>,
    /// i32, written: selections, or -1.
    pub kept: Global<i32>,
    /// `[1]`: added to: how many were dropped.
    pub dropped: Global<u64>,
    /// How many.
    pub selections: u64,
    /// `[1]`: a bit for each masked rank.
    pub masked: Global<u64>,
    /// Which rank owns which expert.
    pub placement: Placement,
    /// An [`index`] type.
    pub index_type: u32,
    /// Fills the struct to a multiple of 8 bytes.
    pub reserved: u32,
}

/// Copies the selections; any grid.
#[inline(always)]
pub(crate) fn copy(a: &WithoutMaskedArgs) {
    let mut at = u64::from(thread::block_index()) * u64::from(thread::block_threads()) + u64::from(thread::index());
    let step = u64::from(thread::grid_blocks()) * u64::from(thread::block_threads());
    let masked = a.masked.load_weak(0);
    while at < a.selections {
        // As 32 bits: what is no expert stays none.
        let selected = if a.index_type == index::I64 {
            let wide = a.topk_idx.cast::<i64>().load_weak(at);
            let narrow = wide as i32;
            if i64::from(narrow) == wide { narrow } else { i32::MIN }
        } else {
            let bits = a.topk_idx.cast::<u32>().load_weak(at);
            if a.index_type == index::U32 && bits > i32::MAX as u32 && bits != u32::MAX {
                i32::MIN
            } else {
                bits as i32
            }
        };
        let is_expert = selected >= 0 && (selected as u32) < a.placement.experts;
        let owner = if is_expert { a.placement.owner(selected as u32) } else { 0 };
        let dropped = is_expert && masked >> (owner & 63) & 1 != 0;
        if dropped {
            a.dropped.fetch_add_acq_rel::<Gpu>(0, 1);
        }
        a.kept.store_weak(at, if dropped { -1 } else { selected });
        at += step;
    }
}
