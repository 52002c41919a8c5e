//! Turns e4m3 rows with one f32 scale for every 128 elements back into BF16: `round_bf16(q * scale)`.
//!
//! There is no protocol: every thread reads its own input and writes its own output.
use epoxide_dsl::prelude::*;

use crate::quantize::GROUP;

/// Arguments of [`dequantize`]. `q` and `y` are multiples of 16 bytes; nothing overlaps.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct DequantizeArgs {
    /// Input, e4m3 `[rows, hidden]`.
    pub q: Global<E4m3>,
    /// Input, f32 `[rows, scale_stride]`.
    pub scales: Global<f32>,
    /// Output, BF16 `[rows, hidden]`.
    pub y: Global<Bf16>,
    /// Rows.
    pub rows: u64,
    /// Elements of a row, a multiple of 8.
    pub hidden: u32,
    /// f32 from one row's scales to the next's.
    pub scale_stride: u32,
}

/// Dequantises `[rows, hidden]`; any grid.
#[kernel(threads = 256, blocks_per_sm = 4)]
pub fn dequantize(args: DequantizeArgs) {
    let vectors_per_row = u64::from(args.hidden / 8);
    let vectors = args.rows * vectors_per_row;
    let mut i = u64::from(thread::block_index()) * u64::from(thread::block_threads()) + u64::from(thread::index());
    let step = u64::from(thread::grid_blocks()) * u64::from(thread::block_threads());
    while i < vectors {
        let row = i.checked_div(vectors_per_row).unwrap_or(0);
        let column = (i - row * vectors_per_row) as u32 * 8;
        let codes = args.q.cast::<u64>().load_weak(i);
        let scale = args.scales.load_weak(row * u64::from(args.scale_stride) + u64::from(column / GROUP));
        let mut out = [0u32; 4];
        unroll!(J in 4 => {
            let low = E4m3((codes >> (16 * J)) as u8).to_f32() * scale;
            let high = E4m3((codes >> (16 * J + 8)) as u8).to_f32() * scale;
            out[J] = Bf16::pair_from_f32(low, high);
        });
        args.y.cast::<U32x4>().store_weak(i, out);
        i += step;
    }
}
