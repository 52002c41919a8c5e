//! Turns e4m3 rows with one scale for every 128 elements, or every 32, back into BF16: `round_bf16(q * scale)`.
//!
//! There is no protocol: every thread reads its own input and writes its own output.
use epoxide_dsl::prelude::*;

use crate::scale::{GROUP, MX_GROUP, Scale, Ue8m0};

/// Arguments of [`dequantize`]. `q` and `y` are multiples of 16 bytes; nothing overlaps.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct DequantizeArgs {
    /// Input, e4m3 `[rows, hidden]`.
    pub q: Global<E4m3>,
    /// Input, `[rows, scale_stride]`: words of f32, or of four UE8M0.
    pub scales: Global<u32>,
    /// Output, BF16 `[rows, hidden]`.
    pub y: Global<Bf16>,
    /// Rows.
    pub rows: u64,
    /// Elements of a row, a multiple of 8.
    pub hidden: u32,
    /// Words from one row's scales to the next's.
    pub scale_stride: u32,
}

/// Dequantises `[rows, hidden]` with f32 scales of 128; any grid.
#[kernel(threads = 256, blocks_per_sm = 4)]
pub fn dequantize(args: DequantizeArgs) {
    dequantize_rows::<f32>(&args);
}

/// Dequantises `[rows, hidden]` with UE8M0 scales of 128; any grid.
#[kernel(threads = 256, blocks_per_sm = 4)]
pub fn dequantize_ue8m0(args: DequantizeArgs) {
    dequantize_rows::<Ue8m0<GROUP>>(&args);
}

/// Dequantises `[rows, hidden]` with UE8M0 scales of 32; any grid.
#[kernel(threads = 256, blocks_per_sm = 4)]
pub fn dequantize_mxfp8(args: DequantizeArgs) {
    dequantize_rows::<Ue8m0<MX_GROUP>>(&args);
}

#[inline(always)]
fn dequantize_rows<S: Scale>(args: &DequantizeArgs) {
    let vectors_per_row = u64::from(args.hidden / 8);
    let vectors = args.rows * vectors_per_row;
    let mut i = u64::from(thread::block_index()) * u64::from(thread::block_threads()) + u64::from(thread::index());
    let step = u64::from(thread::grid_blocks()) * u64::from(thread::block_threads());
    while i < vectors {
        let row = i.checked_div(vectors_per_row).unwrap_or(0);
        let column = (i - row * vectors_per_row) as u32 * 8;
        let codes = args.q.cast::<u64>().load_weak(i);
        let first = row * u64::from(args.scale_stride * S::IN_WORD);
        let scale = S::load(args.scales, first + u64::from(column / S::GROUP)).to_f32();
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
