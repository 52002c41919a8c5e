//! Quantises BF16 rows to e4m3 with one scale for every 128 elements of a row, or every 32: f32, or powers of two ([`Scale`]).
//!
//! For a group with largest magnitude `amax` (at least 1e-4): `q = round_e4m3(x * (448 / amax))`, ties to even, saturating,
//! the quotient rounded to nearest; `scale = amax / 448`. With a power of two for a scale, `q = round_e4m3(x / scale)`. The last group of a row may be
//! partial.
//!
//! There is no protocol: every thread reads its own input and writes its own output.
use epoxide_dsl::prelude::*;

use crate::placement::quotient;
use crate::scale::{GROUP, MX_GROUP, Scale, Ue8m0};

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
    /// Output, `[rows, scale_stride]`, of which what a row's scales take is written: words of f32, or of four UE8M0.
    pub scales: Global<u32>,
    /// Rows.
    pub rows: u64,
    /// Elements of a row, a multiple of 8.
    pub hidden: u32,
    /// Words from one row's scales to the next's.
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

/// Quantises `N` vectors (4 or 8) of every lane, the lanes' side by side: they are a group for every [`Scale::GROUP`] elements. Returns each
/// vector's codes, one byte each, the first in the lowest of the first word, and the scales of the groups that [`scale_group`] names, of which there
/// may be two. Warp-collective.
#[inline(always)]
pub fn quantize_vectors<const N: usize, S: Scale>(vectors: &[U32x4; N]) -> ([[u32; 2]; N], [S; 2]) {
    if S::GROUP == MX_GROUP { quantize_mx_vectors(vectors) } else { quantize_wide_vectors(vectors) }
}

/// [`quantize_vectors`] in groups of 128, which are half a vector of the warp: vector `j` of the lower 16 lanes is group `2 * j`, of the upper 16
/// group `2 * j + 1`.
#[inline(always)]
fn quantize_wide_vectors<const N: usize, S: Scale>(vectors: &[U32x4; N]) -> ([[u32; 2]; N], [S; 2]) {
    let (inverse, scale) = S::new(largest_of_groups(vectors));
    let inverse = inverse.to_bits();
    let mut codes = [[0; 2]; N];
    unroll!(J in 8 if J < N => {
        // From a lane of the same half that has divided for vector J.
        let from = (warp::lane() & 16) + J as u32 * lanes_of_vector::<N>();
        codes[J] = encode(vectors[J], f32::from_bits(warp::shuffle(warp::ALL, inverse, from)));
    });
    (codes, [scale; 2])
}

/// [`quantize_vectors`] in groups of 32, which are four lanes of a vector: of each four vectors, every lane divides for one of its group's.
#[inline(always)]
fn quantize_mx_vectors<const N: usize, S: Scale>(vectors: &[U32x4; N]) -> ([[u32; 2]; N], [S; 2]) {
    let mut codes = [[0; 2]; N];
    let mut scales = [S::nothing(); 2];
    unroll!(F in 2 if 4 * F < N => {
        let four = [vectors[4 * F], vectors[4 * F + 1], vectors[4 * F + 2], vectors[4 * F + 3]];
        let (inverse, scale) = S::new(largest_of_mx_groups(&four));
        scales[F] = scale;
        unroll!(J in 4 => {
            let from = (warp::lane() & !3) + J as u32;
            codes[4 * F + J] = encode(four[J], f32::from_bits(warp::shuffle(warp::ALL, inverse.to_bits(), from)));
        });
    });
    (codes, scales)
}

/// The group, of those that [`quantize_vectors`] quantises at once, whose scale is this lane's scale `number`, if it is the first such lane.
#[inline(always)]
pub fn scale_group<const N: usize, S: Scale>(number: usize) -> Option<u32> {
    let lane = warp::lane();
    if S::GROUP == MX_GROUP {
        // Of vector `lane % 4` of the four, of which each has eight groups.
        let group = (4 * number as u32 + lane % 4) * 8 + lane / 4;
        return (4 * number < N).then_some(group);
    }
    if number > 0 {
        return None;
    }
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
        largest[J] = largest_pair(vectors[J]);
    });
    unroll!(J in 4 if J < N / 2 => {
        largest[J] = halve::<8>(largest[J], largest[J + N / 2]);
    });
    unroll!(J in 2 if J < N / 4 => {
        largest[J] = halve::<4>(largest[J], largest[J + N / 4]);
    });
    // Of eight vectors two are left, of four one.
    let of_one = halve::<2>(largest[0], largest[N / 8]);
    let of_one = Bf16::larger_magnitudes(of_one, warp::shuffle_xor(warp::ALL, of_one, 1));
    largest_magnitude(of_one)
}

