//! Everything that a dispatch brought, on the host, and FP8 rows as numbers.
use epoxide_dsl::prelude::E4m3;
use epoxide_kernels::scale::{GROUP, MX_GROUP, Scale, Ue8m0};
use half::bf16;

use crate::buffer::{Dispatched, ElasticBuffer};
use crate::config::WireFormat;
use crate::error::{Error, Result};
use crate::handle::RecvCounts;
use crate::places::{keep, places};
use crate::tensor::{Element, filled, read_into, reserve};

/// Received rows as they travelled.
#[derive(Clone, Debug, PartialEq)]
pub enum WireRows {
    /// BF16 `[rows, hidden]`.
    Bf16(Vec<bf16>),
    /// e4m3 and scales.
    Fp8 {
        /// e4m3 bits `[rows, hidden]`.
        codes: Vec<u8>,
        /// f32 `[rows, scale_stride]`, of which `ceil(hidden / 128)` of each row are scales and the rest 0.
        scales: Vec<f32>,
        /// f32 from one row's scales to the next's.
        scale_stride: u32,
    },
    /// e4m3 and UE8M0 scales packed by four.
    Fp8Packed {
        /// e4m3 bits `[rows, hidden]`.
        codes: Vec<u8>,
        /// `[rows, scale_stride]`, of which each row's scales are bytes, the first in the lowest of the first word, and the rest 0.
        scales: Vec<u32>,
        /// Words from one row's scales to the next's.
        scale_stride: u32,
        /// Elements that share a scale: 128, or 32 in [`WireFormat::Mxfp8`].
        group: u32,
    },
    /// Bytes and words as they were brought.
    Opaque {
        /// `[rows, row_bytes]`.
        rows: Vec<u8>,
        /// `[rows, scale_stride]`, of which `scale_words` of each row are scales and the rest 0.
        scales: Vec<u32>,
        /// Words from one row's scales to the next's.
        scale_stride: u32,
    },
}

impl Default for WireRows {
    /// No rows.
    fn default() -> Self {
        Self::Bf16(Vec::new())
    }
}

impl WireRows {
    /// The rows as f32 `[rows, hidden]`: a BF16 element widened, which is exact; an e4m3 element times its scale, one product in f32.
    ///
    /// [`Quantizer::dequantize`](crate::quantize::Quantizer::dequantize) takes one step more and rounds that product to BF16, to nearest,
    /// ties to even. Who wants bit for bit what it makes rounds what this returns ([`bf16::from_f32`]).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when these are not whole rows of `hidden` elements, and for opaque rows; [`Error::HostMemory`].
    pub fn to_f32(&self, hidden: u32) -> Result<Vec<f32>> {
        let elements = match self {
            Self::Bf16(x) => x.len(),
            Self::Fp8 { codes, .. } | Self::Fp8Packed { codes, .. } => codes.len(),
            Self::Opaque { .. } => return Err(opaque()),
        };
        let row_elements = hidden as usize;
        if row_elements == 0 || !elements.is_multiple_of(row_elements) {
            let rule = format!("the {elements} received elements must be whole rows of it");
            return Err(Error::argument("hidden", hidden, rule));
        }
        let mut values = filled("rows as f32", elements, 0.0)?;
        for (row, values) in values.chunks_exact_mut(row_elements).enumerate() {
            self.row_to_f32(row, values)?;
        }
        Ok(values)
    }

