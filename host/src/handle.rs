//! What a dispatch brought: where it lies on the device, and how much.
use epoxide_kernels::bound::WORDS;

use crate::buffer::{Dispatched, ElasticBuffer};
use crate::error::Result;
use crate::tensor::read;

/// Rows that a dispatch brought to this rank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecvCounts {
    /// In all; where rows lie by expert, with what pads them: in slabs, all that they hold.
    pub rows: u32,
    /// From each source rank, `[ranks]`; in the compact layout rows lie in this order. Where rows lie by expert, those of its selections.
    pub by_source: Vec<u32>,
    /// Selections of each local expert, `[local experts]`.
    pub by_expert: Vec<u32>,
    /// Where rows lie by expert: the first row of each local expert, and the end of all, `[local experts + 1]`, multiples of the alignment.
    /// In slabs, multiples of their capacity. Else empty.
    pub offsets: Vec<u32>,
    /// Where there is an index by expert, in [`Layout::RankMajor`](crate::Layout::RankMajor) or [of compact rows](crate::Config::with_expert_index): the first
    /// entry of each local expert in it, and the end of all, `[local experts + 1]`, multiples of the alignment. Else empty.
    pub index_offsets: Vec<u32>,
    /// Selections of this rank's experts that were dropped for want of room ([`Overflow::Drop`](crate::Overflow::Drop)).
    pub dropped: u32,
    /// Selections of all ranks' experts that were dropped.
    ///
    /// Where rows are [packed](crate::Config::with_packing) a rank knows of its own experts' alone: as [`Self::dropped`].
    ///
    /// Both are 0 in counts that were told early ([`ElasticBuffer::try_counts`]).
    pub dropped_in_all: u32,
}

/// Where the received rows lie in device memory, and in what shape. Rows and scales are valid as long as their
/// [row slot](crate::Config::with_row_slots) is the dispatch's: until the next dispatch, by any routing, where there is one. What goes
/// with them is valid until another dispatch takes the handle's routing slot. In [`Layout::RankMajor`](crate::Layout::RankMajor) both are valid until the
/// combine, behind which peers may send the next rows, unless rows are kept. Where rows are [packed](crate::Config::with_packing) all is as in the layout by expert
/// that they are packed to, in memory of this rank's own, until the row slot's next dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecvView {
    /// Rows on the wire: BF16 or e4m3 `[rows, hidden]`, or opaque `[rows, row_bytes]`.
    pub x: u64,
    /// f32, words of four UE8M0, or opaque words `[rows, scale_stride]`; not used in BF16.
    pub scales: u64,
    /// Words from one row's scales to the next's, a multiple of 16 bytes; 0 in BF16.
    pub scale_stride: u32,
    /// The same by column, where the buffer [lays them so](crate::Config::with_scale_layout): `[scales, scale_column_stride]`, a column of all rows for
    /// each scale; in slabs `[local experts, scales, scale_column_stride]`, one of the slab's rows. Else 0. Rows that pad are zero where
    /// [padding is](crate::Config::with_zero_padding).
    pub scale_columns: u64,
    /// Words from one column of scales to the next, a multiple of 16 bytes: as many as there is room for rows, in slabs those of a slab. Else 0.
    pub scale_column_stride: u64,
    /// i32 `[rows, top_k_stride]`: local expert indices or -1. Where rows lie by expert, `[rows]`: each row's expert, -1 where it pads.
    pub topk_idx: u64,
    /// f32 `[rows, top_k_stride]`: gate weights or 0. Where rows lie by expert, `[rows]`.
    pub topk_weights: u64,
    /// Words from one row's selections to the next's: a multiple of 16 bytes; 1 where rows lie by expert.
    pub top_k_stride: u32,
    /// u64 `[rows]`: source rank in the upper half, token in the lower; `u64::MAX` where a row pads.
    pub sources: u64,
    /// u32 `[1 + ranks + local experts]`: rows received in all, by source rank, by local expert; in
    /// [`Layout::RankMajor`](crate::Layout::RankMajor), u32 `[local experts + 1]` behind them: where each one's part of the index begins, and the end;
    /// where rows lie by expert, u32
    /// `[local experts + 1]` behind them: where each expert's begin, and the end; where there is a bound, u32 `[8]` behind these: 1 if the
    /// dispatch did not fit and moved nothing, and then the rank and the expert (or all ones) that have too little room, the rows that were
    /// to come and the operation's number (two words); selections that were dropped, of this rank's experts and of all. (Where rows are packed in slabs, these are 0:
    /// what was dropped [`ElasticBuffer::recv_counts`] says.)
    pub counts: u64,
    /// In [`Layout::RankMajor`](crate::Layout::RankMajor), and where compact rows [are indexed](crate::Config::with_expert_index), u32: the rows of each local
    /// expert, from the entry on that its offset says, `u32::MAX` where an entry pads. Else 0.
    pub index: u64,
    /// u32 `[local experts + 1]`: where each expert's part of the index begins, and the end. 0 where there is no index. Behind a dispatch that failed, and
    /// behind a replay that did, all parts are empty.
    pub index_offsets: u64,
    /// BF16 `[max_rows, hidden]`: where expert outputs go, row by row, to be combined in place. Every received row must be written:
    /// nobody can see that one was not, but [`Config::with_poisoned_expert_outputs`](crate::Config::with_poisoned_expert_outputs)
    /// makes its sums NaN.
    pub expert_outputs: u64,
    /// f32 `[max_rows, top_k_stride]`: where weights go that the combine brings back
    /// ([`ReturnedWeights::InPlace`](crate::ReturnedWeights::InPlace)); 0 where the buffer has [no region](crate::Config::with_returned_weights)
    /// for them. Those of received rows must be written whose local expert is not -1.
    pub returned_weights: u64,
    /// Most rows.
    pub max_rows: u64,
}

