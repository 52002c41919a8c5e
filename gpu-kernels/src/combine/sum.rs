//! Sums: the rows of a token, loaded from wherever they are, all of some vectors before the first is added.
use epoxide_dsl::prelude::*;

use crate::quantize::widen;

/// Loads of 16 bytes that a thread has in flight, 128 KiB an SM: this many vectors of a few rows, or few of many rows.
pub(super) const IN_FLIGHT: usize = 16;

/// Sums the rows whose addresses the lanes of `sources` hold. Warp-collective.
#[inline(always)]
pub(super) fn sum_rows(vectors: [u32; 2], y: Global<U32x4>, sources: u32, source: u64) {
    match sources.count_ones() {
        0..=2 => sum_few::<2, 8>(vectors, y, sources, source),
        3..=4 => sum_few::<4, 4>(vectors, y, sources, source),
        5..=8 => sum_few::<8, 2>(vectors, y, sources, source),
        _ => sum_many(vectors, y, sources, source),
    }
}

/// [`sum_rows`] where two to a few are usual, in less code. Warp-collective.
#[inline(always)]
pub(super) fn sum_some_rows(vectors: [u32; 2], y: Global<U32x4>, sources: u32, source: u64) {
    match sources.count_ones() {
        0..=4 => sum_few::<4, 4>(vectors, y, sources, source),
        _ => sum_many(vectors, y, sources, source),
    }
}

/// Sums at most `ROWS` rows, `VECTORS` vectors at a time. Warp-collective.
#[inline(always)]
fn sum_few<const ROWS: usize, const VECTORS: usize>(
    [mut first, end]: [u32; 2],
    y: Global<U32x4>,
    sources: u32,
    source: u64,
) {
    let (rows, _) = Sources::<ROWS>::take(sources, source);
    let at_once = VECTORS as u32 * warp::LANES;
    while first + at_once <= end {
        let mut sums = [[0.0; 8]; VECTORS];
        rows.add::<VECTORS, true>(first, end, &mut sums);
        store::<VECTORS, true>(y, first, end, &sums);
        first += at_once;
    }
    if first < end {
        let mut sums = [[0.0; 8]; VECTORS];
        rows.add::<VECTORS, false>(first, end, &mut sums);
        store::<VECTORS, false>(y, first, end, &sums);
    }
}

/// Sums any number of rows, eight in a pass: all passes of a piece of the row, so that its sum stays in registers.
/// Warp-collective.
#[inline(always)]
fn sum_many([mut first, end]: [u32; 2], y: Global<U32x4>, sources: u32, source: u64) {
    while first < end {
        let mut sums = [[0.0; 8]; 2];
        let mut left = sources;
        while left != 0 {
            let (rows, rest) = Sources::<8>::take(left, source);
            rows.add::<2, false>(first, end, &mut sums);
            left = rest;
        }
        store::<2, false>(y, first, end, &sums);
        first += 2 * warp::LANES;
    }
}

/// The addresses of some rows, the same in all lanes.
#[derive(Clone, Copy)]
pub(super) struct Sources<const MOST: usize> {
    pub addresses: [u64; MOST],
    pub count: u32,
}

impl<const MOST: usize> Sources<MOST> {
    /// The first rows of `sources`, and the lanes that are left. Warp-collective.
    #[inline(always)]
    fn take(mut sources: u32, source: u64) -> (Self, u32) {
        let mut rows = Self { addresses: [0; MOST], count: 0 };
        unroll!(J in 8 if J < MOST && sources != 0 => {
            let from = sources.trailing_zeros();
            sources &= sources - 1;
            let low = warp::shuffle(warp::ALL, source as u32, from);
            let high = warp::shuffle(warp::ALL, (source >> 32) as u32, from);
            rows.addresses[J] = u64::from(high) << 32 | u64::from(low);
            rows.count += 1;
        });
        (rows, sources)
    }

    /// Adds this lane's vectors from `first` on, a warp apart and below `end`, of every row, in order: all loads first, then all
    /// sums. All vectors are below `end` if they are `WHOLE`.
    #[inline(always)]
    fn add<const VECTORS: usize, const WHOLE: bool>(&self, first: u32, end: u32, sums: &mut [[f32; 8]; VECTORS]) {
        let loaded = self.load::<VECTORS, WHOLE>(first, end);
        unroll!(V in 8 if V < VECTORS => {
            unroll!(J in 8 if J < MOST => {
                // A missing row adds +0, which changes no bit of a sum that began at +0.
                let x = widen(loaded[V][J]);
                unroll!(I in 8 => { sums[V][I] += x[I]; });
            });
        });
    }

    /// Loads this lane's vectors from `first` on, a warp apart and below `end`, of every row; zeros where there is none. All vectors are below
    /// `end` if they are `WHOLE`.
    #[inline(always)]
    pub(super) fn load<const VECTORS: usize, const WHOLE: bool>(
        &self,
        first: u32,
        end: u32,
    ) -> [[U32x4; MOST]; VECTORS] {
        const { assert!(MOST * VECTORS <= IN_FLIGHT) };
        let at = first + warp::lane();
        let mut loaded = [[[0u32; 4]; MOST]; VECTORS];
        unroll!(J in 8 if J < MOST && (J as u32) < self.count => {
            // SAFETY: a row of an owner's expert outputs, which its entry word says are ready and which nobody
            // writes before our done word, or a row of the caller's that the launch contract lets us read; all vectors that are loaded are
            // inside the row.
            let row = unsafe { Symmetric::<U32x4>::from_raw(self.addresses[J]) }.at(at);
            unroll!(V in 8 if V < VECTORS && (WHOLE || at + V as u32 * warp::LANES < end) => {
                loaded[V][J] = row.load_weak_streaming(V as u32 * warp::LANES);
            });
        });
        loaded
    }
}

/// Rounds the sums of this lane's vectors from `first` on and writes them.
#[inline(always)]
fn store<const VECTORS: usize, const WHOLE: bool>(y: Global<U32x4>, first: u32, end: u32, sums: &[[f32; 8]; VECTORS]) {
    let at = first + warp::lane();
    let y = y.at(at);
    unroll!(V in 8 if V < VECTORS && (WHOLE || at + V as u32 * warp::LANES < end) => {
        y.store_weak(V as u32 * warp::LANES, round(&sums[V]));
    });
}

/// Eight numbers, rounded to BF16.
#[inline(always)]
pub(super) fn round(x: &[f32; 8]) -> U32x4 {
    let mut out = [0u32; 4];
    unroll!(I in 4 => {
        out[I] = Bf16::pair_from_f32(x[2 * I], x[2 * I + 1]);
    });
    out
}
