//! The kernels of a rank that lays rows of fixed places by expert, and sums what experts made of them; see [`crate::rank_major::pack`] and
//! [`crate::combine::reduce`], or to combine them at once [`crate::rank_major::packed`].
use epoxide_dsl::prelude::*;

use crate::combine::reduce::{self, ReduceArgs};
#[cfg(not(target_arch = "nvptx64"))]
use crate::layout;
use crate::rank_major::lay::PackArgs;
use crate::rank_major::pack;
use crate::rank_major::packed::{self, CombinePackedArgs};

/// Lays rows by expert.
#[kernel(threads = 512, blocks_per_sm = 1)]
pub fn pack_rows(args: PackArgs) {
    pack::run::<false>(&args);
}

/// Lays rows by expert, but those that are too many for one.
#[kernel(threads = 512, blocks_per_sm = 1)]
pub fn pack_rows_dropping(args: PackArgs) {
    pack::run::<true>(&args);
}

/// Sums the outputs of packed rows.
#[kernel(threads = 512, blocks_per_sm = 1)]
pub fn reduce_rows(args: ReduceArgs) {
    reduce::run(&args);
}

/// Sums the outputs of packed rows, and what all ranks made so of a token.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn combine_rank_major_packed(args: CombinePackedArgs) {
    packed::run::<false>(&args);
}

/// Sums the weighed outputs of packed rows, and what all ranks made so of a token.
#[kernel(threads = 512, blocks_per_sm = 1, cooperative)]
pub fn combine_rank_major_packed_gated(args: CombinePackedArgs) {
    packed::run::<true>(&args);
}

#[cfg(not(target_arch = "nvptx64"))]
const _: () = assert!(
    pack_rows.threads() == layout::THREADS
        && pack_rows_dropping.threads() == layout::THREADS
        && reduce_rows.threads() == layout::THREADS
        && combine_rank_major_packed.threads() == layout::THREADS
        && combine_rank_major_packed_gated.threads() == layout::THREADS
);
