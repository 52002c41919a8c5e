//! A row that the caller has made: loaded as it is into one of the warp's two stages, its scales behind it, and copied from there to every
//! destination while the next row is loaded into the other.
use bulk::{Loading, Loads, Ring};
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use super::{Row, RowArgs, WarpMemory};

/// Rows of bytes with words of scales, both as the caller brought them.
#[derive(Debug)]
pub struct Brought {
    ring: Ring<2, Loads>,
}

impl Row for Brought {
    const SCALES: bool = true;
    const STAGES: u32 = 2;
    type Started = Loading<2>;

    #[inline(always)]
    fn new(memory: WarpMemory) -> Self {
        Self { ring: Ring::with_loads(memory.stages, memory.stage_bytes, memory.mbarriers) }
    }

    #[inline(always)]
    fn start(self, rows: &RowArgs, token: u32, _piece: Option<u32>) -> Self::Started {
        let bytes = Self::bytes(rows);
        let loading = self.ring.load(rows.x.rows(bytes).row(token), bytes);
        // Behind the row, where no bulk copy reaches: ordinary accesses of this warp are all that touches them.
        bring_scales(rows, token, loading.data().at(bytes).cast());
        loading
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
        let bytes = Self::bytes(rows);
        warp::sync(warp::ALL);
        // Little stores are on their way while the row is.
        let to = find(started.data().at(bytes).cast());
        let source = started.wait();
        if let Some(to) = to {
            source.store(free, 0, to, bytes);
        }
        Self { ring: source.send() }
    }

    #[inline(always)]
    fn give_up(started: Self::Started) -> Self {
        Self { ring: started.wait().send() }
    }

    #[inline(always)]
    fn bytes(rows: &RowArgs) -> u32 {
        rows.row_bytes
    }
}

/// Loads a token's scales once, for all copies: by vectors where its row of them lies so, else by words. The padding travels too: it is
/// zero, so that a received row is a function of the row sent. Warp-collective.
#[inline(always)]
fn bring_scales(a: &RowArgs, token: u32, to: Shared<U32x4>) {
    let from = a.brought.rows(a.brought_stride).row(token);
    let by_vectors = from.address().is_multiple_of(16);
    let mut vector = warp::lane();
    while vector < a.scale_stride / 4 {
        let first = vector * 4;
        let mut scales = [0; 4];
        if by_vectors && first + 4 <= a.brought_words {
            scales = from.cast::<U32x4>().load_weak(vector);
        } else {
            unroll!(I in 4 if first + (I as u32) < a.brought_words => {
                scales[I] = from.load_weak(first + I as u32);
            });
        }
        to.store_weak(vector, scales);
        vector += warp::LANES;
    }
}