    /// [`Self::to_f32`] of row number `row` into `values`, which has as many elements as a row, `hidden`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when there is no such row of so many elements, and for opaque rows.
    pub fn row_to_f32(&self, row: usize, values: &mut [f32]) -> Result<()> {
        let hidden = values.len();
        let missing = || Error::argument("row", row, format!("is one of the received rows of {hidden} elements"));
        match self {
            Self::Bf16(x) => {
                let x = part(x, row, hidden).ok_or_else(missing)?;
                values.iter_mut().zip(x).for_each(|(value, x)| *value = x.to_f32());
            }
            Self::Fp8 { codes, scales, scale_stride } => {
                let codes = part(codes, row, hidden).ok_or_else(missing)?;
                let scales = part(scales, row, *scale_stride as usize).ok_or_else(missing)?;
                let group = GROUP as usize;
                if scales.len() < hidden.div_ceil(group) {
                    return Err(missing());
                }
                for ((values, codes), scale) in values.chunks_mut(group).zip(codes.chunks(group)).zip(scales) {
                    values.iter_mut().zip(codes).for_each(|(value, code)| *value = E4m3(*code).to_f32() * scale);
                }
            }
            Self::Fp8Packed { codes, scales, scale_stride, group } => {
                let codes = part(codes, row, hidden).ok_or_else(missing)?;
                let scales = part(scales, row, *scale_stride as usize).ok_or_else(missing)?;
                let group = *group as usize;
                if group == 0 || 4 * scales.len() < hidden.div_ceil(group) {
                    return Err(missing());
                }
                let scales = scales.iter().flat_map(|word| word.to_le_bytes());
                for ((values, codes), scale) in values.chunks_mut(group).zip(codes.chunks(group)).zip(scales) {
                    let scale = Ue8m0::<GROUP>(scale).to_f32();
                    values.iter_mut().zip(codes).for_each(|(value, code)| *value = E4m3(*code).to_f32() * scale);
                }
            }
            Self::Opaque { .. } => return Err(opaque()),
        }
        Ok(())
    }
}

fn opaque() -> Error {
    Error::argument("rows", "opaque rows", "BF16 or FP8: what opaque bytes mean is the caller's")
}

/// Row number `row` of rows of `width` elements.
fn part<T>(values: &[T], row: usize, width: usize) -> Option<&[T]> {
    let start = row.checked_mul(width)?;
    values.get(start..start.checked_add(width)?)
}

/// Everything a rank received, on the host. [`Self::by_expert`] groups it by expert. The default is nothing, to be filled by
/// [`ElasticBuffer::received_into`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Received {
    /// How many rows, and whose.
    pub counts: RecvCounts,
    /// The rows, ordered by source rank, then token; in [`Layout::ExpertContiguous`](crate::Layout::ExpertContiguous) by expert first.
    pub x: WireRows,
    /// Local expert indices i32 `[rows, top_k]`, -1 where the selection is another rank's. Where rows lie by expert, `[rows]`, -1 where a row
    /// pads.
    pub topk_idx: Vec<i32>,
    /// Gate weights f32 `[rows, top_k]`, 0 where the selection is another rank's. Where rows lie by expert, `[rows]`, 0 where a row pads.
    pub topk_weights: Vec<f32>,
    /// Source rank and token of each row; `u32::MAX` both where a row pads.
    pub sources: Vec<(u32, u32)>,
}

impl ElasticBuffer {
    /// Reads everything that `handle` brought here. Waits for the stream.
    ///
    /// # Errors
    ///
    /// The fault of the dispatch; [`Error::HostMemory`]; [`Error::StaleHandle`], [`Error::WrongOrder`] after its combine.
    pub fn received(&mut self, handle: &Dispatched) -> Result<Received> {
        let mut received = Received::default();
        self.received_into(handle, &mut received)?;
        Ok(received)
    }

