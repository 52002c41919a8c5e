//! Sums: the rows of a token, loaded from wherever they are, all of some vectors before the first is added.
use epoxide_dsl::prelude::*;

use crate::quantize::widen;

/// Loads of 16 bytes that a thread has in flight, 128 KiB an SM: this many vectors of a few rows, or few of many rows.
pub(super) const IN_FLIGHT: usize = 16;

/// Sums the rows whose addresses the lanes of `rows` hold. Warp-collective.
#[inline(always)]
pub(super) fn sum_rows(vectors: [u32; 2], y: Global<U32x4>, rows: u32, source: u64) {
    match rows.count_ones() {
        0..=2 => sum_few::<2, 8>(vectors, y, rows, source),
        3..=4 => sum_few::<4, 4>(vectors, y, rows, source),
        5..=8 => sum_few::<8, 2>(vectors, y, rows, source),
        _ => sum_many::<2>(vectors, y, rows, source),
    }
}

/// [`sum_rows`] in less code: where there are rarely fewer than three. Warp-collective.
#[inline(always)]
pub(super) fn sum_some_rows(vectors: [u32; 2], y: Global<U32x4>, rows: u32, source: u64) {
    match rows.count_ones() {
        0..=4 => sum_few::<4, 4>(vectors, y, rows, source),
        _ => sum_many::<2>(vectors, y, rows, source),
    }
}

/// [`sum_rows`] where one row is rare. Warp-collective.
#[inline(always)]
pub(super) fn sum_several_rows(vectors: [u32; 2], y: Global<U32x4>, rows: u32, source: u64) {
    match rows.count_ones() {
        0..=4 => sum_few::<4, 4>(vectors, y, rows, source),
        5..=8 => sum_few::<8, 2>(vectors, y, rows, source),
        _ => sum_many::<2>(vectors, y, rows, source),
    }
}

/// Sums at most `ROWS` rows, `VECTORS` vectors at a time. Warp-collective.
#[inline(always)]
fn sum_few<const ROWS: usize, const VECTORS: usize>(
    [mut first, end]: [u32; 2],
    y: Global<U32x4>,
    mut rows: u32,
    source: u64,
) {
    let sources = Sources::<ROWS>::take(&mut rows, source);
    let at_once = VECTORS as u32 * warp::LANES;
    while first + at_once <= end {
        let mut sums = [[0.0; 8]; VECTORS];
        sources.add::<VECTORS, true>(first, end, &mut sums);
        store::<VECTORS, true>(y, first, end, &sums);
        first += at_once;
    }
    if first < end {
        let mut sums = [[0.0; 8]; VECTORS];
        sources.add::<VECTORS, false>(first, end, &mut sums);
        store::<VECTORS, false>(y, first, end, &sums);
    }
}

/// Sums any number of rows, eight in a pass: all passes of a piece of the row, so that its sum stays in registers.
/// Warp-collective.
#[inline(always)]
fn sum_many<const VECTORS: usize>([mut first, end]: [u32; 2], y: Global<U32x4>, rows: u32, source: u64) {
    while first < end {
        let mut sums = [[0.0; 8]; VECTORS];
        let mut left = rows;
        while left != 0 {
            Sources::<8>::take(&mut left, source).add::<VECTORS, false>(first, end, &mut sums);
        }
        store::<VECTORS, false>(y, first, end, &sums);
        first += VECTORS as u32 * warp::LANES;
    }
}

/// The addresses of some rows, the same in all lanes.
#[derive(Clone, Copy)]
pub(super) struct Sources<const MOST: usize> {
    pub addresses: [u64; MOST],
    pub count: u32,
}

impl<const MOST: usize> Sources<MOST> {
    /// The first of the rows whose addresses the lanes of `rows` hold, which are those that are left then. Warp-collective.
    #[inline(always)]
    pub(super) fn take(rows: &mut u32, source: u64) -> Self {
        let mut some = Self { addresses: [0; MOST], count: 0 };
        unroll!(J in 8 if J < MOST && *rows != 0 => {
            let from = rows.trailing_zeros();
            *rows &= rows.wrapping_sub(1);
            let low = warp::shuffle(warp::ALL, source as u32, from);
            let high = warp::shuffle(warp::ALL, (source >> 32) as u32, from);
            some.addresses[J] = u64::from(high) << 32 | u64::from(low);
            some.count += 1;
        });
        some
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

    /// Adds this lane's vectors from `first` on, a warp apart and below `end`, of every row, in order: all loads first, then all
    /// sums. All vectors are below `end` if they are `WHOLE`.
    #[inline(always)]
    fn add<const VECTORS: usize, const WHOLE: bool>(&self, first: u32, end: u32, sums: &mut [[f32; 8]; VECTORS]) {
        const { assert!(MOST * VECTORS == IN_FLIGHT) };
        let loaded = self.load::<VECTORS, WHOLE>(first, end);
        unroll!(V in 8 if V < VECTORS => {
            add(&loaded[V], &mut sums[V]);
        });
    }
}

/// Adds a vector of every row, in order.
#[inline(always)]
pub(super) fn add<const MOST: usize>(loaded: &[U32x4; MOST], sum: &mut [f32; 8]) {
    unroll!(J in 8 if J < MOST => {
        // A missing row adds +0, which changes no bit of a sum that began at +0.
        let x = widen(loaded[J]);
        unroll!(I in 8 => { sum[I] += x[I]; });
    });
}

/// Rounds a vector.
#[inline(always)]
pub(super) fn round(sum: &[f32; 8]) -> [u32; 4] {
    let mut out = [0u32; 4];
    unroll!(I in 4 => {
        out[I] = Bf16::pair_from_f32(sum[2 * I], sum[2 * I + 1]);
    });
    out
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
