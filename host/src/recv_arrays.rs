//! What a dispatch brought, as typed arrays in device memory.
use crate::buffer::{Dispatched, ElasticBuffer};
use crate::config::{Layout, ScaleLayout, WireFormat};
use crate::error::Result;
use crate::view::{DType, View};

/// What a dispatch brought, as typed arrays in device memory ([`ElasticBuffer::recv_arrays`]): what [`RecvView`](crate::RecvView) has as
/// addresses.
///
/// The dispatch need not be done: what follows it on the rank's stream finds its rows there. How many they are is known on the device
/// ([`Self::row_count`]) or to who waits ([`ElasticBuffer::recv_counts`]), so arrays by row are of the most rows; [`View::rows`] cuts
/// them. Beyond the received rows is whatever was there.
///
/// In [`Layout::RankMajor`](crate::Layout::RankMajor) rows lie in fixed places, `[ranks, max_tokens]`: those with a `topk_idx` of 0 or more hold one
/// ([`Self::index`] says which), of others that is -1, and the rest is whatever was there. All work that reads any of it, on whatever stream, comes
/// before the combine.
///
/// Where such rows are [packed](crate::Config::with_packing), arrays are those of the packed rows, as of a layout by expert.
///
/// In [`Layout::Slab`](crate::Layout::Slab) and [`Packing::Slab`](crate::Packing::Slab) arrays by row have a dimension more in front: `[local experts, capacity, ..]`.
///
/// The arrays borrow the buffer: nothing that takes their meaning away, a combine or another dispatch, can be called while they are in use.
///
/// ```compile_fail,E0502
/// # use epoxide::{CombineInput, Dispatched, ElasticBuffer, RawCombineInput, Result};
/// # fn stale(buffer: &mut ElasticBuffer, handle: &Dispatched, y: &RawCombineInput) -> Result<()> {
/// let arrays = buffer.recv_arrays(handle)?;
/// unsafe { buffer.combine_raw(handle, y)? };
/// println!("{:?}", arrays.expert_outputs); // they are peers' to read by now
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecvArrays<'b> {
    /// Rows as they travelled: BF16 or e4m3 `[max_rows, hidden]`, or opaque bytes `[max_rows, row_bytes]`.
    pub x: View<'b>,
    /// f32 `[max_rows, ceil(hidden / 128)]` in FP8; u32 of four UE8M0 each, or opaque, `[max_rows, scale_words]`
    /// ([`WireFormat::scale_words`](crate::WireFormat::scale_words)); none where rows have no scales. Rows are a multiple of 16 bytes apart; or, [by column](crate::Config::with_scale_layout), a column's scales side by side and columns a multiple of 16 bytes apart.
    pub scales: Option<View<'b>>,
    /// Local expert indices i32 `[max_rows, top_k]`, -1 where the selection is another rank's, rows a multiple of 16 bytes apart. Where rows
    /// lie by expert, `[max_rows]`: each row's expert, -1 where it pads.
    pub topk_idx: View<'b>,
    /// Gate weights f32, shaped as [`Self::topk_idx`]; 0 where that is -1.
    pub topk_weights: View<'b>,
    /// u64 `[max_rows]`: source rank in the upper half, token in the lower; `u64::MAX` where a row pads.
    pub sources: View<'b>,
    /// u32 `[1]`: rows received; where they lie by expert, with what pads them.
    pub row_count: View<'b>,
    /// u32 `[ranks]`: rows from each source rank.
    pub counts_by_source: View<'b>,
    /// u32 `[local experts]`: selections of each.
    pub counts_by_expert: View<'b>,
    /// Where rows lie by expert, u32 `[local experts + 1]`: the first row of each, and the end. Where there is an [index](Self::index), the first entry
    /// of each in it, and the end. Else none.
    pub offsets: Option<View<'b>>,
    /// Where rows have fixed places, or compact ones [are indexed](crate::Config::with_expert_index), u32 `[max entries]`: the rows of each local expert, ascending, from its offset on, then `u32::MAX` up to the
    /// next one's. Else none.
    pub index: Option<View<'b>>,
    /// BF16 `[max_rows, hidden]`: where expert outputs go, a row for each received row, to be combined
    /// [in place](crate::ExpertOutputs::InPlace). It may be written until the combine.
    pub expert_outputs: View<'b>,
    /// Where weights go that the combine brings back ([in place](crate::ReturnedWeights::InPlace)), f32, shaped as [`Self::topk_idx`]; those
    /// count where that is not -1. None where the buffer has [no region](crate::Config::with_returned_weights) for them.
    pub returned_weights: Option<View<'b>>,
}

