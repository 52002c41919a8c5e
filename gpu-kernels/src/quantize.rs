//! Quantises BF16 rows to e4m3 with one f32 scale for every 128 elements of a row.
//!
//! For a group with largest magnitude `amax` (at least 1e-4): `q = round_e4m3(x * (448 / amax))`, ties to even, saturating,
//! the quotient rounded to nearest; `scale = amax / 448`. The last group of a row may be partial.
//!
//! There is no protocol: every thread reads its own input and writes its own output.
use epoxide_dsl::prelude::*;

/// Elements that share a scale.
pub const GROUP: u32 = 128;
/// The smallest `amax`.
pub const AMAX_MIN: f32 = 1e-4;

/// Arguments of [`quantize`]. `x` and `q` are multiples of 16 bytes; nothing overlaps.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct QuantizeArgs {
    /// Input, BF16 `[rows, hidden]`.
    pub x: Global<Bf16>,
    /// Output, e4m3 `[rows, hidden]`.
    pub q: Global<E4m3>,
    /// Output, f32 `[rows, scale_stride]`, of which `ceil(hidden / 128)` of each row are written.
    pub scales: Global<f32>,
    /// Rows.
    pub rows: u64,
    /// Elements of a row, a multiple of 8.
    pub hidden: u32,
    /// f32 from one row's scales to the next's.
    pub scale_stride: u32,
}

/// Eight BF16 numbers as f32.
#[inline(always)]
pub fn widen(v: U32x4) -> [f32; 8] {
    let mut out = [0.0; 8];
    unroll!(I in 4 => {
        out[2 * I] = f32::from_bits(v[I] << 16);
        out[2 * I + 1] = f32::from_bits(v[I] & 0xffff_0000);
    });
    out
}

/// The largest magnitude among the 128 numbers that 16 neighbouring lanes hold, 8 each; at least [`AMAX_MIN`].
/// Warp-collective.
#[inline(always)]
#[track_caller]
pub fn group_amax(v: U32x4) -> f32 {
    let x = widen(v);
    let mut amax = 0u32;
    unroll!(I in 8 => {
        // Magnitudes order like their bits.
        let magnitude = x[I].to_bits() & 0x7fff_ffff;
        if magnitude > amax {
            amax = magnitude;
        }
    });
    let amax = warp::max_in_group::<16>(f32::from_bits(amax));
    if amax < AMAX_MIN { AMAX_MIN } else { amax }
}

/// The factor that brings a group with largest magnitude `amax` to the range of e4m3.
#[inline(always)]
pub fn inverse_scale(amax: f32) -> f32 {
    E4m3::MAX / amax
}

/// The factor that brings the codes back.
#[inline(always)]
pub fn scale(amax: f32) -> f32 {
    amax / E4m3::MAX
}

/// Eight numbers as codes: one byte each, the first in the lowest.
#[inline(always)]
pub fn encode(v: U32x4, inverse: f32) -> u64 {
    let x = widen(v);
    let mut codes = 0;
    unroll!(J in 4 => {
        codes |= u64::from(E4m3::pair_from_f32(x[2 * J] * inverse, x[2 * J + 1] * inverse)) << (16 * J);
    });
    codes
}

/// Groups of one half-warp's turn, so that as many loads are in flight.
const UNROLL: u64 = 4;

/// Quantises `[rows, hidden]`; any grid.
#[kernel(threads = 256, blocks_per_sm = 4)]
pub fn quantize(args: QuantizeArgs) {
    let groups_per_row = args.hidden.div_ceil(GROUP);
    let groups = args.rows * u64::from(groups_per_row);
    let half = u64::from(warp::lane() / 16);
    let in_group = (warp::lane() % 16) * 8;
    let warps = u64::from(thread::grid_blocks()) * u64::from(warp::count());
    let warp = u64::from(thread::block_index()) * u64::from(warp::count()) + u64::from(warp::index());
    // Warp-uniform: all lanes take part in the shuffles of every turn.
    let mut first = warp * 2 * UNROLL;
    while first < groups {
        let mut values = [[0u32; 4]; UNROLL as usize];
        unroll!(J in 4 => {
            let (row, column, present) = place(first + 2 * J as u64 + half, groups, groups_per_row, in_group, args.hidden);
            if present {
                values[J] = args.x.cast::<U32x4>().load_weak_streaming((row * u64::from(args.hidden) + u64::from(column)) / 8);
            }
        });
        unroll!(J in 4 => {
            let group = first + 2 * J as u64 + half;
            let (row, column, present) = place(group, groups, groups_per_row, in_group, args.hidden);
            let amax = group_amax(values[J]);
            if present {
                let codes = encode(values[J], inverse_scale(amax));
                args.q.cast::<u64>().store_weak((row * u64::from(args.hidden) + u64::from(column)) / 8, codes);
                if in_group == 0 {
                    args.scales.store_weak(row * u64::from(args.scale_stride) + u64::from(column / GROUP), scale(amax));
                }
            }
        });
        first += warps * 2 * UNROLL;
    }
}

/// Row and column of this lane's eight elements of `group`, and whether they exist.
#[inline(always)]
fn place(group: u64, groups: u64, groups_per_row: u32, in_group: u32, hidden: u32) -> (u64, u32, bool) {
    let row = group.checked_div(u64::from(groups_per_row)).unwrap_or(0);
    let column = (group - row * u64::from(groups_per_row)) as u32 * GROUP + in_group;
    (row, column, group < groups && column < hidden)
}
