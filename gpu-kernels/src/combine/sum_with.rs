//! Sums with more in them than the rows of ranks as they are: weights, and rows of the caller's.
use epoxide_dsl::prelude::*;

use super::sum::{IN_FLIGHT, Sources};
use crate::quantize::widen;

/// What is in a sum, and what becomes of it.
pub(crate) trait Terms: Copy {
    /// Whether rows are weighed, which takes registers.
    const WEIGHED: bool;

    /// Rows that are added behind those of the lanes.
    fn more(self) -> More;

    /// The weight of this lane's row, if rows are weighed.
    fn weight(self) -> f32;

    /// What is added for elements `x` of a row of this weight.
    fn weigh(self, x: [f32; 8], weight: f32) -> [f32; 8];

    /// What is added last for this lane's vector number `vector`, or +0: eight numbers as bits.
    fn last(self, vector: u32) -> [U32x4; 2];

    /// Writes the sum of this lane's vector number `vector`.
    fn store(self, vector: u32, sum: &[f32; 8]);
}

/// The addresses of rows that are added behind those of the lanes, in order; the same in all lanes.
#[derive(Clone, Copy)]
pub(crate) struct More {
    addresses: [u64; 3],
    count: u32,
}

impl More {
    /// None.
    pub(super) const NONE: Self = Self { addresses: [0; 3], count: 0 };

    /// Behind these, one at `address`, if it is one.
    #[inline(always)]
    pub(super) fn then(mut self, address: Option<u64>) -> Self {
        if let Some(address) = address {
            unroll!(I in 3 if I as u32 == self.count => {
                self.addresses[I] = address;
            });
            self.count += 1;
        }
        self
    }

    /// Whether there are any.
    #[inline(always)]
    pub(super) fn is_some(self) -> bool {
        self.count != 0
    }

    /// Takes the first.
    #[inline(always)]
    pub(super) fn next(&mut self) -> u64 {
        let [first, second, third] = self.addresses;
        *self = Self { addresses: [second, third, 0], count: self.count - 1 };
        first
    }
}

/// The rows that are yet to be added: those of some lanes, then others.
#[derive(Clone, Copy)]
struct Left {
    lanes: u32,
    more: More,
}

impl Left {
    #[inline(always)]
    fn is_some(self) -> bool {
        self.lanes != 0 || self.more.count != 0
    }
}

/// Sums the rows whose addresses the lanes of `sources` hold, and what else is of the `terms`. Warp-collective.
#[inline(always)]
pub(super) fn sum_rows<T: Terms>(vectors: [u32; 2], terms: T, sources: u32, source: u64) {
    let left = Left { lanes: sources, more: terms.more() };
    match left.lanes.count_ones() + left.more.count {
        0..=4 => sum_few::<4, 4, T>(vectors, terms, left, source),
        5..=8 => sum_few::<8, 2, T>(vectors, terms, left, source),
        _ if T::WEIGHED => sum_many::<4, T>(vectors, terms, left, source),
        _ => sum_many::<8, T>(vectors, terms, left, source),
    }
}

/// [`sum_rows`] where two to a few are usual, in less code. Warp-collective.
#[inline(always)]
pub(super) fn sum_some_rows<T: Terms>(vectors: [u32; 2], terms: T, sources: u32, source: u64) {
    let left = Left { lanes: sources, more: terms.more() };
    match left.lanes.count_ones() + left.more.count {
        0..=4 => sum_few::<4, 4, T>(vectors, terms, left, source),
        _ => sum_many::<4, T>(vectors, terms, left, source),
    }
}

/// Sums at most `ROWS` rows, `VECTORS` vectors at a time, each of which is written before the next is summed: that takes fewest
/// registers. Warp-collective.
#[inline(always)]
fn sum_few<const ROWS: usize, const VECTORS: usize, T: Terms>(
    [mut first, end]: [u32; 2],
    terms: T,
    left: Left,
    source: u64,
) {
    let (rows, _) = Named::<ROWS>::take(left, source);
    while first < end {
        let loaded = rows.sources.load::<VECTORS, false>(first, end);
        let at = first + warp::lane();
        let weights = rows.weights(terms);
        // What is added last is loaded for some vectors at a time, since that for all takes too many registers.
        let together = if T::WEIGHED { 1 } else { 2 };
        unroll!(H in 4 if together * H < VECTORS => {
            let mut last = [[[0; 4]; 2]; 2];
            unroll!(W in 2 if W < together && at + (together * H + W) as u32 * warp::LANES < end => {
                last[W] = terms.last(at + (together * H + W) as u32 * warp::LANES);
            });
            unroll!(W in 2 if W < together => {
                let vector = at + (together * H + W) as u32 * warp::LANES;
                if vector < end {
                    let mut sum = [0.0; 8];
                    add(terms, &loaded[together * H + W], &weights, &mut sum);
                    finish(terms, vector, last[W], sum);
                }
            });
        });
        first += VECTORS as u32 * warp::LANES;
    }
}

