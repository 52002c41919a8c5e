//! Root-mean-square normalisation of BF16 rows: `y = x / sqrt(mean(x^2) + epsilon) * weight`, all of it in f32, rounded once.
//!
//! There is no protocol: one warp has one row, reads it twice, and writes it.
use epoxide_dsl::prelude::*;

/// Arguments of [`rms_norm`]. All addresses are multiples of 16; `y` may be `x`, and nothing else overlaps.
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

/// Normalises `[rows, hidden]`; any grid.
#[kernel(threads = 256, blocks_per_sm = 4)]
pub fn rms_norm(args: RmsNormArgs) {
    let (x, weight, y) = (args.x.cast::<U32x4>(), args.weight.cast::<U32x4>(), args.y.cast::<U32x4>());
    let vectors = u64::from(args.hidden / 8);
    let lane = u64::from(warp::lane());
    let warps = u64::from(thread::grid_blocks() * warp::count());
    let mut row = u64::from(thread::block_index() * warp::count() + warp::index());
    // Warp-uniform: all 32 lanes take part in the shuffles of every row.
    while row < args.rows {
        let mut sum = 0.0;
        let mut i = lane;
        while i < vectors {
            let values = widen(x.load_weak(row * vectors + i));
            unroll!(J in 8 => { sum += values[J] * values[J]; });
            i += 32;
        }
        let scale = 1.0 / sqrt(sum_of_warp(sum) / args.hidden as f32 + args.epsilon);
        let mut i = lane;
        while i < vectors {
            let values = widen(x.load_weak(row * vectors + i));
            let weights = widen(weight.load_weak(i));
            let mut out = [0; 4];
            unroll!(J in 4 => {
                let low = Bf16::from_f32(values[2 * J] * scale * weights[2 * J]);
                let high = Bf16::from_f32(values[2 * J + 1] * scale * weights[2 * J + 1]);
                out[J] = u32::from(low.0) | u32::from(high.0) << 16;
            });
            y.store_weak(row * vectors + i, out);
            i += 32;
        }
        row += warps;
    }
}

/// Eight BF16 numbers as f32.
#[inline(always)]
fn widen(v: U32x4) -> [f32; 8] {
    let mut out = [0.0; 8];
    unroll!(J in 4 => {
        out[2 * J] = f32::from_bits(v[J] << 16);
        out[2 * J + 1] = f32::from_bits(v[J] & 0xffff_0000);
    });
    out
}

/// The sum over the warp, the same bits in all lanes: neighbours first, then pairs, and so on. Warp-collective.
#[inline(always)]
#[track_caller]
fn sum_of_warp(mut sum: f32) -> f32 {
    let mut flip = 1;
    while flip < warp::LANES {
        sum += f32::from_bits(warp::shuffle_xor(warp::ALL, sum.to_bits(), flip));
        flip *= 2;
    }
    sum
}

/// An instruction that the DSL does not have: on the GPU one line of PTX (it concerns one thread alone; a collective must
/// never be inline assembly), and its equal, bit for bit, on the simulator.
#[inline(always)]
fn sqrt(x: f32) -> f32 {
    #[cfg(target_arch = "nvptx64")]
    {
        let root: f32;
        // SAFETY: a computation in registers.
        unsafe {
            core::arch::asm!("sqrt.rn.f32 {0}, {1};", out(reg32) root, in(reg32) x, options(pure, nomem, nostack, preserves_flags));
        }
        root
    }
    #[cfg(not(target_arch = "nvptx64"))]
    x.sqrt()
}
