//! The kernels of the operations where rows have fixed places, beside those of [`crate::entries`]; see [`crate::rank_major`].
use epoxide_dsl::prelude::*;

#[cfg(not(target_arch = "nvptx64"))]
use crate::layout;
use crate::rank_major::packing::{self, DispatchPackedArgs};
use crate::rank_major::{self, CombineRankMajorArgs, DispatchRankMajorArgs};
use crate::row::{Brought, Copied, Quantized};
use crate::scale::{GROUP, MX_GROUP, Ue8m0};

/// Dispatches rows as they are.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_copied_rank_major(args: DispatchRankMajorArgs) {
    rank_major::dispatch::<Copied>(&args);
}

/// Dispatches rows quantised to e4m3 with a scale for every 128 elements.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_quantized_rank_major(args: DispatchRankMajorArgs) {
    rank_major::dispatch::<Quantized<f32>>(&args);
}

/// Dispatches rows quantised to e4m3 with UE8M0 scales of 128 elements.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_ue8m0_rank_major(args: DispatchRankMajorArgs) {
    rank_major::dispatch::<Quantized<Ue8m0<GROUP>>>(&args);
}

/// Dispatches rows quantised to e4m3 with UE8M0 scales of 32 elements.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_mxfp8_rank_major(args: DispatchRankMajorArgs) {
    rank_major::dispatch::<Quantized<Ue8m0<MX_GROUP>>>(&args);
}

/// Dispatches rows that the caller has made, with their scales.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_brought_rank_major(args: DispatchRankMajorArgs) {
    rank_major::dispatch::<Brought>(&args);
}

/// Dispatches rows as they are, and lays those that come by expert.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_copied_rank_major_packed(args: DispatchPackedArgs) {
    packing::run::<Copied>(&args);
}

/// Dispatches rows quantised to e4m3 with a scale for every 128 elements, and lays those that come by expert.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_quantized_rank_major_packed(args: DispatchPackedArgs) {
    packing::run::<Quantized<f32>>(&args);
}

/// Dispatches rows quantised to e4m3 with UE8M0 scales of 128 elements, and lays those that come by expert.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_ue8m0_rank_major_packed(args: DispatchPackedArgs) {
    packing::run::<Quantized<Ue8m0<GROUP>>>(&args);
}

/// Dispatches rows quantised to e4m3 with UE8M0 scales of 32 elements, and lays those that come by expert.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_mxfp8_rank_major_packed(args: DispatchPackedArgs) {
    packing::run::<Quantized<Ue8m0<MX_GROUP>>>(&args);
}

/// Dispatches rows that the caller has made, with their scales, and lays those that come by expert.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_brought_rank_major_packed(args: DispatchPackedArgs) {
    packing::run::<Brought>(&args);
}

/// Sums the experts' outputs.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn combine_rank_major(args: CombineRankMajorArgs) {
    rank_major::combine(&args);
}

#[cfg(not(target_arch = "nvptx64"))]
const _: () = assert!(
    dispatch_copied_rank_major.threads() == layout::THREADS
        && dispatch_quantized_rank_major.threads() == layout::THREADS
        && dispatch_ue8m0_rank_major.threads() == layout::THREADS
        && dispatch_mxfp8_rank_major.threads() == layout::THREADS
        && dispatch_brought_rank_major.threads() == layout::THREADS
        && dispatch_copied_rank_major_packed.threads() == layout::THREADS
        && dispatch_quantized_rank_major_packed.threads() == layout::THREADS
        && dispatch_ue8m0_rank_major_packed.threads() == layout::THREADS
        && dispatch_mxfp8_rank_major_packed.threads() == layout::THREADS
        && dispatch_brought_rank_major_packed.threads() == layout::THREADS
        && combine_rank_major.threads() == layout::THREADS
);
