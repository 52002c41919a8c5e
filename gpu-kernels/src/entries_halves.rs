//! The kernels of send and receive halves, beside those of [`crate::entries_rank_major`]; see [`crate::rank_major::halves`].
use epoxide_dsl::prelude::*;

#[cfg(not(target_arch = "nvptx64"))]
use crate::layout;
use crate::rank_major::halves::{self, CombineSendArgs};
use crate::rank_major::{CombineRankMajorArgs, DispatchRankMajorArgs};
use crate::row::{Brought, Copied, Quantized};
use crate::scale::{GROUP, MX_GROUP, Ue8m0};

/// Sends rows as they are.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_send_copied(args: DispatchRankMajorArgs) {
    halves::dispatch_send::<Copied>(&args);
}

/// Sends rows quantised to e4m3 with a scale for every 128 elements.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_send_quantized(args: DispatchRankMajorArgs) {
    halves::dispatch_send::<Quantized<f32>>(&args);
}

/// Sends rows quantised to e4m3 with UE8M0 scales of 128 elements.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_send_ue8m0(args: DispatchRankMajorArgs) {
    halves::dispatch_send::<Quantized<Ue8m0<GROUP>>>(&args);
}

/// Sends rows quantised to e4m3 with UE8M0 scales of 32 elements.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_send_mxfp8(args: DispatchRankMajorArgs) {
    halves::dispatch_send::<Quantized<Ue8m0<MX_GROUP>>>(&args);
}

/// Sends rows that the caller has made, with their scales.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn dispatch_send_brought(args: DispatchRankMajorArgs) {
    halves::dispatch_send::<Brought>(&args);
}

/// Receives what was sent, in whichever form. One block.
#[kernel(threads = 512, blocks_per_sm = 1)]
pub fn dispatch_receive(args: DispatchRankMajorArgs) {
    halves::dispatch_receive(&args);
}

/// Says that the experts' outputs are there. One block.
#[kernel(threads = 64)]
pub fn combine_send(args: CombineSendArgs) {
    halves::combine_send(&args);
}

/// Sums the experts' outputs.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn combine_receive(args: CombineRankMajorArgs) {
    halves::combine_receive(&args);
}

#[cfg(not(target_arch = "nvptx64"))]
const _: () = assert!(
    dispatch_send_copied.threads() == layout::THREADS
        && dispatch_send_quantized.threads() == layout::THREADS
        && dispatch_send_ue8m0.threads() == layout::THREADS
        && dispatch_send_mxfp8.threads() == layout::THREADS
        && dispatch_send_brought.threads() == layout::THREADS
        && dispatch_receive.threads() == layout::THREADS
        && combine_receive.threads() == layout::THREADS
        && combine_send.threads() >= crate::shape::MAX_RANKS
);
