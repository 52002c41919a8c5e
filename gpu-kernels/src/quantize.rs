//! Quantises BF16 rows to e4m3 with one f32 scale for every 128 elements of a row.
//!
//! For a group with largest magnitude `amax` (at least 1e-4): `q = round_e4m3(x * (448 / amax))`, ties to even, saturating,
//! the quotient rounded to nearest; `scale = amax / 448`. The last group of a row may be partial.
//!
//! There is no protocol: every thread reads its own input and writes its own output.
use epoxide_dsl::prelude::*;

use crate::placement::quotient;

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

/// Quantises `N` vectors (4 or 8) of every lane, which are `2 * N` groups: vector `j` of the lower 16 lanes is group `2 * j`, of the
/// upper 16 group `2 * j + 1`. Returns each vector's codes, one byte each, the first in the lowest of the first word, and the scale
/// of the group that [`scale_group`] names. Warp-collective.
#[inline(always)]
pub fn quantize_vectors<const N: usize>(vectors: &[U32x4; N]) -> ([[u32; 2]; N], f32) {
    let amax = largest_of_groups(vectors);
    let inverse = (E4m3::MAX / amax).to_bits();
    let scale = amax / E4m3::MAX;
    let mut codes = [[0; 2]; N];
    unroll!(J in 8 if J < N => {
        // From a lane of the same half that has divided for vector J.
        let from = (warp::lane() & 16) + J as u32 * lanes_of_vector::<N>();
        codes[J] = encode(vectors[J], f32::from_bits(warp::shuffle(warp::ALL, inverse, from)));
    });
    (codes, scale)
}

/// The group, of those that [`quantize_vectors`] quantises at once, whose scale this lane has, if it is the first such lane.
#[inline(always)]
pub fn scale_group<const N: usize>() -> Option<u32> {
    let lane = warp::lane();
    let group = 2 * (lane % 16 / lanes_of_vector::<N>()) + lane / 16;
    lane.is_multiple_of(lanes_of_vector::<N>()).then_some(group)
}

/// Lanes, of the 16 that hold a group, that divide for the same vector.
const fn lanes_of_vector<const N: usize>() -> u32 {
    16 / N as u32
}

/// The largest magnitude, at least [`AMAX_MIN`], of the group that [`scale_group`] names. Warp-collective.
///
/// Each lane ends with one group's and not with all: what lanes exchange halves with every step, and so do the divisions that
/// follow.
#[inline(always)]
fn largest_of_groups<const N: usize>(vectors: &[U32x4; N]) -> f32 {
    const { assert!(N == 4 || N == 8) };
    let mut largest = [0; N];
    unroll!(J in 8 if J < N => {
        let v = vectors[J];
        let low = Bf16::max_magnitudes(Bf16::magnitudes(v[0]), Bf16::magnitudes(v[1]));
        let high = Bf16::max_magnitudes(Bf16::magnitudes(v[2]), Bf16::magnitudes(v[3]));
        largest[J] = Bf16::max_magnitudes(low, high);
    });
    unroll!(J in 4 if J < N / 2 => {
        largest[J] = halve::<8>(largest[J], largest[J + N / 2]);
    });
    unroll!(J in 2 if J < N / 4 => {
        largest[J] = halve::<4>(largest[J], largest[J + N / 4]);
    });
    // Of eight vectors two are left, of four one.
    let of_one = halve::<2>(largest[0], largest[N / 8]);
    let of_one = Bf16::max_magnitudes(of_one, warp::shuffle_xor(warp::ALL, of_one, 1));
    let pair = Bf16::max_magnitudes(of_one, of_one >> 16);
    let amax = f32::from_bits(pair << 16);
    // A NaN stays.
    if amax < AMAX_MIN { AMAX_MIN } else { amax }
}

