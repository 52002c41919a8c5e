//! What a received row is: the one list of its parts. The window's regions, what kernels take, a row's bytes and its contiguous form all
//! follow from it.
use epoxide_dsl::prelude::*;

#[cfg(not(target_arch = "nvptx64"))]
use super::span::Cursor;
use super::span::Span;
use crate::shape::Shape;

macro_rules! received_row {
    ($($(#[$doc:meta])* $part:ident: $element:ty, $name:literal, $of:ident, |$shape:ident| $bytes:expr;)*) => {
        /// How many parts a received row has.
        pub const PARTS: usize = [$($name),*].len();

        /// Where the parts of all rows lie in a window: the regions that dispatch writes at its peers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct ReceivedSpans { $($(#[$doc])* pub $part: Span,)* }

        /// [`ReceivedSpans`] as a kernel takes them.
        #[derive(Clone, Copy, Debug, KernelArg)]
        #[repr(C)]
        pub struct RecvRegions { $($(#[$doc])* pub $part: Region<$element>,)* }

        impl ReceivedSpans {
            /// Lays the parts of `rows` rows one after another; `None` if they end beyond 64 bits.
            #[cfg(not(target_arch = "nvptx64"))]
            pub(super) fn lay(at: &mut Cursor, shape: &Shape) -> Option<Self> {
                Some(Self { $($part: {
                    let $shape = shape;
                    match Of::$of {
                        Of::Rows => at.slots($name, shape.row_slots, shape.rows, $bytes)?,
                        Of::Routing => {
                            at.span($name, shape.rows.checked_mul(u64::from(shape.routing_slots))?, $bytes)?
                        }
                    }
                },)* })
            }
            /// Those of one row slot and one routing slot.
            pub const fn slot(&self, shape: &Shape, row_slot: u32, routing_slot: u32) -> Self {
                Self { $($part: match Of::$of {
                    Of::Rows => self.$part.slot(row_slot, shape.row_slots),
                    Of::Routing => self.$part.slot(routing_slot, shape.routing_slots),
                },)* }
            }
            /// All of them, in order.
            pub const fn all(&self) -> [Span; PARTS] {
                [$(self.$part),*]
            }
            /// As a kernel takes them.
            pub const fn regions(&self) -> RecvRegions {
                RecvRegions { $($part: Region::new(self.$part.offset),)* }
            }
        }

        impl Shape {
            /// What a row is made of where it is received, the row itself first: each part's name and bytes.
            pub const fn received(&self) -> [(&'static str, u64); PARTS] {
                [$(($name, { let $shape = self; $bytes })),*]
            }
        }
    };
}

/// What has slots of a part.
enum Of {
    /// It is overwritten by every dispatch into its row slot, of an old routing too.
    Rows,
    /// It belongs to a routing and is kept with it.
    Routing,
}

received_row! {
    /// `[row slots][rows]` rows on the wire.
    x: u8, "received rows", Rows, |shape| shape.wire_row_bytes();
    /// `[row slots][rows][scale_stride]` of 32 bits: f32, or what the caller brought.
    scales: u32, "received scales", Rows, |shape| shape.scale_stride() as u64 * 4;
    /// i32 `[slots][rows][top_k_stride]`: local expert indices, or -1: one of them where a row is of one selection.
    topk: i32, "received selections", Routing, |shape| shape.top_k_stride() as u64 * 4;
    /// f32 `[slots][rows][top_k_stride]`: gate weights.
    weights: f32, "received gate weights", Routing, |shape| shape.top_k_stride() as u64 * 4;
    /// u64 `[slots][rows]`: source rank in the upper half, token in the lower.
    source: u64, "received sources", Routing, |_shape| 8;
}

impl Shape {
    /// Bytes of a row with all that it brings to its receiver.
    pub fn received_bytes(&self) -> u64 {
        self.received().iter().map(|(_, bytes)| bytes).sum()
    }

    /// A row as one message: where each part begins, at multiples of 16 bytes, and the bytes of all.
    pub fn contiguous(&self) -> ([u64; PARTS], u64) {
        let mut end = 0;
        let offsets = self.received().map(|(_, bytes)| {
            let offset = end;
            end += bytes.next_multiple_of(16);
            offset
        });
        (offsets, end)
    }
}
