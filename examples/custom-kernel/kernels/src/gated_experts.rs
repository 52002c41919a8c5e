//! A layer's experts, between a dispatch of Epoxide's and its combine: each row that was received becomes its output.
//!
//! An expert here is a gated function of each element, `silu(factor * x) * x` with a factor of its own: where a real one has its matrices.
//! A row's output is the sum over its selections of gate weight times that, in f32, in their order, rounded once.
//!
//! The kernel follows the dispatch on the rank's stream, so all it reads is there. It reads how many rows have come on the device:
//! nobody waits for that number on the host. One block has a row at a time, and blocks have nothing to say to each other.
use core::f32::consts::LOG2_E;

use epoxide_dsl::prelude::*;

/// Arguments of [`gated_experts`]: arrays of a dispatch's, `epoxide::RecvArrays`, in either layout. `x` and `y` are multiples of 16; nothing overlaps.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct GatedExpertsArgs {
    /// Rows that were received, BF16 `[rows, hidden]`.
    pub x: Global<Bf16>,
    /// Local experts `[rows, selections]`, -1 for none, `stride` apart by row.
    pub topk_idx: Global<i32>,
    /// Gate weights, in the shape of `topk_idx`.
    pub topk_weights: Global<f32>,
    /// `[1]`: how many rows there are.
    pub row_count: Global<u32>,
    /// A factor for each local expert.
    pub factors: Global<f32>,
    /// Outputs, BF16 `[rows, hidden]`.
    pub y: Global<Bf16>,
    /// Elements of a row, a multiple of 8.
    pub hidden: u32,
    /// Selections of a row.
    pub selections: u32,
    /// Words from one row's selections to the next's.
    pub stride: u32,
}

/// Writes the output of every row; any grid.
#[kernel(threads = 128, blocks_per_sm = 4)]
pub fn gated_experts(args: GatedExpertsArgs) {
    let vectors = args.hidden / 8;
    let (x, y) = (args.x.cast::<U32x4>().rows(vectors), args.y.cast::<U32x4>().rows(vectors));
    let (topk_idx, topk_weights) = (args.topk_idx.rows(args.stride), args.topk_weights.rows(args.stride));
    let rows = args.row_count.load_weak(0);
    for row in thread::strided(thread::block_index(), rows, thread::grid_blocks()) {
        for i in thread::strided(thread::index(), vectors, thread::block_threads()) {
            let values = widen(x.row(row).load_weak(i));
            let mut sums = [0.0; 8];
            let mut selection = 0;
            while selection < args.selections {
                let expert = topk_idx.row(row).load_weak(selection);
                if expert >= 0 {
                    let weight = topk_weights.row(row).load_weak(selection);
                    let factor = args.factors.load_weak(expert as u32);
                    unroll!(J in 8 => { sums[J] = math::fma(weight, gated(factor, values[J]), sums[J]); });
                }
                selection += 1;
            }
            let mut out = [0; 4];
            unroll!(J in 4 => { out[J] = Bf16::pair_from_f32(sums[2 * J], sums[2 * J + 1]); });
            y.row(row).store_weak(i, out);
        }
    }
}

/// What an expert makes of an element: `silu(factor * x) * x`.
#[inline(always)]
pub fn gated(factor: f32, x: f32) -> f32 {
    let gate = factor * x;
    gate / (1.0 + math::exp2(-gate * LOG2_E)) * x
}

/// Eight BF16 numbers as f32.
#[inline(always)]
fn widen(v: U32x4) -> [f32; 8] {
    let mut out = [0.0; 8];
    unroll!(J in 4 => {
        let [low, high] = Bf16::unpack(v[J]);
        out[2 * J] = low;
        out[2 * J + 1] = high;
    });
    out
}