/// Lanes that differ in the bit `FLIP` exchange: the lower keeps `a` and the upper `b`, each the larger of its own and the other
/// lane's. Warp-collective.
#[inline(always)]
fn halve<const FLIP: u32>(a: u32, b: u32) -> u32 {
    let upper = warp::lane() & FLIP != 0;
    let (keep, give) = if upper { (b, a) } else { (a, b) };
    Bf16::max_magnitudes(keep, warp::shuffle_xor(warp::ALL, give, FLIP))
}

/// Eight numbers as codes: one byte each, the first in the lowest of the first word.
#[inline(always)]
fn encode(v: U32x4, inverse: f32) -> [u32; 2] {
    let x = widen(v).map(|x| x * inverse);
    [E4m3::four_from_f32([x[0], x[1], x[2], x[3]]), E4m3::four_from_f32([x[4], x[5], x[6], x[7]])]
}

/// Codes as they are stored.
#[inline(always)]
pub fn code_word(codes: [u32; 2]) -> u64 {
    u64::from(codes[0]) | u64::from(codes[1]) << 32
}

/// Vectors of eight numbers that a lane of [`quantize`] quantises at once.
const VECTORS: usize = 4;
/// Groups of its warp.
const GROUPS_AT_ONCE: u32 = 2 * VECTORS as u32;
/// Elements of a row that a warp of [`quantize`] takes at once.
pub const PIECE: u32 = GROUPS_AT_ONCE * GROUP;

/// Where a warp is: a row, and within it the first of the vectors that it quantises at once.
#[derive(Clone, Copy)]
struct Place {
    row: u64,
    /// In units of what a warp quantises at once.
    piece: u32,
}

impl Place {
    /// The place `pieces` after the first, with so many in a row.
    #[inline(always)]
    fn new(pieces: u32, in_row: u32) -> Self {
        let row = quotient(pieces, in_row);
        Self { row: u64::from(row), piece: pieces - row * in_row }
    }
}

/// Quantises `[rows, hidden]`; any grid.
#[kernel(threads = 256, blocks_per_sm = 4)]
pub fn quantize(args: QuantizeArgs) {
    let pieces = args.hidden.div_ceil(PIECE);
    let warps = thread::grid_blocks() * warp::count();
    let warp = thread::block_index() * warp::count() + warp::index();
    let mut at = Place::new(warp, pieces);
    // What a warp advances by, so that nothing is divided on the way.
    let step = Place::new(warps, pieces);
    let mut next = load(&args, at);
    // Warp-uniform: all lanes take part in the shuffles of every turn.
    while at.row < args.rows {
        let (vectors, here) = (next, at);
        at.row += step.row;
        at.piece += step.piece;
        if at.piece >= pieces {
            at.piece -= pieces;
            at.row += 1;
        }
        // The next piece is on its way while this one is worked on.
        next = load(&args, at);
        let (codes, scale) = quantize_vectors(&vectors);
        unroll!(J in 4 => {
            let column = column(here, J as u32);
            if column < args.hidden {
                args.q.cast::<u64>().store_weak((here.row * u64::from(args.hidden) + u64::from(column)) / 8, code_word(codes[J]));
            }
        });
        if let Some(group) = scale_group::<VECTORS>() {
            let group = here.piece * GROUPS_AT_ONCE + group;
            if group * GROUP < args.hidden {
                args.scales.store_weak(here.row * u64::from(args.scale_stride) + u64::from(group), scale);
            }
        }
    }
}

/// The first element of this lane's vector `vector` of a piece.
#[inline(always)]
fn column(at: Place, vector: u32) -> u32 {
    at.piece * PIECE + (vector * warp::LANES + warp::lane()) * 8
}

/// This lane's vectors of a piece; zeros where there is none.
#[inline(always)]
fn load(args: &QuantizeArgs, at: Place) -> [U32x4; VECTORS] {
    let mut vectors = [[0; 4]; VECTORS];
    unroll!(J in 4 => {
        let column = column(at, J as u32);
        if at.row < args.rows && column < args.hidden {
            vectors[J] = args.x.cast::<U32x4>().load_weak_streaming((at.row * u64::from(args.hidden) + u64::from(column)) / 8);
        }
    });
    vectors
}
