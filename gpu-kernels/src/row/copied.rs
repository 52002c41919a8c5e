//! A row as the caller gave it: loaded into the warp's stage, and copied from there to every destination.
use bulk::{Loads, Ring};
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::{Row, RowShape, WarpMemory};

/// BF16 rows as they are.
#[derive(Debug)]
pub struct Copied {
    ring: Ring<1, Loads>,
}

impl Row for Copied {
    const SCALES: bool = false;

    #[inline(always)]
    fn new(memory: WarpMemory, shape: &RowShape) -> Self {
        Self { ring: Ring::with_loads(memory.stages, shape.stage_bytes, memory.mbarrier) }
    }

    #[inline(always)]
    fn send(
        self,
        shape: &RowShape,
        x: Global<u8>,
        _copies: u32,
        to: Option<Symmetric<u8>>,
        free: &BulkAccess,
        beside: impl FnOnce(Shared<U32x4>),
    ) -> Self {
        let bytes = Self::bytes(shape);
        let loading = self.ring.load(x, bytes);
        // Little stores are on their way while the row is.
        beside(loading.data().cast());
        let source = loading.wait();
        if let Some(to) = to {
            source.store(free, 0, to, bytes);
        }
        Self { ring: source.send() }
    }

    #[inline(always)]
    fn bytes(shape: &RowShape) -> u32 {
        shape.hidden * 2
    }
}
