//! Root-mean-square normalisation of BF16 rows: `y = x / sqrt(mean(x^2) + epsilon) * weight`, all of it in f32, rounded once.
//!
//! There is no protocol with other blocks: one block has one row at a time, which it reads once and keeps in shared memory between the
//! sum of the squares and the scaling.
use epoxide_dsl::prelude::*;

/// Arguments of [`rms_norm`]. All addresses are multiples of 16; `y` may be `x`, and nothing else overlaps. The launch gives each
/// block [`shared_bytes`] of shared memory.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct RmsNormArgs {
    /// Input, BF16 `[rows, hidden]`.
    pub x: Global<Bf16>,
    /// Input, BF16 `[hidden]`.
    pub weight: Global<Bf16>,
    /// Output, BF16 `[rows, hidden]`.
    pub y: Global<Bf16>,
    /// Rows.
    pub rows: u64,
    /// Elements of a row, a multiple of 8, at least 8.
    pub hidden: u32,
    /// Keeps the root away from 0.
    pub epsilon: f32,
}

/// What a block keeps in shared memory: described once, for the kernel and for its launch.
struct Scratch {
    /// The row, 8 elements to a vector.
    row: SharedArray<U32x4>,
    /// What the block's threads add up through.
    sums: SharedArray<f32>,
    bytes: u32,
}

#[inline(always)]
const fn scratch(hidden: u32) -> Scratch {
    let mut layout = SharedLayout::new();
    Scratch { row: layout.array(hidden / 8), sums: layout.array(block::REDUCTION_WORDS), bytes: layout.bytes() }
}

/// Bytes of shared memory that a block needs for rows of `hidden` elements.
pub const fn shared_bytes(hidden: u32) -> u32 {
    scratch(hidden).bytes
}

/// Normalises `[rows, hidden]`; any grid.
#[kernel(threads = 256, blocks_per_sm = 4)]
pub fn rms_norm(args: RmsNormArgs) {
    let (x, weight, y) = (args.x.cast::<U32x4>(), args.weight.cast::<U32x4>(), args.y.cast::<U32x4>());
    let vectors = args.hidden / 8;
    let (x, y) = (x.rows(vectors), y.rows(vectors));
    let scratch = scratch(args.hidden);
    let (kept, sums) = (scratch.row.address(), scratch.sums.address());
    let mut row = u64::from(thread::block_index());
    // Uniform in the block: all its threads take part in the sum of every row.
    while row < args.rows {
        let mut sum = 0.0;
        let mut i = thread::index();
        while i < vectors {
            let vector = x.row(row).load_weak(i);
            // Each thread reads again what it wrote itself: nobody waits for it.
            kept.store_weak(i, vector);
            let values = widen(vector);
            unroll!(J in 8 => { sum = math::fma(values[J], values[J], sum); });
            i += thread::block_threads();
        }
        let sum = block::sum_f32(sum, sums).get();
        let scale = math::rsqrt(sum / args.hidden as f32 + args.epsilon);
        let mut i = thread::index();
        while i < vectors {
            let values = widen(kept.load_weak(i));
            let weights = widen(weight.load_weak(i));
            let mut out = [0; 4];
            unroll!(J in 4 => {
                let low = values[2 * J] * scale * weights[2 * J];
                let high = values[2 * J + 1] * scale * weights[2 * J + 1];
                out[J] = Bf16::pair_from_f32(low, high);
            });
            y.row(row).store_weak(i, out);
            i += thread::block_threads();
        }
        row += u64::from(thread::grid_blocks());
    }
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
