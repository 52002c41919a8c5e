//! The ways in which experts' outputs come to a combine.
use half::bf16;

use crate::slice::DeviceSlice;
use crate::tensor::DeviceTensor;

/// Where the experts' outputs are: one BF16 row for each received row, in the same order.
///
/// They come there in one of four ways:
///
/// | way | from | rows | what is checked | cost |
/// |---|---|---|---|---|
/// | [`write_expert_outputs`](crate::ElasticBuffer::write_expert_outputs), then [`InPlace`](Self::InPlace) | a host slice | exactly the received ones | by the call | waits for the dispatch and for the copy |
/// | [`stage_expert_outputs`](crate::ElasticBuffer::stage_expert_outputs), then [`InPlace`](Self::InPlace) | a tensor, or a part of one | at least the received ones: it may be as large as the region, `[max_rows, hidden]` | by the call, and by the combine on the device | a copy on the device, enqueued |
/// | [`Tensor`](Self::Tensor) | the same | the same | by the combine | the same, within the combine |
/// | kernels of the caller's own at [`RecvView::expert_outputs`](crate::RecvView::expert_outputs), then [`InPlace`](Self::InPlace) | the kernels | every received one | nothing; [`Config::with_poisoned_expert_outputs`](crate::Config::with_poisoned_expert_outputs) makes a missing row NaN | none |
///
/// The first is for experts on the host, the second and third for experts that write memory of their own, the fourth saves the
/// copy. A host slice's length says how many rows there are; a tensor is often made before that is known, so it may have more, and what is
/// beyond is not read.
///
/// In [`Layout::RankMajor`](crate::Layout::RankMajor) a tensor has a row for each place, `[ranks, max_tokens, hidden]`, of which those that hold no row are not
/// read; a host slice still has the received rows, which are put in their places.
///
/// Outputs that do not depend on the dispatch may be there before it: [`lend_expert_outputs`](crate::ElasticBuffer::lend_expert_outputs) gives
/// the region early, to the caller's own kernels or to
/// [`stage_lent_expert_outputs`](crate::ElasticBuffer::stage_lent_expert_outputs). The combine is then [`InPlace`](Self::InPlace).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum ExpertOutputs<'a> {
    /// In the region that the buffer lends ([`RecvView::expert_outputs`](crate::RecvView::expert_outputs)). What the caller's own work
    /// wrote there cannot be counted: see [`ElasticBuffer::combine`](crate::ElasticBuffer::combine).
    InPlace,
    /// In a tensor of the caller's or a part of one, BF16 `[rows, hidden]` at an address that is a multiple of 16, which is copied to that
    /// region first. `(&tensor).into()` makes one.
    Tensor(DeviceSlice<'a, bf16>),
}

impl<'a> From<DeviceSlice<'a, bf16>> for ExpertOutputs<'a> {
    fn from(rows: DeviceSlice<'a, bf16>) -> Self {
        Self::Tensor(rows)
    }
}

impl<'a> From<&'a DeviceTensor<bf16>> for ExpertOutputs<'a> {
    fn from(rows: &'a DeviceTensor<bf16>) -> Self {
        Self::Tensor(rows.into())
    }
}
