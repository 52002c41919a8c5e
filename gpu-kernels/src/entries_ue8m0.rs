//! The kernels of dispatches that quantise with UE8M0 scales, beside those of [`crate::entries`]: for 128 elements, and MXFP8 for 32.
use epoxide_dsl::prelude::*;

use crate::dispatch::again::{self, DispatchAgainArgs};
use crate::dispatch::again_by_expert::{self, DispatchAgainByExpertArgs};
use crate::dispatch::{self, DispatchArgs};
#[cfg(not(target_arch = "nvptx64"))]
use crate::layout;
use crate::order::{ByExpert, Compact};
use crate::row::Quantized;
use crate::scale::{GROUP, MX_GROUP, Ue8m0};

/// Rows with UE8M0 scales of 128 elements.
type OfWide = Quantized<Ue8m0<GROUP>>;
/// Rows with UE8M0 scales of 32 elements.
type OfMx = Quantized<Ue8m0<MX_GROUP>>;

/// Dispatches rows quantised to e4m3 with UE8M0 scales of 128 elements; see
/// [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_ue8m0(args: DispatchArgs) {
    dispatch::run::<OfWide, Compact>(&args);
}

/// Dispatches rows quantised to e4m3 with UE8M0 scales of 128 elements, and its counts are observed; see
/// [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_ue8m0_observed(args: DispatchArgs) {
    dispatch::run::<OfWide, Compact<true>>(&args);
}

/// Dispatches rows quantised to e4m3 with UE8M0 scales of 128 elements, to where they lie by expert; see
/// [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_ue8m0_by_expert(args: DispatchArgs) {
    dispatch::run::<OfWide, ByExpert>(&args);
}

/// Dispatches rows quantised to e4m3 with UE8M0 scales of 128 elements, to where they lie by expert, and its counts are observed; see
/// [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_ue8m0_by_expert_observed(args: DispatchArgs) {
    dispatch::run::<OfWide, ByExpert<true>>(&args);
}

/// Dispatches rows quantised with UE8M0 scales of 128 elements by an old routing; see [`crate::dispatch::again`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_again_ue8m0(args: DispatchAgainArgs) {
    again::run::<OfWide>(&args);
}

/// Dispatches rows quantised with UE8M0 scales of 128 elements by an old routing, to where they lie by expert; see
/// [`crate::dispatch::again_by_expert`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_again_ue8m0_by_expert(args: DispatchAgainByExpertArgs) {
    again_by_expert::run::<OfWide>(&args);
}

/// Dispatches rows quantised to e4m3 with UE8M0 scales of 32 elements; see
/// [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_mxfp8(args: DispatchArgs) {
    dispatch::run::<OfMx, Compact>(&args);
}

/// Dispatches rows quantised to e4m3 with UE8M0 scales of 32 elements, and its counts are observed; see
/// [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_mxfp8_observed(args: DispatchArgs) {
    dispatch::run::<OfMx, Compact<true>>(&args);
}

/// Dispatches rows quantised to e4m3 with UE8M0 scales of 32 elements, to where they lie by expert; see
/// [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_mxfp8_by_expert(args: DispatchArgs) {
    dispatch::run::<OfMx, ByExpert>(&args);
}

/// Dispatches rows quantised to e4m3 with UE8M0 scales of 32 elements, to where they lie by expert, and its counts are observed; see
/// [`crate::dispatch`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_mxfp8_by_expert_observed(args: DispatchArgs) {
    dispatch::run::<OfMx, ByExpert<true>>(&args);
}

/// Dispatches rows quantised with UE8M0 scales of 32 elements by an old routing; see [`crate::dispatch::again`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_again_mxfp8(args: DispatchAgainArgs) {
    again::run::<OfMx>(&args);
}

/// Dispatches rows quantised with UE8M0 scales of 32 elements by an old routing, to where they lie by expert; see
/// [`crate::dispatch::again_by_expert`].
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_again_mxfp8_by_expert(args: DispatchAgainByExpertArgs) {
    again_by_expert::run::<OfMx>(&args);
}

#[cfg(not(target_arch = "nvptx64"))]
const _: () = assert!(
    dispatch_ue8m0.threads() == layout::THREADS
        && dispatch_ue8m0_observed.threads() == layout::THREADS
        && dispatch_ue8m0_by_expert.threads() == layout::THREADS
        && dispatch_ue8m0_by_expert_observed.threads() == layout::THREADS
        && dispatch_again_ue8m0.threads() == layout::THREADS
        && dispatch_again_ue8m0_by_expert.threads() == layout::THREADS
        && dispatch_again_mxfp8_by_expert.threads() == layout::THREADS
        && dispatch_mxfp8.threads() == layout::THREADS
        && dispatch_mxfp8_observed.threads() == layout::THREADS
        && dispatch_mxfp8_by_expert.threads() == layout::THREADS
        && dispatch_mxfp8_by_expert_observed.threads() == layout::THREADS
        && dispatch_again_mxfp8.threads() == layout::THREADS
);
