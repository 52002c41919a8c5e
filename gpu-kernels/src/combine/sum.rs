//! Sums: the rows of a token, loaded from wherever they are, all of some vectors before the first is added.
use epoxide_dsl::prelude::*;

use crate::quantize::widen;

/// Loads of 16 bytes that a thread has in flight, 128 KiB an SM: this many vectors of a few rows, or few of many rows.
pub(super) const IN_FLIGHT: usize = 16;

/// Which lanes have the address of a row, in the order in which the rows are added.
#[derive(Clone, Copy)]
pub(super) struct Rows<const PARTIAL: bool> {
    /// One of each rank, in this order,
    before: u32,
    /// then those of one rank of which there are several: their sum is rounded, then added;
    several: u32,
    /// then one of each rank again.
    after: u32,
}

impl Rows<false> {
    /// Of each rank one, those of `lanes`.
    #[inline(always)]
    pub(super) fn of_ranks(lanes: u32) -> Self {
        Self { before: lanes, several: 0, after: 0 }
    }
}

impl Rows<true> {
    /// The rows of `several` are of one rank, those of `single` of one each; a rank's first lane says when it is its turn.
    #[inline(always)]
    pub(super) fn with_several(single: u32, several: u32) -> Self {
        // None or one: all of them may come first.
        let before_first = several.wrapping_sub(1) & !several;
        Self { before: single & before_first, several, after: single & !before_first }
    }
}

impl<const PARTIAL: bool> Rows<PARTIAL> {
    #[inline(always)]
    fn count(self) -> u32 {
        (self.before | self.several | self.after).count_ones()
    }

    /// Takes the next row; returns its lane, and whether it is one of several.
    #[inline(always)]
    fn next(&mut self) -> (u32, bool) {
        let several = PARTIAL && self.before == 0 && self.several != 0;
        let lanes = if !PARTIAL || self.before != 0 {
            &mut self.before
        } else if several {
            &mut self.several
        } else {
            &mut self.after
        };
        let lane = lanes.trailing_zeros();
        *lanes &= lanes.wrapping_sub(1);
        (lane, several)
    }
}

/// Sums the rows whose addresses the lanes of `rows` hold. Warp-collective.
#[inline(always)]
pub(super) fn sum_rows(vectors: [u32; 2], y: Global<U32x4>, rows: Rows<false>, source: u64) {
    match rows.count() {
        0..=2 => sum_few::<2, 8>(vectors, y, rows, source),
        3..=4 => sum_few::<4, 4>(vectors, y, rows, source),
        5..=8 => sum_few::<8, 2>(vectors, y, rows, source),
        _ => sum_many::<2, false>(vectors, y, rows, source),
    }
}

/// [`sum_rows`] in less code: where there are rarely fewer than three. Warp-collective.
#[inline(always)]
pub(super) fn sum_some_rows(vectors: [u32; 2], y: Global<U32x4>, rows: Rows<false>, source: u64) {
    match rows.count() {
        0..=4 => sum_few::<4, 4>(vectors, y, rows, source),
        _ => sum_many::<2, false>(vectors, y, rows, source),
    }
}

/// [`sum_rows`] with several rows of one rank among them, whose sum takes registers too. Warp-collective.
#[inline(always)]
pub(super) fn sum_with_several(vectors: [u32; 2], y: Global<U32x4>, rows: Rows<true>, source: u64) {
    match rows.count() {
        0..=4 => sum_in_turn::<4, 4>(vectors, y, rows, source),
        5..=8 => sum_in_turn::<8, 2>(vectors, y, rows, source),
        _ => sum_many::<1, true>(vectors, y, rows, source),
    }
}

/// Sums at most `ROWS` rows, `VECTORS` vectors at a time. Warp-collective.
#[inline(always)]
fn sum_few<const ROWS: usize, const VECTORS: usize>(
    [mut first, end]: [u32; 2],
    y: Global<U32x4>,
    mut rows: Rows<false>,
    source: u64,
) {
    let taken = Taken::<ROWS, false>::take(&mut rows, source);
    let at_once = VECTORS as u32 * warp::LANES;
    while first + at_once <= end {
        let mut sums = [Sum::ZERO; VECTORS];
        taken.add::<VECTORS, true>(first, end, &mut sums);
        store::<VECTORS, true>(y, first, end, &sums);
        first += at_once;
    }
    if first < end {
        let mut sums = [Sum::ZERO; VECTORS];
        taken.add::<VECTORS, false>(first, end, &mut sums);
        store::<VECTORS, false>(y, first, end, &sums);
    }
}

/// [`sum_few`] with several rows of one rank among them: as many loads in flight, each vector written before the next is summed, so that there is one sum
/// at a time. With few blocks it is what waits for a peer's row, and half of the loads would take twice as long. Warp-collective.
#[inline(always)]
fn sum_in_turn<const ROWS: usize, const VECTORS: usize>(
    [mut first, end]: [u32; 2],
    y: Global<U32x4>,
    mut rows: Rows<true>,
    source: u64,
) {
    let taken = Taken::<ROWS, true>::take(&mut rows, source);
    while first < end {
        let mut loaded = taken.sources.load::<VECTORS, false>(first, end);
        unroll!(V in 8 if V < VECTORS => {
            let vector = first + warp::lane() + V as u32 * warp::LANES;
            if vector < end {
                let mut sum = Sum::ZERO;
                taken.add_vector(&mut loaded[V], &mut sum);
                y.store_weak(vector, round(&sum.ranks));
            }
        });
        first += VECTORS as u32 * warp::LANES;
    }
}