/// The largest magnitude, at least [`AMAX_MIN`], of the group that [`scale_group`] names of these four vectors. Warp-collective.
#[inline(always)]
fn largest_of_mx_groups(vectors: &[U32x4; 4]) -> f32 {
    let largest = vectors.map(largest_pair);
    let of_two = [halve::<2>(largest[0], largest[2]), halve::<2>(largest[1], largest[3])];
    largest_magnitude(halve::<1>(of_two[0], of_two[1]))
}

/// The largest magnitudes of a vector's even and odd elements.
#[inline(always)]
fn largest_pair(v: U32x4) -> u32 {
    Bf16::larger_magnitudes(Bf16::larger_magnitudes(v[0], v[1]), Bf16::larger_magnitudes(v[2], v[3]))
}

/// The larger of a pair of magnitudes, at least [`AMAX_MIN`].
#[inline(always)]
fn largest_magnitude(pair: u32) -> f32 {
    let pair = Bf16::larger_magnitudes(pair, pair >> 16);
    let amax = f32::from_bits(pair << 16).abs();
    // A NaN stays.
    if amax < AMAX_MIN { AMAX_MIN } else { amax }
}

/// Lanes that differ in the bit `FLIP` exchange: the lower keeps `a` and the upper `b`, each the larger of its own and the other
/// lane's. Warp-collective.
#[inline(always)]
fn halve<const FLIP: u32>(a: u32, b: u32) -> u32 {
    let upper = warp::lane() & FLIP != 0;
    let (keep, give) = if upper { (b, a) } else { (a, b) };
    Bf16::larger_magnitudes(keep, warp::shuffle_xor(warp::ALL, give, FLIP))
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
/// Elements of a row that a warp of [`quantize`] takes at once: whole groups of either kind.
pub const PIECE: u32 = VECTORS as u32 * warp::LANES * 8;
const _: () = assert!(PIECE.is_multiple_of(4 * GROUP) && PIECE.is_multiple_of(4 * MX_GROUP));

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

/// Quantises `[rows, hidden]` with f32 scales of 128; any grid.
#[kernel(threads = 256, blocks_per_sm = 4)]
pub fn quantize(args: QuantizeArgs) {
    quantize_rows::<f32>(args);
}

/// Quantises `[rows, hidden]` with UE8M0 scales of 128; any grid.
#[kernel(threads = 256, blocks_per_sm = 4)]
pub fn quantize_ue8m0(args: QuantizeArgs) {
    quantize_rows::<Ue8m0<GROUP>>(args);
}

/// Quantises `[rows, hidden]` with UE8M0 scales of 32; any grid.
#[kernel(threads = 256, blocks_per_sm = 4)]
pub fn quantize_mxfp8(args: QuantizeArgs) {
    quantize_rows::<Ue8m0<MX_GROUP>>(args);
}

#[inline(always)]
fn quantize_rows<S: Scale>(args: QuantizeArgs) {
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
        let (codes, scales) = quantize_vectors::<VECTORS, S>(&vectors);
        unroll!(J in 4 => {
            let column = column(here, J as u32);
            if column < args.hidden {
                args.q.cast::<u64>().store_weak((here.row * u64::from(args.hidden) + u64::from(column)) / 8, code_word(codes[J]));
            }
        });
        // Groups of 32 have a scale for each lane too, at four vectors.
        if let Some(group) = scale_group::<VECTORS, S>(0) {
            let group = here.piece * (PIECE / S::GROUP) + group;
            let at = here.row * u64::from(args.scale_stride * S::IN_WORD) + u64::from(group);
            if group * S::GROUP < args.hidden {
                scales[0].store(args.scales, at);
            } else if S::IN_WORD > 1 && group < S::of_row(args.hidden) {
                S::nothing().store(args.scales, at);
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
