//! A row as the caller gave it: loaded into the warp's stage, and copied from there to every destination.
use bulk::{Loading, Loads, Ring};
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::{Row, RowArgs, WarpMemory};

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
        _piece: Option<u32>,
        to: Option<Symmetric<u8>>,
        free: &BulkAccess,
        beside: impl FnOnce(Shared<U32x4>),
    ) -> Self {
        // Little stores are on their way while the row is.
        beside(started.data().cast());
        let source = started.wait();
        if let Some(to) = to {
            source.store(free, 0, to, Self::bytes(rows));
        }
        Self { ring: source.send() }
    }

    #[inline(always)]
    fn start(self, rows: &RowArgs, token: u32) -> Self::Started {
        let bytes = Self::bytes(rows);
        self.ring.load(rows.x.rows(bytes).row(token), bytes)
    }

    #[inline(always)]
    fn send_started(
        started: Self::Started,
        rows: &RowArgs,
        _token: u32,
        _piece: Option<u32>,
        free: &BulkAccess,
        find: impl FnOnce(Shared<U32x4>) -> Option<Symmetric<u8>>,
    ) -> Self {
        let to = find(started.data().cast());
        let source = started.wait();
        if let Some(to) = to {
            source.store(free, 0, to, Self::bytes(rows));
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
