//! What a buffer of a shape takes, region by region, and how dispatch divides a block's shared memory.
//!
//! The numbers are those of `epoxide-kernels`; here are the rules about them, as errors. `epoxide` allocates by them and the planner
//! counts by them, so that a plan's bytes are a buffer's.
use epoxide_kernels::layout::{DispatchShared, PrivateLayout, Span, WindowLayout};
use epoxide_kernels::shape::{Broken, ScaleLayout, Shape, WireFormat};

use crate::error::{Error, Result};

/// A named piece of a rank's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionBytes {
    /// What it holds.
    pub name: &'static str,
    /// Bytes from the start of the window or of the private memory.
    pub offset: u64,
    /// Its bytes, without the padding to the next region.
    pub bytes: u64,
    /// Whether peers write or read it.
    pub symmetric: bool,
}

impl RegionBytes {
    pub(crate) fn new(span: Span, symmetric: bool) -> Self {
        let Span { name, offset, bytes } = span;
        Self { name, offset, bytes, symmetric }
    }
}

/// The layouts of a checked shape.
#[derive(Clone, Copy, Debug)]
pub struct Layouts {
    /// The shape.
    pub shape: Shape,
    /// The window, which peers write and read.
    pub window: WindowLayout,
    /// The memory that no peer touches.
    pub private: PrivateLayout,
}

impl Layouts {
    /// Lays out the memory of a rank.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a shape that breaks a rule, and for sizes that 64 bits do not count.
    pub fn new(shape: Shape) -> Result<Self> {
        let shape = checked(shape)?;
        let too_large =
            || Error::argument("max_tokens_per_rank", shape.max_tokens, "the buffer's size must fit in 64 bits");
        let window = WindowLayout::new(&shape).ok_or_else(too_large)?;
        let private = PrivateLayout::new(&shape).ok_or_else(too_large)?;
        Ok(Self { shape, window, private })
    }

    /// All regions: those of the window, then the private ones.
    pub fn regions(&self) -> Vec<RegionBytes> {
        let window = self.window.spans().into_iter().map(|span| RegionBytes::new(span, true));
        let private = self.private.spans().into_iter().map(|span| RegionBytes::new(span, false));
        window.chain(private).collect()
    }
}

/// The shape, if it keeps every rule.
///
/// # Errors
///
/// [`Error::InvalidArgument`] with the first rule that it breaks.
pub fn checked(shape: Shape) -> Result<Shape> {
    match shape.check() {
        Ok(()) if shape.scale_layout != ScaleLayout::RowMajor && shape.scale_words() == 0 => {
            let rule = format!("rows in {:?} have no scales that could lie so", shape.format);
            Err(Error::argument("scale_layout", format!("{:?}", shape.scale_layout), rule))
        }
        Ok(()) => Ok(shape),
        Err(Broken { argument, value, rule }) => Err(Error::argument(argument, value, rule.to_string())),
    }
}

/// Divides the `available` bytes of a block's shared memory among the warps of dispatch. The shape is a checked one, but that it may have
/// more ranks.
///
/// # Errors
///
/// [`Error::InvalidArgument`] for a row that does not fit.
pub fn dispatch_shared(shape: &Shape, available: u32) -> Result<DispatchShared> {
    DispatchShared::new(shape, available).ok_or_else(|| {
        // Of fewer tokens the index would fit.
        if shape.layout.is_rank_major() && DispatchShared::new(&Shape { max_tokens: 1, ..*shape }, available).is_some() {
            let rule = format!(
                "a bit for each token of each rank and each of the {} experts of one, from which the index is made, must fit in the {available} bytes of \
                 shared memory that a block can have: rank-major rows are for few tokens",
                shape.max_local_experts()
            );
            return Error::argument("max_tokens_per_rank", shape.max_tokens, rule);
        }
        let (row, rows) = DispatchShared::stages(shape).unwrap_or((u32::MAX, 1));
        let what = match rows {
            1 => format!("a row, {row} bytes,"),
            _ => format!("{rows} rows with their scales, {row} bytes each,"),
        };
        // What lies before the rows depends on no row's size: that of the smallest shows it.
        let (argument, value, format) = match shape.format {
            WireFormat::Opaque { row_bytes, .. } => {
                ("row_bytes", row_bytes, WireFormat::Opaque { row_bytes: 16, scale_words: 0 })
            }
            format => ("hidden", shape.hidden, format),
        };
        let smallest = DispatchShared::new(&Shape { hidden: 16, format, ..*shape }, available);
        let others =
            smallest.map_or(String::new(), |shared| format!("; {} of them hold places and barriers", shared.stages));
        let rule = format!("{what} must fit in the {available} bytes of shared memory that a block can have{others}");
        Error::argument(argument, value, rule)
    })
}