impl ElasticBuffer {
    /// What `handle`'s dispatch brings, as typed arrays for kernels of the caller's own ([`Comm::launch`](crate::Comm::launch)) and for
    /// tensors of other libraries.
    ///
    /// # Errors
    ///
    /// [`Error::StaleHandle`](crate::Error::StaleHandle), [`Error::WrongOrder`](crate::Error::WrongOrder) after its combine.
    pub fn recv_arrays(&self, handle: &Dispatched) -> Result<RecvArrays<'_>> {
        self.check_readable("recv_arrays", handle)?;
        let view = self.recv_view(handle)?;
        let (hidden, top_k) = (u64::from(self.config.hidden), u64::from(self.config.top_k));
        let (ranks, experts) = (u64::from(self.comm.size()), u64::from(self.local_experts().1));
        // Every rank has room for the slabs of the one that has most experts.
        let shape = &self.seen();
        let (rows, slabs) = match shape.layout {
            Layout::Slab { capacity } => (experts * u64::from(capacity), true),
            _ => (view.max_rows, false),
        };
        let by_row = |array: View<'static>| if slabs { array.in_slabs(experts) } else { array };
        let by_expert = shape.layout.is_by_expert();
        // A row's selections, or its one.
        let selected = |address, dtype| match by_expert {
            true => by_row(View::vector(address, dtype, rows)),
            false => View::matrix(address, dtype, [rows, top_k], view.top_k_stride.into()),
        };
        let (wire, scale) = match self.config.format {
            WireFormat::Bf16 => (DType::Bf16, DType::F32),
            WireFormat::Fp8 => (DType::E4m3, DType::F32),
            WireFormat::Fp8Ue8m0 | WireFormat::Mxfp8 => (DType::E4m3, DType::U32),
            _ => (DType::U8, DType::U32),
        };
        let (width, words) = (shape.wire_row_bytes() / wire.bytes(), u64::from(shape.scale_words()));
        let scales = (words > 0).then(|| match self.config.scale_layout {
            ScaleLayout::ColumnMajor => {
                let (of, stride) = ([shape.scale_matrix_rows(), words], view.scale_column_stride);
                let columns = View::columns(view.scale_columns, scale, of, stride);
                if slabs { columns.stacked(experts, words * stride) } else { columns }
            }
            _ => by_row(View::matrix(view.scales, scale, [rows, words], view.scale_stride.into())),
        });
        // One after another, as `RecvView::counts` says.
        let counts = |first: u64, len| View::vector(view.counts + first * DType::U32.bytes(), DType::U32, len);
        Ok(RecvArrays {
            x: by_row(View::matrix(view.x, wire, [rows, width], width)),
            scales,
            topk_idx: selected(view.topk_idx, DType::I32),
            topk_weights: selected(view.topk_weights, DType::F32),
            sources: by_row(View::vector(view.sources, DType::U64, rows)),
            row_count: counts(0, 1),
            counts_by_source: counts(1, ranks),
            counts_by_expert: counts(1 + ranks, experts),
            offsets: if by_expert {
                Some(counts(1 + ranks + experts, experts + 1))
            } else {
                (view.index != 0).then(|| View::vector(view.index_offsets, DType::U32, experts + 1))
            },
            index: (view.index != 0).then(|| View::vector(view.index, DType::U32, shape.index_entries())),
            expert_outputs: by_row(View::matrix(view.expert_outputs, DType::Bf16, [rows, hidden], hidden)),
            returned_weights: shape.returned_weights.then(|| selected(view.returned_weights, DType::F32)),
        })
    }
}
