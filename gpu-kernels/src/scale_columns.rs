//! The scales of received rows by column: what a dispatch has brought row by row is laid anew, a column of all rows for each scale, in memory that no
//! peer touches.
//!
//! There is no protocol: a rank works on its own rows, behind the dispatch that brought them and before its next operation, with which peers may
//! overwrite them. After a dispatch that failed, or did not fit, there are no rows, and nothing is written.
use epoxide_dsl::prelude::*;

use crate::grid_warps;
use crate::placement::{quotient, remainder};

/// Arguments of [`lay_scale_columns`](crate::entries::lay_scale_columns).
///
/// Launch contract: `scales`, `experts` and `received` are what a dispatch brought, behind it on the stream; nothing but this kernel touches `columns`
/// meanwhile, which have room for the rows that there is room for.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct ScaleColumnsArgs {
    /// 32 bits `[rows][scale_stride]`: what the rows brought.
    pub scales: Global<u32>,
    /// i32 `[rows]`: each row's expert, negative where it pads; no address where no row pads.
    pub experts: Global<i32>,
    /// `[1]`: how many rows there are.
    pub received: Global<u32>,
    /// 32 bits `[matrices][words][column_stride]`: written: all rows' scales, or those of each slab's.
    pub columns: Global<u32>,
    /// Words from one column to the next.
    pub column_stride: u64,
    /// Rows of a slab, where each slab has a matrix; else 0.
    pub slab_rows: u32,
    /// Scales of a row.
    pub words: u32,
    /// Words from one row's scales to the next's, a multiple of 16 bytes.
    pub scale_stride: u32,
    /// 1 to write zeros for rows that pad; else nothing is written for them.
    pub zero_padding: u32,
}

/// Vectors of four scales of a row that a lane has in flight.
const VECTORS: u32 = 4;

/// What a warp lays at once: some scales of [`LANES`](warp::LANES) rows of a matrix.
#[derive(Clone, Copy)]
struct Piece {
    /// Which rows, counted over all matrices.
    tile: u32,
    /// Which scales.
    part: u32,
}

impl Piece {
    /// Number `number` of those of which a tile has `parts`.
    #[inline(always)]
    fn new(number: u32, parts: u32) -> Self {
        Self { tile: quotient(number, parts), part: remainder(number, parts) }
    }

    /// So many further on.
    #[inline(always)]
    fn plus(self, step: Self, parts: u32) -> Self {
        let (mut tile, mut part) = (self.tile + step.tile, self.part + step.part);
        if part >= parts {
            part -= parts;
            tile += 1;
        }
        Self { tile, part }
    }
}

/// Lays all scales: neighbouring warps the parts of one tile, so that what lies side by side is read and written together.
#[inline(always)]
pub(crate) fn run(a: &ScaleColumnsArgs) {
    let received = a.received.load_weak(0);
    let mut rows = received;
    if a.slab_rows != 0 {
        rows = a.slab_rows;
    }
    let tiles_of_matrix = rows.div_ceil(warp::LANES);
    let tiles = quotient(received, rows) * tiles_of_matrix;
    let parts = a.words.div_ceil(4 * VECTORS);
    let step = Piece::new(grid_warps::count(), parts);
    let mut piece = Piece::new(grid_warps::index(), parts);
    while piece.tile < tiles {
        let matrix = quotient(piece.tile, tiles_of_matrix);
        let row = (piece.tile - matrix * tiles_of_matrix) * warp::LANES + warp::lane();
        if row < rows {
            lay(a, matrix, rows, row, piece.part * VECTORS);
        }
        piece = piece.plus(step, parts);
    }
}

/// Lays [`VECTORS`] vectors, from vector `first` on, of row `row` of a matrix. Per thread: the lanes of a warp have rows side by side, so each
/// store of theirs is of whole sectors, and what a load leaves of a sector the next one takes.
#[inline(always)]
fn lay(a: &ScaleColumnsArgs, matrix: u32, rows: u32, row: u32, first: u32) {
    let came = matrix * rows + row;
    let pads = a.experts.address() != 0 && a.experts.load_weak(came) < 0;
    if pads && a.zero_padding == 0 {
        return;
    }
    let from = a.scales.rows(a.scale_stride).row(came).cast::<U32x4>();
    let mut scales = [[0; 4]; VECTORS as usize];
    unroll!(V in 4 if !pads && (first + V as u32) * 4 < a.words => {
        scales[V] = from.load_weak(first + V as u32);
    });
    let first_column = u64::from(matrix) * u64::from(a.words);
    let to = a.columns.at(first_column * a.column_stride + u64::from(row));
    unroll!(V in 4 => {
        unroll!(C in 4 if (first + V as u32) * 4 + (C as u32) < a.words => {
            let column = (first + V as u32) * 4 + C as u32;
            to.store_weak(u64::from(column) * a.column_stride, scales[V][C]);
        });
    });
}