/// Sums any number of rows, `ROWS` in a pass: all passes of a piece of the row, so that its sum stays in registers.
/// Warp-collective.
#[inline(always)]
fn sum_many<const ROWS: usize, T: Terms>([mut first, end]: [u32; 2], terms: T, all: Left, source: u64) {
    while first < end {
        let mut sums = [[0.0; 8]; 2];
        let mut left = all;
        while left.is_some() {
            let (rows, rest) = Named::<ROWS>::take(left, source);
            let loaded = rows.sources.load::<2, false>(first, end);
            let weights = rows.weights(terms);
            unroll!(V in 2 => {
                add(terms, &loaded[V], &weights, &mut sums[V]);
            });
            left = rest;
        }
        unroll!(V in 2 => {
            let vector = first + warp::lane() + V as u32 * warp::LANES;
            if vector < end {
                finish(terms, vector, terms.last(vector), sums[V]);
            }
        });
        first += 2 * warp::LANES;
    }
}

/// Adds a vector of each row, in order.
#[inline(always)]
fn add<const MOST: usize, T: Terms>(
    terms: T,
    loaded: &[U32x4; MOST],
    weights: &Option<[f32; MOST]>,
    sum: &mut [f32; 8],
) {
    // A missing row adds +0, which changes no bit of a sum that began at +0.
    match weights {
        None => unroll!(J in 8 if J < MOST => {
            let x = widen(loaded[J]);
            unroll!(I in 8 => { sum[I] += x[I]; });
        }),
        Some(weights) => unroll!(J in 8 if J < MOST => {
            let x = terms.weigh(widen(loaded[J]), weights[J]);
            unroll!(I in 8 => { sum[I] += x[I]; });
        }),
    }
}

/// Adds what is added last, and writes the sum.
#[inline(always)]
pub(super) fn finish<T: Terms>(terms: T, vector: u32, last: [U32x4; 2], mut sum: [f32; 8]) {
    unroll!(I in 8 => { sum[I] += f32::from_bits(last[I / 4][I % 4]); });
    terms.store(vector, &sum);
}

/// Some rows, and the lanes that name the first of them.
#[derive(Clone, Copy)]
struct Named<const MOST: usize> {
    sources: Sources<MOST>,
    lanes: u32,
}

impl<const MOST: usize> Named<MOST> {
    /// The first rows, and what is left. Warp-collective.
    #[inline(always)]
    fn take(mut left: Left, source: u64) -> (Self, Left) {
        const { assert!(IN_FLIGHT.is_multiple_of(MOST)) };
        let mut rows = Self { sources: Sources { addresses: [0; MOST], count: 0 }, lanes: left.lanes };
        unroll!(J in 8 if J < MOST && left.is_some() => {
            if left.lanes != 0 {
                let from = left.lanes.trailing_zeros();
                left.lanes &= left.lanes - 1;
                let low = warp::shuffle(warp::ALL, source as u32, from);
                let high = warp::shuffle(warp::ALL, (source >> 32) as u32, from);
                rows.sources.addresses[J] = u64::from(high) << 32 | u64::from(low);
            } else {
                rows.sources.addresses[J] = left.more.next();
            }
            rows.sources.count += 1;
        });
        rows.lanes &= !left.lanes;
        (rows, left)
    }

    /// Their weights, if they have some, which may be on their way while the rows are; 1 for a row that no lane names. Warp-collective.
    #[inline(always)]
    fn weights<T: Terms>(&self, terms: T) -> Option<[f32; MOST]> {
        if !T::WEIGHED {
            return None;
        }
        let (weight, mut weights, mut lanes) = (terms.weight(), [1.0; MOST], self.lanes);
        unroll!(J in 8 if J < MOST && lanes != 0 => {
            weights[J] = warp::shuffle(warp::ALL, weight, lanes.trailing_zeros());
            lanes &= lanes - 1;
        });
        Some(weights)
    }
}
