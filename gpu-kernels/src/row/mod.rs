//! Rows: how one is made of a token, and goes to the ranks that want it.
mod copied;
mod quantized;

pub use copied::Copied;
pub use quantized::Quantized;

use epoxide_dsl::prelude::*;
use epoxide_dsl::wait::BulkAccess;

/// The numbers that a row's making follows from.
#[derive(Clone, Copy, Debug)]
pub struct RowShape {
    /// Elements of a row.
    pub hidden: u32,
    /// f32 from one row's scales to the next's; 0 where there are none.
    pub scale_stride: u32,
    /// Bytes of a stage.
    pub stage_bytes: u32,
}

/// The memory of one warp that makes rows.
#[derive(Clone, Copy, Debug)]
pub struct WarpMemory {
    /// Its stages, one after another.
    pub stages: Shared<u8>,
    /// Its mbarrier.
    pub mbarrier: Shared<u64>,
}

/// A way to make rows, with the state of the warp that does. Making and sending are warp-collective.
pub trait Row: Sized {
    /// Whether a row brings scales.
    const SCALES: bool;

    /// Makes this warp ready, once per launch.
    fn new(memory: WarpMemory, shape: &RowShape) -> Self;

    /// Makes the row of the token at `x` and copies it to where each lane says; `copies` lanes do. While the copies are under way,
    /// or the row is, `beside` writes what goes with it; it takes where the row's scales lie.
    fn send(
        self,
        shape: &RowShape,
        x: Global<u8>,
        copies: u32,
        to: Option<Symmetric<u8>>,
        free: &BulkAccess,
        beside: impl FnOnce(Shared<U32x4>),
    ) -> Self;

    /// Bytes of a row on the wire, without scales.
    fn bytes(shape: &RowShape) -> u32;
}
