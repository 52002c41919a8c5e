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
    /// Whether making a row takes a warp long, so that it pays that several of a block make it in pieces.
    const IS_LONG: bool = false;
    /// A row that is on its way.
    type Started;

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

    /// Asks for the row of `token` to be brought to the L2 cache, where that gains anything. Per thread.
    #[inline(always)]
    fn prefetch(_rows: &RowArgs, _token: u32) {}

    /// Starts with the row of `token`, or a `piece` of it: it is on its way, and touches nothing that a peer sees.
    fn start(self, rows: &RowArgs, token: u32, piece: Option<u32>) -> Self::Started;

    /// [`Self::start`] of a row with so many copies, where that makes a difference. Warp-collective.
    #[inline(always)]
    fn start_for(self, rows: &RowArgs, token: u32, _copies: impl FnOnce() -> u32) -> Self::Started {
        self.start(rows, token, None)
    }

    /// [`Self::send`] of a row that was started, or of a `piece` of it; then `to` is where the row begins all the same.
    #[inline(always)]
    fn finish(
        started: Self::Started,
        rows: &RowArgs,
        token: u32,
        piece: Option<u32>,
        to: Option<Symmetric<u8>>,
        free: &BulkAccess,
        beside: impl FnOnce(Shared<U32x4>),
    ) -> Self {
        let find = |scales| {
            beside(scales);
            to
        };
        Self::send_started(started, rows, token, piece, free, find)
    }

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
}

/// Vectors of a piece of a row, of eight elements each.
const PIECE: u32 = 8 * warp::LANES;

/// In how many pieces a row of elements may be made.
#[inline(always)]
fn pieces(rows: &RowArgs) -> u32 {
    (rows.hidden / 8).div_ceil(PIECE)
}

/// The vectors of a row, or of a piece of it: the first, and the first that is not.
#[inline(always)]
fn vectors(rows: &RowArgs, piece: Option<u32>) -> (u32, u32) {
    let all = rows.hidden / 8;
    match piece {
        None => (0, all),
        Some(piece) => {
            let (first, end) = (piece * PIECE, (piece + 1) * PIECE);
            (first, if end < all { end } else { all })
        }
    }
}
