//! The kernels of the operations: what the host launches. Those on tensors of one rank are in [`crate::quantize`],
//! [`crate::dequantize`] and [`crate::measure`].
use epoxide_dsl::prelude::*;

use crate::combine::{
    self, ByExpertWith, ByFp8, CombineArgs, CombineByExpertArgs, CombineByExpertWithArgs, CombineFp8Args,
    CombineWithArgs,
};
use crate::dispatch::again::{self, DispatchAgainArgs};
use crate::dispatch::again_by_expert::{self, DispatchAgainByExpertArgs};
use crate::dispatch::{self, DispatchArgs};
use crate::expert_index::{self, ExpertIndexArgs};
use crate::gradient::{self, WeighGradientsArgs};
#[cfg(not(target_arch = "nvptx64"))]
use crate::layout;
use crate::lend::{self, LendArgs};
use crate::order::{ByExpert, Compact};
use crate::row::{Brought, Copied, Quantized};
use crate::scale_columns::{self, ScaleColumnsArgs};
use crate::stand_in::{self, StandInArgs, WithoutMaskedArgs};

/// Dispatches rows as they are; see [`crate::dispatch`].
// Registers for two blocks on an SM: it needs no more, and ptxas takes what it is given.
#[kernel(threads = 512, blocks_per_sm = 2, cooperative)]
pub fn dispatch_copied(args: DispatchArgs) {
    dispatch::run::<Copied, Compact>(&args);
}

/// Dispatches rows quantised to e4m3 with a scale for every 128 elements; see [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_quantized(args: DispatchArgs) {
    dispatch::run::<Quantized<f32>, Compact>(&args);
}

/// Dispatches rows as they are, to where they lie by expert; see [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_copied_by_expert(args: DispatchArgs) {
    dispatch::run::<Copied, ByExpert>(&args);
}

/// Dispatches rows quantised to e4m3 with a scale for every 128 elements, to where they lie by expert; see [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_quantized_by_expert(args: DispatchArgs) {
    dispatch::run::<Quantized<f32>, ByExpert>(&args);
}

/// Dispatches rows that the caller has made, with their scales, to where they lie by expert; see [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_brought_by_expert(args: DispatchArgs) {
    dispatch::run::<Brought, ByExpert>(&args);
}

/// Dispatches rows that the caller has made, with their scales; see [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_brought(args: DispatchArgs) {
    dispatch::run::<Brought, Compact>(&args);
}

/// Dispatches rows as they are, and its counts are observed; see [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_copied_observed(args: DispatchArgs) {
    dispatch::run::<Copied, Compact<true>>(&args);
}

/// Dispatches rows as they are, to where they lie by expert, and its counts are observed; see [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_copied_by_expert_observed(args: DispatchArgs) {
    dispatch::run::<Copied, ByExpert<true>>(&args);
}

/// Dispatches rows quantised to e4m3 with a scale for every 128 elements, and its counts are observed; see [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_quantized_observed(args: DispatchArgs) {
    dispatch::run::<Quantized<f32>, Compact<true>>(&args);
}

/// Dispatches rows quantised to e4m3 with a scale for every 128 elements, to where they lie by expert, and its counts are observed; see [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_quantized_by_expert_observed(args: DispatchArgs) {
    dispatch::run::<Quantized<f32>, ByExpert<true>>(&args);
}

/// Dispatches rows that the caller has made, with their scales, and its counts are observed; see [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_brought_observed(args: DispatchArgs) {
    dispatch::run::<Brought, Compact<true>>(&args);
}

/// Dispatches rows that the caller has made, with their scales, to where they lie by expert, and its counts are observed; see [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_brought_by_expert_observed(args: DispatchArgs) {
    dispatch::run::<Brought, ByExpert<true>>(&args);
}

/// Dispatches rows as they are by an old routing; see [`crate::dispatch::again`].
#[kernel(threads = 512, blocks_per_sm = 2, cooperative)]
pub fn dispatch_again_copied(args: DispatchAgainArgs) {
    again::run::<Copied>(&args);
}

/// Dispatches rows quantised on their way by an old routing; see [`crate::dispatch::again`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_again_quantized(args: DispatchAgainArgs) {
    again::run::<Quantized<f32>>(&args);
}

/// Dispatches rows that the caller has made by an old routing; see [`crate::dispatch::again`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_again_brought(args: DispatchAgainArgs) {
    again::run::<Brought>(&args);
}

/// Dispatches rows as they are by an old routing, to where they lie by expert; see [`crate::dispatch::again_by_expert`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_again_copied_by_expert(args: DispatchAgainByExpertArgs) {
    again_by_expert::run::<Copied>(&args);
}

/// Dispatches rows quantised on their way by an old routing, to where they lie by expert; see [`crate::dispatch::again_by_expert`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_again_quantized_by_expert(args: DispatchAgainByExpertArgs) {
    again_by_expert::run::<Quantized<f32>>(&args);
}

/// Dispatches rows that the caller has made by an old routing, to where they lie by expert; see [`crate::dispatch::again_by_expert`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_again_brought_by_expert(args: DispatchAgainByExpertArgs) {
    again_by_expert::run::<Brought>(&args);
}