impl RecvCounts {
    /// As kernels write them: in all, by source, by local expert, and offsets where there are some.
    pub(crate) fn of(words: &[u32], ranks: u32, local_experts: u32) -> Self {
        let (by_source, by_expert) = words[1..].split_at(ranks as usize);
        let (by_expert, offsets) = by_expert.split_at(local_experts as usize);
        let [by_source, by_expert, offsets] = [by_source, by_expert, offsets].map(<[u32]>::to_vec);
        Self { rows: words[0], by_source, by_expert, offsets, index_offsets: vec![], dropped: 0, dropped_in_all: 0 }
    }
}

impl ElasticBuffer {
    /// Where `handle`'s rows lie in device memory, for kernels of the caller's own on the rank's stream
    /// ([`Comm::cuda_stream`](crate::Comm::cuda_stream)).
    ///
    /// # Errors
    ///
    /// [`Error::StaleHandle`](crate::Error::StaleHandle), [`Error::WrongOrder`](crate::Error::WrongOrder) after its combine.
    pub fn recv_view(&self, handle: &Dispatched) -> Result<RecvView> {
        self.check_readable("recv_view", handle)?;
        let (w, shape) = (&self.layouts.window, &self.layouts.shape);
        if shape.is_packed() {
            return Ok(self.packed_view(handle.row_slot));
        }
        let received = w.received.slot(shape, handle.row_slot, handle.slot);
        let columns = self.layouts.private.scale_columns;
        let by_column = shape.scale_columns() > 0;
        Ok(RecvView {
            x: self.window_span(received.x),
            scales: self.window_span(received.scales),
            scale_stride: shape.scale_stride(),
            scale_columns: if by_column { self.private_row(columns, handle.row_slot) } else { 0 },
            scale_column_stride: if by_column { shape.scale_column_stride() } else { 0 },
            topk_idx: self.window_span(received.topk),
            topk_weights: self.window_span(received.weights),
            top_k_stride: shape.top_k_stride(),
            sources: self.window_span(received.source),
            counts: self.private_slot(self.layouts.private.recv_counts, handle.slot),
            index: if shape.layout.is_rank_major() || shape.expert_index > 0 {
                self.private_slot(self.layouts.private.index, handle.slot)
            } else {
                0
            },
            index_offsets: self.index_offsets(handle),
            expert_outputs: self.window_row(w.expert_out, handle.row_slot),
            returned_weights: if shape.returned_weights { self.window_row(w.returned, handle.row_slot) } else { 0 },
            max_rows: shape.rows,
        })
    }

    /// Where the offsets of the index lie: behind the counts, or by themselves.
    fn index_offsets(&self, handle: &Dispatched) -> u64 {
        let (p, shape) = (&self.layouts.private, &self.layouts.shape);
        let behind = 4 * u64::from(1 + shape.ranks + self.local_experts().1);
        match (shape.layout.is_rank_major(), shape.expert_index) {
            (true, _) => self.private_slot(p.recv_counts, handle.slot) + behind,
            (false, 0) => 0,
            (false, _) => self.private_slot(p.index_offsets, handle.slot),
        }
    }

    /// Reads how many rows `handle` brought here. Waits for the stream; [`Self::try_counts`] does not.
    ///
    /// # Errors
    ///
    /// The fault of the dispatch; [`Error::CapacityExceeded`](crate::Error::CapacityExceeded) if it did not fit, each time that it is
    /// asked; [`Error::StaleHandle`](crate::Error::StaleHandle),
    /// [`Error::WrongOrder`](crate::Error::WrongOrder) after its combine.
    pub fn recv_counts(&mut self, handle: &Dispatched) -> Result<RecvCounts> {
        self.catch_up()?;
        self.check_readable("recv_counts", handle)?;
        self.settle()?;
        let view = self.recv_view(handle)?;
        let (_, experts) = self.local_experts();
        let seen = self.seen();
        let counts = seen.received_counts(experts);
        // SAFETY: the buffer's own words, which its layout has room for, and which this rank's dispatch alone writes.
        let mut words: Vec<u32> = unsafe { read(&self.comm, view.counts, counts.into())? };
        let bound = if seen.is_bounded() { words.split_off(words.len() - WORDS as usize) } else { vec![] };
        let dropped = self.fitted(handle, &bound)?;
        self.rows.of_mut(handle.row_slot).received_rows = Some(words[0].into());
        let [dropped, dropped_in_all] = dropped;
        let mut counts = RecvCounts { dropped, dropped_in_all, ..RecvCounts::of(&words, self.comm.size(), experts) };
        if self.layouts.shape.is_packed() {
            counts.dropped = self.dropped_by_packing(handle, &counts.by_expert)?;
            counts.dropped_in_all = counts.dropped;
        } else if seen.layout.is_rank_major() {
            counts.index_offsets = std::mem::take(&mut counts.offsets);
        }
        Ok(self.indexed(counts))
    }
}
