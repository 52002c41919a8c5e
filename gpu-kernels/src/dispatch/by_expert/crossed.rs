//! Copying on: rows that crossed once, to the other rows of their tokens here.
use core::marker::PhantomData;

use bulk::{Loads, Ring};
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::super::args::{Chunk, DispatchArgs};
use super::super::send::memory_of_warp;
use crate::layout::{DispatchShared, RecvRegions, WARPS};
use crate::row::{Row, RowArgs};
use crate::turns;
use crate::words::PlaceWords;

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
struct Sent {
    /// Where this lane's selection sent its row, or -1.
    rank: i32,
    /// The row there.
    row: u32,
}

impl Sent {
    /// None.
    const NONE: Self = Self { rank: -1, row: 0 };
}

/// What a warp knows of what it copies on by the time that it is there.
pub(in super::super) struct Ahead<R> {
    /// Its stage, if it copies on.
    ring: Option<Ring<1, Loads>>,
    /// Its first token.
    first: Option<Sent>,
    /// The end of the block's tokens' numbers.
    end: Option<u32>,
    row: PhantomData<R>,
}

impl<R: Row> Ahead<R> {
    /// Copies on what `crossed`, which is there now. Warp-collective.
    #[inline(always)]
    pub(in super::super) fn copy_on(self, crossed: Crossed<'_>, free: &BulkAccess) {
        crossed.copy_on(self, free);
    }
}

impl<'a> Crossed<'a> {
    /// Those of a dispatch.
    #[inline(always)]
    pub(in super::super) fn of(a: &'a DispatchArgs) -> Self {
        let &DispatchArgs { top_k, tokens_of, handle_rank, handle_row, .. } = a;
        let (window, recv, rows, shared) = (a.op.window(), &a.recv, &a.rows, &a.shared);
        Self { window, recv, rows, shared, top_k, tokens_of, handle_rank, handle_row }
    }

