//! A row as the caller gave it, or a piece of it: loaded into the warp's stage, and copied from there to every destination.
use bulk::{Loading, Loads, Ring};
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::{Row, RowArgs, WarpMemory, pieces, vectors};

/// BF16 rows as they are.
#[derive(Debug)]
pub struct Copied {
    ring: Ring<1, Loads>,
}

impl Row for Copied {
    const SCALES: bool = false;
    const STAGES: u32 = 1;
    type Started = Loading<1>;

    #[inline(always)]
    fn new(memory: WarpMemory) -> Self {
        Self { ring: Ring::with_loads(memory.stages, memory.stage_bytes, memory.mbarriers) }
    }

    #[inline(always)]
    fn finish(
        started: Self::Started,
        rows: &RowArgs,
        _token: u32,
        piece: Option<u32>,
        to: Option<Symmetric<u8>>,
        free: &BulkAccess,
        beside: impl FnOnce(Shared<U32x4>),
    ) -> Self {
        // Little stores are on their way while the row is.
        beside(started.data().cast());
        let source = started.wait();
        if let Some(to) = to {
            let (first, bytes) = bytes_of(rows, piece);
            source.store(free, 0, to.at(first), bytes);
        }
        Self { ring: source.send() }
    }

    #[inline(always)]
    fn pieces(rows: &RowArgs) -> u32 {
        pieces(rows)
    }

    #[inline(always)]
    fn prefetch(rows: &RowArgs, token: u32) {
        let bytes = Self::bytes(rows);
        rows.x.rows(bytes).row(token).prefetch(bytes);
    }

    #[inline(always)]
    fn start(self, rows: &RowArgs, token: u32, piece: Option<u32>) -> Self::Started {
        let (first, bytes) = bytes_of(rows, piece);
        self.ring.load(rows.x.rows(Self::bytes(rows)).row(token).at(first), bytes)
    }

    #[inline(always)]
    fn send_started(
        started: Self::Started,
        rows: &RowArgs,
        _token: u32,
        piece: Option<u32>,
        free: &BulkAccess,
        find: impl FnOnce(Shared<U32x4>) -> Option<Symmetric<u8>>,
    ) -> Self {
        let to = find(started.data().cast());
        let source = started.wait();
        if let Some(to) = to {
            let (first, bytes) = bytes_of(rows, piece);
            source.store(free, 0, to.at(first), bytes);
        }
        Self { ring: source.send() }
    }

    #[inline(always)]
    fn give_up(started: Self::Started) -> Self {
        Self { ring: started.wait().send() }
    }

    #[inline(always)]
    fn bytes(rows: &RowArgs) -> u32 {
        rows.hidden * 2
    }
}

/// The first byte of a row's piece, or of all of it, and how many it has.
#[inline(always)]
fn bytes_of(rows: &RowArgs, piece: Option<u32>) -> (u32, u32) {
    if piece.is_none() {
        return (0, Copied::bytes(rows));
    }
    let (first, end) = vectors(rows, piece);
    (first * 16, (end - first) * 16)
}
