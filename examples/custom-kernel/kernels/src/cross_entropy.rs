//! The loss of a language model's logits: `log(sum(exp(logits))) - logits[target]` of each row, their sum, and the largest.
//!
//! One warp has one row, reads it twice, and writes its loss. The losses of all rows meet in two words, by atomics: the largest is the
//! same in every run; the sum, as a sum of floats in any order, is not.
use core::f32::consts::{LN_2, LOG2_E};

use epoxide_dsl::prelude::*;

/// Arguments of [`cross_entropy`]. Nothing overlaps.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct CrossEntropyArgs {
    /// Input, `[rows, classes]`.
    pub logits: Global<f32>,
    /// Input, `[rows]`: the right class of each row, less than `classes`.
    pub targets: Global<u32>,
    /// Output, `[rows]`.
    pub losses: Global<f32>,
    /// In and out, `[1]`: the sum of the losses is added to it.
    pub sum: Global<f32>,
    /// In and out, `[1]`: the bits of the largest loss, or what was there if that is larger. A loss is not negative, so it orders
    /// like its bits.
    pub largest: Global<u32>,
    /// Rows.
    pub rows: u32,
    /// Elements of a row, at least 1.
    pub classes: u32,
}

/// The losses of `[rows, classes]`; any grid.
#[kernel(threads = 128, blocks_per_sm = 8)]
pub fn cross_entropy(args: CrossEntropyArgs) {
    let mut row = thread::block_index() * warp::count() + warp::index();
    // Warp-uniform: all 32 lanes take part in the reductions of every row.
    while row < args.rows {
        let logits = args.logits.rows(args.classes).row(row);
        let mut largest = f32::NEG_INFINITY;
        let mut i = warp::lane();
        while i < args.classes {
            let x = logits.load_weak(i);
            // A NaN is larger than nothing: it comes in with the sum below.
            if x > largest {
                largest = x;
            }
            i += warp::LANES;
        }
        let largest = warp::max_f32(largest);
        let mut sum = 0.0;
        let mut i = warp::lane();
        while i < args.classes {
            sum += math::exp2((logits.load_weak(i) - largest) * LOG2_E);
            i += warp::LANES;
        }
        let log_of_sum = math::log2(warp::sum_f32(sum)) * LN_2;
        if warp::lane() == 0 {
            // The difference first: where the target is the largest, it is exactly 0, and the loss is not negative.
            let loss = log_of_sum + (largest - logits.load_weak(args.targets.load_weak(row)));
            args.losses.store_weak(row, loss);
            args.sum.fetch_add_relaxed::<Gpu>(0, loss);
            args.largest.fetch_max_relaxed::<Gpu>(0, loss.to_bits());
        }
        row += thread::grid_blocks() * warp::count();
    }
}