/// Sums the experts' outputs; see [`crate::combine`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn combine(args: CombineArgs) {
    combine::run(&args);
}

/// Sums the experts' outputs where rows lie by expert; see [`crate::combine`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn combine_by_expert(args: CombineByExpertArgs) {
    combine::run(&args);
}

/// Sums the experts' outputs, with options; see [`crate::combine`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn combine_with(args: CombineWithArgs) {
    combine::run(&args);
}

/// Sums the experts' outputs where rows lie by expert, with options; see [`crate::combine`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn combine_by_expert_with(args: CombineByExpertWithArgs) {
    combine::run(&ByExpertWith::<false>(&args));
}

/// Sums the experts' outputs where rows lie by expert, weighed by their gate weights, with options; see [`crate::combine`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn combine_by_expert_gated(args: CombineByExpertWithArgs) {
    combine::run(&ByExpertWith::<true>(&args));
}

/// Sums the experts' outputs where rows lie by expert and cross in FP8, with options; see [`crate::combine`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn combine_by_expert_fp8(args: CombineByExpertWithArgs) {
    combine::run(&ByFp8::<false>(&args));
}

/// Sums the experts' outputs where rows lie by expert and cross in FP8, weighed by their gate weights, with options; see [`crate::combine`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn combine_by_expert_fp8_gated(args: CombineByExpertWithArgs) {
    combine::run(&ByFp8::<true>(&args));
}

/// Sums the experts' outputs, which cross in FP8, with options; see [`crate::combine`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn combine_fp8(args: CombineFp8Args) {
    combine::run(&args);
}

/// Makes the gradient of a gate-weighted combine of rows that came; see [`crate::gradient`].
#[kernel(threads = 512, blocks_per_sm = 2)]
pub fn weigh_gradients(args: WeighGradientsArgs) {
    gradient::run(&args);
}

/// Lays the scales of rows that came by column; see [`crate::scale_columns`].
#[kernel(threads = 512, blocks_per_sm = 2)]
pub fn lay_scale_columns(args: ScaleColumnsArgs) {
    scale_columns::run(&args);
}

/// Makes the index by expert of compact rows that came; see [`crate::expert_index`].
#[kernel(threads = 512, blocks_per_sm = 2)]
pub fn index_rows(args: ExpertIndexArgs) {
    expert_index::run(&args);
}

/// Waits for the region of expert outputs; see [`crate::lend`]. One block.
#[kernel(threads = 64)]
pub fn lend(args: LendArgs) {
    lend::run(&args);
}

#[cfg(not(target_arch = "nvptx64"))]
const _: () = assert!(
    dispatch_copied.threads() == layout::THREADS
        && dispatch_quantized.threads() == layout::THREADS
        && dispatch_copied_by_expert.threads() == layout::THREADS
        && dispatch_quantized_by_expert.threads() == layout::THREADS
        && dispatch_brought_by_expert.threads() == layout::THREADS
        && dispatch_brought.threads() == layout::THREADS
        && dispatch_copied_observed.threads() == layout::THREADS
        && dispatch_copied_by_expert_observed.threads() == layout::THREADS
        && dispatch_quantized_observed.threads() == layout::THREADS
        && dispatch_quantized_by_expert_observed.threads() == layout::THREADS
        && dispatch_brought_observed.threads() == layout::THREADS
        && dispatch_brought_by_expert_observed.threads() == layout::THREADS
        && dispatch_again_copied.threads() == layout::THREADS
        && dispatch_again_quantized.threads() == layout::THREADS
        && dispatch_again_brought.threads() == layout::THREADS
        && dispatch_again_copied_by_expert.threads() == layout::THREADS
        && dispatch_again_quantized_by_expert.threads() == layout::THREADS
        && dispatch_again_brought_by_expert.threads() == layout::THREADS
        && combine.threads() == layout::THREADS
        && combine_by_expert.threads() == layout::THREADS
        && combine_with.threads() == layout::THREADS
        && weigh_gradients.threads() == layout::THREADS
        && lay_scale_columns.threads() == layout::THREADS
        && index_rows.threads() == layout::THREADS
        && combine_by_expert_with.threads() == layout::THREADS
        && combine_by_expert_gated.threads() == layout::THREADS
        && combine_by_expert_fp8.threads() == layout::THREADS
        && combine_by_expert_fp8_gated.threads() == layout::THREADS
        && combine_fp8.threads() == layout::THREADS
);
/// Writes the words of ranks that are gone; see [`crate::stand_in`]. As many blocks as the operation behind it.
#[kernel(threads = 256)]
pub fn stand_in(args: StandInArgs) {
    stand_in::run(&args);
}

/// Copies selections without those of ranks that are gone; see [`crate::stand_in`].
#[kernel(threads = 256)]
pub fn without_masked(args: WithoutMaskedArgs) {
    stand_in::copy(&args);
}

#[cfg(not(target_arch = "nvptx64"))]
const _: () = assert!(lend.threads() >= crate::shape::MAX_RANKS && layout::THREADS >= crate::shape::MAX_RANKS);