    /// [`Self::received`] in place of what `received` holds, in the memory that its vectors have: once they have had as many rows in the
    /// same format, nothing is allocated but the counts. After an error, what it holds is of no dispatch.
    ///
    /// # Errors
    ///
    /// As [`Self::received`].
    pub fn received_into(&mut self, handle: &Dispatched, received: &mut Received) -> Result<()> {
        self.check_readable("received", handle)?;
        received.counts = self.recv_counts(handle)?;
        let view = self.recv_view(handle)?;
        let fixed = self.seen_layout().is_rank_major();
        let rows = if fixed { view.max_rows } else { u64::from(received.counts.rows) };
        let elements = rows * u64::from(self.config.hidden);
        let comm = &self.comm;
        // SAFETY of all reads: regions of the buffer's own, with room for any number of rows that a dispatch brings, whose elements these
        // are. The handle holds its row slot and its dispatch is done, so that no peer writes them before this rank's next one there.
        received.x = match (self.config.format, std::mem::take(&mut received.x)) {
            (WireFormat::Bf16, before) => {
                let mut x = if let WireRows::Bf16(x) = before { x } else { Vec::new() };
                // SAFETY: as above.
                unsafe { read_into(comm, view.x, elements, &mut x)? };
                WireRows::Bf16(x)
            }
            (WireFormat::Fp8, before) => {
                let (mut codes, mut scales) =
                    if let WireRows::Fp8 { codes, scales, .. } = before { (codes, scales) } else { Default::default() };
                // SAFETY: as above.
                unsafe {
                    read_into(comm, view.x, elements, &mut codes)?;
                    read_into(comm, view.scales, rows * u64::from(view.scale_stride), &mut scales)?;
                }
                WireRows::Fp8 { codes, scales, scale_stride: view.scale_stride }
            }
            (WireFormat::Fp8Ue8m0 | WireFormat::Mxfp8, before) => {
                let (mut codes, mut scales) = if let WireRows::Fp8Packed { codes, scales, .. } = before {
                    (codes, scales)
                } else {
                    Default::default()
                };
                // SAFETY: as above.
                unsafe {
                    read_into(comm, view.x, elements, &mut codes)?;
                    read_into(comm, view.scales, rows * u64::from(view.scale_stride), &mut scales)?;
                }
                let group = if self.config.format == WireFormat::Mxfp8 { MX_GROUP } else { GROUP };
                WireRows::Fp8Packed { codes, scales, scale_stride: view.scale_stride, group }
            }
            (_, before) => {
                let (mut bytes, mut scales) = if let WireRows::Opaque { rows, scales, .. } = before {
                    (rows, scales)
                } else {
                    Default::default()
                };
                // SAFETY: as above.
                unsafe {
                    read_into(comm, view.x, rows * self.layouts.shape.wire_row_bytes(), &mut bytes)?;
                    read_into(comm, view.scales, rows * u64::from(view.scale_stride), &mut scales)?;
                }
                WireRows::Opaque { rows: bytes, scales, scale_stride: view.scale_stride }
            }
        };
        // Sources come first where the selections go after them.
        // SAFETY: as above; two words of 4 bytes for each of 8.
        unsafe { read_into(comm, view.sources, 2 * rows, &mut received.topk_idx)? };
        received.sources.clear();
        reserve("sources", rows, &mut received.sources)?;
        // u64 with the rank in the upper half, little-endian as everything on the device.
        let sources = received.topk_idx.chunks_exact(2).map(|word| (word[1] as u32, word[0] as u32));
        received.sources.extend(sources);
        // SAFETY: as above.
        unsafe {
            self.read_selections(view.topk_idx, rows, &mut received.topk_idx)?;
            self.read_selections(view.topk_weights, rows, &mut received.topk_weights)?;
        }
        if fixed {
            received.keep_places(&places(&received.topk_idx, self.config.top_k as usize), rows as usize);
        }
        Ok(())
    }

    /// Reads `[rows, top_k]`, and drops the padding of every row.
    ///
    /// # Safety
    ///
    /// `address` is of so many rows in the buffer's region of selections or weights, which no peer writes now.
    unsafe fn read_selections<T: Element>(&self, address: u64, rows: u64, values: &mut Vec<T>) -> Result<()> {
        let stride = self.seen().top_k_stride() as usize;
        let top_k = stride.min(self.config.top_k as usize);
        // SAFETY: rows of `stride` words each, that nobody writes now, by the caller's promise.
        unsafe { read_into(&self.comm, address, rows * stride as u64, values)? };
        let rows = rows as usize;
        // The first row is where it must be, and no row's place is behind it.
        (1..rows).for_each(|row| values.copy_within(row * stride..row * stride + top_k, row * top_k));
        values.truncate(rows * top_k);
        Ok(())
    }
}

impl Received {
    /// What lies in some places of those that were read, ascending, moved side by side: `top_k` selections, and as many of the rest as a place has.
    fn keep_places(&mut self, places: &[usize], all: usize) {
        keep(&mut self.topk_idx, places, all);
        keep(&mut self.topk_weights, places, all);
        keep(&mut self.sources, places, all);
        match &mut self.x {
            WireRows::Bf16(x) => keep(x, places, all),
            WireRows::Fp8 { codes, scales, .. } => {
                keep(codes, places, all);
                keep(scales, places, all);
            }
            WireRows::Fp8Packed { codes, scales, .. } => {
                keep(codes, places, all);
                keep(scales, places, all);
            }
            WireRows::Opaque { rows, scales, .. } => {
                keep(rows, places, all);
                keep(scales, places, all);
            }
        }
    }
}