/// Sums any number of rows, eight in a pass: all passes of a piece of the row, so that its sum stays in registers.
/// Warp-collective.
#[inline(always)]
fn sum_many<const VECTORS: usize, const P: bool>(
    [mut first, end]: [u32; 2],
    y: Global<U32x4>,
    rows: Rows<P>,
    source: u64,
) {
    while first < end {
        let mut sums = [Sum::ZERO; VECTORS];
        let mut left = rows;
        while left.count() != 0 {
            let taken = Taken::<8, P>::take(&mut left, source);
            taken.add::<VECTORS, false>(first, end, &mut sums);
        }
        store::<VECTORS, false>(y, first, end, &sums);
        first += VECTORS as u32 * warp::LANES;
    }
}

/// The sum of a vector so far.
#[derive(Clone, Copy)]
struct Sum {
    /// Of the ranks.
    ranks: [f32; 8],
    /// Of the rank that has several rows.
    several: [f32; 8],
}

impl Sum {
    const ZERO: Self = Self { ranks: [0.0; 8], several: [0.0; 8] };
}

/// The addresses of some rows, the same in all lanes.
#[derive(Clone, Copy)]
pub(super) struct Sources<const MOST: usize> {
    pub addresses: [u64; MOST],
    pub count: u32,
}

/// Some rows.
#[derive(Clone, Copy)]
struct Taken<const MOST: usize, const P: bool> {
    sources: Sources<MOST>,
    /// Those that are of one rank which has several, a bit for each,
    several: u32,
    /// and the bit of its last one, if that is here.
    last: u32,
}

impl<const MOST: usize> Sources<MOST> {
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

impl<const MOST: usize, const P: bool> Taken<MOST, P> {
    /// The first of `rows`, which are those that are left then. Warp-collective.
    #[inline(always)]
    fn take(rows: &mut Rows<P>, source: u64) -> Self {
        let mut some = Self { sources: Sources { addresses: [0; MOST], count: 0 }, several: 0, last: 0 };
        unroll!(J in 8 if J < MOST && rows.count() != 0 => {
            let (from, several) = rows.next();
            let low = warp::shuffle(warp::ALL, source as u32, from);
            let high = warp::shuffle(warp::ALL, (source >> 32) as u32, from);
            some.sources.addresses[J] = u64::from(high) << 32 | u64::from(low);
            some.sources.count += 1;
            if several {
                some.several |= 1 << J;
                if rows.several == 0 {
                    some.last = 1 << J;
                }
            }
        });
        some
    }

    /// Adds this lane's vectors from `first` on, a warp apart and below `end`, of every row, in order: all loads first, then all
    /// sums. All vectors are below `end` if they are `WHOLE`.
    #[inline(always)]
    fn add<const VECTORS: usize, const WHOLE: bool>(&self, first: u32, end: u32, sums: &mut [Sum; VECTORS]) {
        const { assert!(MOST * VECTORS == if P { IN_FLIGHT / 2 } else { IN_FLIGHT }) };
        let mut loaded = self.sources.load::<VECTORS, WHOLE>(first, end);
        unroll!(V in 8 if V < VECTORS => {
            self.add_vector(&mut loaded[V], &mut sums[V]);
        });
    }

    /// Adds a vector of every row, in order.
    #[inline(always)]
    fn add_vector(&self, loaded: &mut [[u32; 4]; MOST], sum: &mut Sum) {
        if P {
            self.sum_several(loaded, &mut sum.several);
        }
        unroll!(J in 8 if J < MOST => {
            // A missing row adds +0, which changes no bit of a sum that began at +0.
            let x = widen(loaded[J]);
            unroll!(I in 8 => { sum.ranks[I] += x[I]; });
        });
    }

    /// Adds those of the rows that are of one rank to the sum of its, and leaves the rounded sum in place of its last one, zeros in place of the
    /// others.
    #[inline(always)]
    fn sum_several(&self, loaded: &mut [[u32; 4]; MOST], several: &mut [f32; 8]) {
        unroll!(J in 8 if J < MOST => {
            // Words of the row, or zeros: selected so, and not by a branch, since the rows are in registers.
            let (of_several, of_others) = if self.several & 1 << J != 0 { (u32::MAX, 0) } else { (0, u32::MAX) };
            let mut row = [0; 4];
            unroll!(I in 4 => {
                row[I] = loaded[J][I] & of_several;
                loaded[J][I] &= of_others;
            });
            let x = widen(row);
            unroll!(I in 8 => { several[I] += x[I]; });
        });
        let rounded = round(several);
        unroll!(J in 8 if J < MOST => {
            let of_last = if self.last == 1 << J { u32::MAX } else { 0 };
            unroll!(I in 4 => { loaded[J][I] |= rounded[I] & of_last; });
        });
    }
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
fn store<const VECTORS: usize, const WHOLE: bool>(y: Global<U32x4>, first: u32, end: u32, sums: &[Sum; VECTORS]) {
    let at = first + warp::lane();
    let y = y.at(at);
    unroll!(V in 8 if V < VECTORS && (WHOLE || at + V as u32 * warp::LANES < end) => {
        y.store_weak(V as u32 * warp::LANES, round(&sums[V].ranks));
    });
}