    /// Token `number` of this block's number.
    #[inline(always)]
    fn sent(&self, number: u32) -> Sent {
        let (peer, of_peer) = turns::work(self.window, number);
        let mut sent = Sent::NONE;
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

    /// What is told of what this warp copies on, of operation `number`, which may not have been told yet. Warp-collective.
    #[inline(always)]
    pub(in super::super) fn told<R: Row>(&self, places: &PlaceWords, number: u64) -> Ahead<R> {
        let end = self.told_end(places, number);
        let first = self.told_first(places, number);
        Ahead { ring: self.ring::<R>(), first, end, row: PhantomData }
    }

    /// What a handle says of it that is there already. Warp-collective.
    #[inline(always)]
    pub(in super::super) fn known<R: Row>(&self) -> Ahead<R> {
        let end = self.end();
        let first = (warp::index() < end).then(|| self.sent(warp::index()));
        Ahead { ring: self.ring::<R>(), first, end: Some(end), row: PhantomData }
    }

    /// The end of the block's tokens' numbers, if every peer's block has told. Warp-collective.
    #[inline(always)]
    fn told_end(&self, places: &PlaceWords, number: u64) -> Option<u32> {
        let mut all = true;
        let end = turns::end(self.window, |peer| {
            if peer == self.window.me || !self.window.is_there(peer) {
                return 0;
            }
            match places.tokens(self.window, number, peer) {
                Some(tokens) => tokens_of_block(tokens),
                None => {
                    all = false;
                    0
                }
            }
        });
        (warp::ballot(warp::ALL, !all) == 0).then_some(end)
    }

    /// This warp's first token, if it is told where all of its rows lie. Warp-collective.
    #[inline(always)]
    fn told_first(&self, places: &PlaceWords, number: u64) -> Option<Sent> {
        let (peer, nth) = turns::work(self.window, warp::index());
        let mut row = None;
        if peer.0 < self.window.peers && warp::lane() < self.top_k {
            row = places.row(self.window, number, peer, (nth, warp::lane()));
        }
        if warp::ballot(warp::ALL, row.is_none() && warp::lane() < self.top_k) != 0 {
            return None;
        }
        let row = row.unwrap_or(PlaceWords::NOWHERE);
        let rank = if row == PlaceWords::NOWHERE { -1 } else { self.window.rank().0 as i32 };
        Some(Sent { rank, row })
    }

    /// This warp's stage, if it copies on.
    #[inline(always)]
    fn ring<R: Row>(&self) -> Option<Ring<1, Loads>> {
        let memory = memory_of_warp::<R>(self.shared);
        // Behind those of the stages, since nobody knows any more in which phase these are.
        let mbarrier = Shared::<u64>::dynamic(WARPS * 8 * self.shared.stages_of_warp).at(warp::index());
        (warp::index() < self.shared.copy_warps)
            .then(|| Ring::with_loads(memory.stages, self.shared.stage_bytes, mbarrier))
    }

    /// Copies them on, with what is known of them. Warp-collective.
    #[inline(always)]
    fn copy_on<R: Row>(&self, ahead: Ahead<R>, free: &BulkAccess) {
        let Ahead { ring: Some(mut ring), first, end, .. } = ahead else { return };
        let end = match end {
            Some(end) => end,
            None => self.end(),
        };
        let (window, bytes) = (self.window, R::bytes(self.rows));
        let rows = window.own(self.recv.x).rows(bytes);
        // Which one is looked for next: of one that nobody has told, the first.
        let (mut next, mut number) = match first {
            Some(first) => (first, warp::index() + self.shared.copy_warps),
            None => (Sent::NONE, warp::index()),
        };
        loop {
            let Sent { rank, row } = next;
            let here = warp::ballot(warp::ALL, rank == window.rank().0 as i32);
            // It came to the first, if to any.
            let (lane, others) = (here.trailing_zeros(), here & here.wrapping_sub(1));
            let came = warp::shuffle(warp::ALL, row, lane % warp::LANES);
            let loading = if others == 0 { Err(ring) } else { Ok(ring.load(rows.row(came).as_global(), bytes)) };
            let mut scales = [0; 4];
            if R::SCALES && others != 0 {
                scales = self.scales(came, warp::lane());
            }
            // The next one's handle, which comes over the link, is on its way while this one's row is.
            let is_last = number >= end;
            if !is_last {
                next = self.sent(number);
                number += self.shared.copy_warps;
            }
            ring = match loading {
                Ok(loading) => {
                    let source = loading.wait();
                    if others >> warp::lane() & 1 != 0 {
                        source.store(free, 0, rows.row(row), bytes);
                    }
                    if R::SCALES {
                        self.copy_scales((came, scales), row, others);
                    }
                    source.send()
                }
                Err(ring) => ring,
            };
            if is_last {
                break;
            }
        }
    }

    /// The end of the block's tokens' numbers. Warp-collective.
    #[inline(always)]
    fn end(&self) -> u32 {
        turns::end(self.window, |peer| tokens_of_block(self.tokens_of(peer)))
    }

    /// Vector `vector` of the scales of row `came`, if they have so many. Per thread.
    #[inline(always)]
    fn scales(&self, came: u32, vector: u32) -> U32x4 {
        let stride = self.rows.scale_stride;
        if vector >= stride / 4 {
            return [0; 4];
        }
        self.window.own(self.recv.scales).rows(stride).row(came).cast::<U32x4>().load_weak(vector)
    }

    /// Copies the scales of row `came`, of which each lane has loaded its first vector, to the row that each of the lanes `others` has. Warp-collective.
    #[inline(always)]
    fn copy_scales(&self, (came, first): (u32, U32x4), row: u32, mut others: u32) {
        let (stride, lane) = (self.rows.scale_stride, warp::lane());
        let scales = self.window.own(self.recv.scales).rows(stride);
        while others != 0 {
            let to = scales.row(warp::shuffle(warp::ALL, row, others.trailing_zeros())).cast::<U32x4>();
            others &= others - 1;
            if lane < stride / 4 {
                to.store_weak(lane, first);
            }
            for vector in thread::strided(lane + warp::LANES, stride / 4, warp::LANES) {
                to.store_weak(vector, self.scales(came, vector));
            }
        }
    }
}

/// Tokens of this block's number on a rank that dispatches so many.
#[inline(always)]
fn tokens_of_block(tokens: u32) -> u32 {
    let chunk = Chunk::of_block(tokens);
    chunk.end - chunk.start
}
