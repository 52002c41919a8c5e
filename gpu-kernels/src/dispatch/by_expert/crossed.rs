//! Copying on: rows that crossed once, to the other rows of their tokens here.
use bulk::{Loads, Ring};
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::super::args::{Chunk, DispatchArgs};
use super::super::send::memory_of_warp;
use crate::layout::{DispatchShared, RecvRegions, WARPS};
use crate::row::{Row, RowArgs};
use crate::turns;
use crate::words::{PlaceWords, SeenPlace};

/// Rows that peers' blocks of this number have sent once, each to the first of its token's places here: where they lie, and in whose handles the other
/// places are.
#[derive(Clone, Copy)]
pub(in super::super) struct Crossed<'a> {
    pub window: Window,
    pub recv: &'a RecvRegions,
    pub rows: &'a RowArgs,
    pub shared: &'a DispatchShared,
    pub top_k: u32,
    /// u32 `[ranks]`: how many tokens each rank dispatches.
    pub tokens_of: Region<u32>,
    /// i32 `[tokens][top_k]` at every rank: the handle's ranks.
    pub handle_rank: Region<i32>,
    /// u32 `[tokens][top_k]` at every rank: the handle's rows.
    pub handle_row: Region<u32>,
}

/// A token of a peer's that the block of this number there has sent.
#[derive(Clone, Copy)]
pub(in super::super) struct Sent {
    /// Its number among the block's, over all peers.
    number: u32,
    /// Where this lane's selection sent its row, or -1.
    rank: i32,
    /// The row there.
    row: u32,
}

impl<'a> Crossed<'a> {
    /// Those of a dispatch.
    #[inline(always)]
    pub(in super::super) fn of(a: &'a DispatchArgs) -> Self {
        let &DispatchArgs { top_k, tokens_of, handle_rank, handle_row, .. } = a;
        let (window, recv, rows, shared) = (a.op.window(), &a.recv, &a.rows, &a.shared);
        Self { window, recv, rows, shared, top_k, tokens_of, handle_rank, handle_row }
    }

    /// This warp's first token, from the handle. Warp-collective.
    #[inline(always)]
    pub(in super::super) fn first(&self) -> Sent {
        self.sent(warp::index())
    }

    /// Token `number` of this block's number.
    #[inline(always)]
    fn sent(&self, number: u32) -> Sent {
        let (peer, of_peer) = turns::work(self.window, number);
        let mut sent = Sent { number, rank: -1, row: 0 };
        if peer.0 < self.window.peers {
            let chunk = Chunk::of_block(self.tokens_of(peer));
            let (token, lane) = (chunk.start + of_peer, warp::lane());
            if of_peer < chunk.end - chunk.start && lane < self.top_k {
                let at = u64::from(token) * u64::from(self.top_k) + u64::from(lane);
                sent.rank = self.window.of(peer, self.handle_rank).load_weak(at);
                sent.row = self.window.of(peer, self.handle_row).load_weak(at);
            }
        }
        sent
    }

    /// How many tokens a peer dispatches, which its block of this number has told, or a dispatch before whose routing is replayed.
    #[inline(always)]
    fn tokens_of(&self, peer: Peer) -> u32 {
        self.window.own(self.tokens_of).load_relaxed::<System>(peer)
    }

    /// Looks where the rows of this warp's first token lie, which may have been told by now. Warp-collective.
    #[inline(always)]
    pub(in super::super) fn look(&self, places: &PlaceWords) -> SeenPlace {
        let (peer, nth) = turns::work(self.window, warp::index());
        if peer.0 < self.window.peers && warp::lane() < self.top_k && warp::index() < self.shared.copy_warps {
            return places.look(self.window, peer, (nth, warp::lane()));
        }
        SeenPlace::NONE
    }

    /// This warp's first token, if what was `seen` says where all of its rows lie. Warp-collective.
    #[inline(always)]
    pub(in super::super) fn seen(&self, seen: SeenPlace, number: u64) -> Option<Sent> {
        let row = seen.row(number);
        if warp::ballot(warp::ALL, row.is_none() && warp::lane() < self.top_k) != 0 {
            return None;
        }
        let row = row.unwrap_or(PlaceWords::NOWHERE);
        let rank = if row == PlaceWords::NOWHERE { -1 } else { self.window.rank().0 as i32 };
        Some(Sent { number: warp::index(), rank, row })
    }

    /// Copies them on, from this warp's first one, which may be told or is [found](Self::first).
    #[inline(always)]
    pub(in super::super) fn copy_on<R: Row>(&self, first: Option<Sent>, free: &BulkAccess) {
        if warp::index() >= self.shared.copy_warps {
            return;
        }
        let (memory, window, bytes) = (memory_of_warp::<R>(self.shared), self.window, R::bytes(self.rows));
        // Behind those of the stages, since nobody knows any more in which phase these are.
        let mbarrier = Shared::<u64>::dynamic(WARPS * 8 * self.shared.stages_of_warp).at(warp::index());
        let mut ring = Ring::<1, Loads>::with_loads(memory.stages, self.shared.stage_bytes, mbarrier);
        let rows = window.own(self.recv.x).rows(bytes);
        // Who knows its first one need not know yet how many there are.
        let mut is_told = first.is_some();
        let (mut next, mut end) = match first {
            Some(first) => (first, first.number + 1),
            None => (self.sent(warp::index()), self.end()),
        };
        while next.number < end {
            let Sent { number, rank, row } = next;
            let here = warp::ballot(warp::ALL, rank == window.rank().0 as i32);
            // It came to the first, if to any.
            let (first, others) = (here.trailing_zeros(), here & here.wrapping_sub(1));
            let came = warp::shuffle(warp::ALL, row, first % warp::LANES);
            let loading = if others == 0 { Err(ring) } else { Ok(ring.load(rows.row(came).as_global(), bytes)) };
            // The next one's handle, which comes over the link, is on its way while this one's row is.
            next = self.sent(number + self.shared.copy_warps);
            if is_told {
                (is_told, end) = (false, self.end());
            }
            ring = match loading {
                Ok(loading) => {
                    let source = loading.wait();
                    if others >> warp::lane() & 1 != 0 {
                        source.store(free, 0, rows.row(row), bytes);
                    }
                    if R::SCALES {
                        self.copy_scales(came, row, others);
                    }
                    source.send()
                }
                Err(ring) => ring,
            };
        }
    }

    /// The end of the block's tokens' numbers. Warp-collective.
    #[inline(always)]
    fn end(&self) -> u32 {
        turns::end(self.window, |peer| {
            let chunk = Chunk::of_block(self.tokens_of(peer));
            chunk.end - chunk.start
        })
    }

    /// Copies the scales of row `came` to the row that each of the lanes `others` has. Warp-collective.
    #[inline(always)]
    fn copy_scales(&self, came: u32, row: u32, mut others: u32) {
        let stride = self.rows.scale_stride;
        let scales = self.window.own(self.recv.scales).rows(stride);
        let from = scales.row(came).cast::<U32x4>();
        while others != 0 {
            let to = scales.row(warp::shuffle(warp::ALL, row, others.trailing_zeros())).cast::<U32x4>();
            others &= others - 1;
            for vector in thread::strided(warp::lane(), stride / 4, warp::LANES) {
                to.store_weak(vector, from.load_weak(vector));
            }
        }
    }
}
