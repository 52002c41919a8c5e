//! Where everything lies: the regions of a rank's window, the rank's private memory, and a block's shared memory.
//!
//! The host allocates by these numbers and the kernels address by them. A layout is `None` for a shape that is not valid;
//! within the limits of valid ones no product overflows 64 bits, nor 32 where the kernels use 32.
#[cfg(not(target_arch = "nvptx64"))]
mod packed;
#[cfg(not(target_arch = "nvptx64"))]
mod private;
mod received;
mod shared;
mod span;
#[cfg(not(target_arch = "nvptx64"))]
mod window;

#[cfg(not(target_arch = "nvptx64"))]
pub use packed::PackedSpans;
#[cfg(not(target_arch = "nvptx64"))]
pub use private::PrivateLayout;
pub use received::{PARTS, ReceivedSpans, RecvRegions};
pub(crate) use shared::PASSES;
pub use shared::{DispatchShared, THREADS, WARPS};
pub use span::{Cursor, REGION_ALIGN, Span};
#[cfg(not(target_arch = "nvptx64"))]
pub use window::WindowLayout;

use crate::shape::Shape;
use crate::words::CountMatrix;

/// What the sizes of all regions follow from. A buffer's follow from its [`Shape`]; the planner gives others for what is not built
/// yet, and so gets the same regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// A valid shape, but that it may have more ranks, blocks or rows than the kernels take.
    pub shape: Shape,
    /// Ranks and experts, together, whose rows are counted.
    pub counters: u64,
}

impl Sizes {
    /// The sizes of a buffer; `None` if the shape is not valid.
    pub const fn new(shape: &Shape) -> Option<Self> {
        if !shape.is_valid() {
            return None;
        }
        Some(Self { shape: *shape, counters: CountMatrix::counters_for(shape.ranks as u64, shape.experts as u64) })
    }

    /// Words of a row of the count matrix; `None` if they are more than 64 bits count.
    pub const fn count_words(&self) -> Option<u64> {
        CountMatrix::row_words(self.counters)
    }
}
