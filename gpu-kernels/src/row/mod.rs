//! Rows: how one is made of a token, and goes to the ranks that want it.
mod brought;
mod copied;
mod quantized;

pub use brought::Brought;
pub use copied::Copied;
pub use quantized::Quantized;

use epoxide_dsl::KernelArg;
use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

use crate::placement::quotient;

/// The rows of a rank's tokens as the caller gave them, and what they are on the wire.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct RowArgs {
    /// `[tokens]` rows, a multiple of 16 bytes each: BF16 `[hidden]`, or as they travel.
    pub x: Global<u8>,
    /// u32 `[tokens][brought_stride]`: the scales of rows that are brought as they travel; else not read.
    pub brought: Global<u32>,
    /// Words from one token's brought scales to the next's.
    pub brought_stride: u32,
    /// Brought scales of a row, at most `scale_stride`.
    pub brought_words: u32,
    /// Elements of a row in BF16.
    pub hidden: u32,
    /// Bytes of a row on the wire, without scales.
    pub row_bytes: u32,
    /// Words from one row's scales to the next's at the receiver; 0 where there are none.
    pub scale_stride: u32,
    /// Fills the struct to a multiple of 8 bytes.
    pub reserved: u32,
}

/// The memory of one warp that makes rows.
#[derive(Clone, Copy, Debug)]
pub struct WarpMemory {
    /// Its stages, one after another.
    pub stages: Shared<u8>,
    /// Bytes of a stage.
    pub stage_bytes: u32,
    /// The mbarriers of its stages.
    pub mbarriers: Shared<u64>,
}

/// A way to make rows, with the state of the warp that does. Making and sending are warp-collective.
pub trait Row: Sized {
    /// Whether a row brings scales.
    const SCALES: bool;
    /// Stages of a warp.
    const STAGES: u32;
    /// A row that is on its way.
    type Started;
    /// A piece of a row that this warp holds.
    type Piece;

    /// Makes this warp ready, once per launch.
    fn new(memory: WarpMemory) -> Self;

    /// Makes the row of `token` and copies it to where each lane says; `copies` lanes do. While the copies are under way,
    /// or the row is, `beside` writes what goes with it; it takes where the row's scales lie.
    #[inline(always)]
    fn send(
        self,
        rows: &RowArgs,
        token: u32,
        copies: u32,
        to: Option<Symmetric<u8>>,
        free: &BulkAccess,
        beside: impl FnOnce(Shared<U32x4>),
    ) -> Self {
        Self::finish(self.start_for(rows, token, || copies), rows, token, None, to, free, beside)
    }

    /// Pieces in which warps may make a row, each some of it; 1 where that gains nothing.
    #[inline(always)]
    fn pieces(_rows: &RowArgs) -> u32 {
        1
    }

    /// Vectors of a row's scales that come with one of its pieces, or with all: the first, and the first that does not.
    #[inline(always)]
    fn scale_vectors(rows: &RowArgs, _piece: Option<u32>) -> (u32, u32) {
        (0, rows.scale_stride / 4)
    }

    /// Starts with the row of `token`: it is on its way, and touches nothing that a peer sees.
    fn start(self, rows: &RowArgs, token: u32) -> Self::Started;

    /// [`Self::start`] of a row with so many copies, where that makes a difference. Warp-collective.
    #[inline(always)]
    fn start_for(self, rows: &RowArgs, token: u32, _copies: impl FnOnce() -> u32) -> Self::Started {
        self.start(rows, token)
    }

    /// [`Self::send`] of a row that was started, or of a `piece` of it; then `to` is where the row begins all the same.
    fn finish(
        started: Self::Started,
        rows: &RowArgs,
        token: u32,
        piece: Option<u32>,
        to: Option<Symmetric<u8>>,
        free: &BulkAccess,
        beside: impl FnOnce(Shared<U32x4>),
    ) -> Self;

    /// [`Self::send`] of a row that was started, or a `piece` of it, where it is found only while it is on its way where each lane copies it to: `find`
    /// says so, writes what goes with the row, and takes where its scales lie.
    fn send_started(
        started: Self::Started,
        rows: &RowArgs,
        token: u32,
        piece: Option<u32>,
        free: &BulkAccess,
        find: impl FnOnce(Shared<U32x4>) -> Option<Symmetric<u8>>,
    ) -> Self;

    /// Ends with a row that was started and goes nowhere.
    fn give_up(started: Self::Started) -> Self;

    /// Bytes of a row on the wire, without scales.
    fn bytes(rows: &RowArgs) -> u32;

    /// In how many pieces a row is held, where each may have `warps` warps.
    fn held_pieces(rows: &RowArgs, warps: u32) -> u32;

    /// Makes a piece of the row of `token`, of so many. What was held before is lost.
    fn hold(memory: WarpMemory, rows: &RowArgs, token: u32, piece: (u32, u32)) -> Self::Piece;

    /// Gives each 16 bytes of a piece to `put`, with their number in the row; the scales follow the row. `token` and `piece` are those that it was made of.
    fn each_vector(held: &Self::Piece, rows: &RowArgs, token: u32, piece: (u32, u32), put: impl Fn(u32, U32x4));
}

/// The first vectors of a piece that a warp holds in registers: of each lane.
pub struct Held([U32x4; HELD]);

const HELD: usize = 4;

/// Which of a row's `vectors` piece number `piece` of `pieces` has: the first, and the first that it has not.
#[inline(always)]
fn vectors_of(vectors: u32, (piece, pieces): (u32, u32)) -> (u32, u32) {
    let each = if pieces == 1 { vectors } else { quotient(vectors + pieces - 1, pieces).next_multiple_of(warp::LANES) };
    let (first, end) = (piece * each, (piece + 1) * each);
    (first, if vectors < end { vectors } else { end })
}

/// Most pieces of so many vectors in which a warp has something to do.
#[inline(always)]
fn most_pieces(vectors: u32, warps: u32) -> u32 {
    let most = vectors.div_ceil(warp::LANES);
    if warps == 0 {
        1
    } else if warps < most {
        warps
    } else {
        most
    }
}

impl Held {
    /// Loads the first vectors of a piece.
    #[inline(always)]
    fn load(x: Global<U32x4>, (first, end): (u32, u32)) -> Self {
        let (mut held, at) = (Self([[0; 4]; HELD]), first + warp::lane());
        unroll!(J in 4 if at + J as u32 * warp::LANES < end => {
            held.0[J] = x.load_weak_streaming(at + J as u32 * warp::LANES);
        });
        held
    }

    /// Gives those and the others to `put`.
    #[inline(always)]
    fn each(&self, x: Global<U32x4>, (first, end): (u32, u32), put: &impl Fn(u32, U32x4)) {
        let at = first + warp::lane();
        unroll!(J in 4 if at + J as u32 * warp::LANES < end => {
            put(at + J as u32 * warp::LANES, self.0[J]);
        });
        for vector in thread::strided(at + HELD as u32 * warp::LANES, end, warp::LANES) {
            put(vector, x.load_weak_streaming(vector));
        }
    }
}
