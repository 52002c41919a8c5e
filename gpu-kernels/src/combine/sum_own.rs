//! Sums of a token's rows of which several may be the own rank's: the sum of these is rounded, and added as other ranks' rows are.
//!
//! The sum of the own rank's rows is made first, wherever it comes among the ranks, and added where it is its turn. So each row is widened and added once. (To both
//! sums, masked, each was twice: with few blocks a combine waited for that arithmetic, and not for its loads.)
use epoxide_dsl::prelude::*;

use super::sum::{Sources, add, round};
use crate::quantize::widen;

/// Which lanes have the address of a row.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// The own rank's: its first lane says when their sum is added.
    pub own: u32,
    /// One of each of the other ranks.
    pub others: u32,
}

impl Rows {
    /// Those of the others before which nothing of the own rank is added.
    #[inline(always)]
    fn before_own(self) -> u32 {
        self.others & self.own.wrapping_sub(1) & !self.own
    }
}

/// Sums the rows whose addresses the lanes of `rows` hold. Warp-collective.
#[inline(always)]
pub(super) fn sum_rows(vectors: [u32; 2], y: Global<U32x4>, rows: Rows, source: u64) {
    let (own, others) = (rows.own.count_ones(), rows.others.count_ones());
    // Which lanes a pass takes is uniform in the warp.
    match (own, others) {
        // An only row is its sum, rounded already.
        (0..=1, _) if own + others <= 4 => sum_few::<0, 4, 4>(vectors, y, rows, source),
        (0..=1, _) if own + others <= 8 => sum_few::<0, 8, 2>(vectors, y, rows, source),
        (2..=3, 0..=1) => sum_few::<3, 1, 4>(vectors, y, rows, source),
        (4, 0..=1) => sum_few::<4, 1, 3>(vectors, y, rows, source),
        (5..=7, 0..=1) => sum_few::<7, 1, 2>(vectors, y, rows, source),
        (2..=3, 2..=5) => sum_few::<3, 5, 2>(vectors, y, rows, source),
        _ => sum_many(vectors, y, rows, source),
    }
}

/// Sums at most `OWN` rows of the own rank and `OTHERS` of others, or where `OWN` is 0 at most `OTHERS` of which one is of each rank; `VECTORS` vectors at a
/// time, each of which is written before the next is summed, so that there is one sum at a time. Warp-collective.
#[inline(always)]
fn sum_few<const OWN: usize, const OTHERS: usize, const VECTORS: usize>(
    [mut first, end]: [u32; 2],
    y: Global<U32x4>,
    rows: Rows,
    source: u64,
) {
    let (mut own, mut others) = (rows.own, rows.others);
    if OWN == 0 {
        (own, others) = (0, own | others);
    }
    let others = Sources::<OTHERS>::take(&mut others, source);
    let own = Sources::<OWN>::take(&mut own, source);
    // Behind how many of the others the own sum is added. The first two of a sum may change places, so not behind none.
    let behind = rows.before_own().count_ones().max(1);
    let at_once = VECTORS as u32 * warp::LANES;
    while first < end {
        // What comes from farthest first.
        let of_others = others.load::<VECTORS, false>(first, end);
        let of_own = own.load::<VECTORS, false>(first, end);
        unroll!(V in 8 if V < VECTORS => {
            let vector = first + warp::lane() + V as u32 * warp::LANES;
            if vector < end {
                let mut own = [0.0; 8];
                if OWN != 0 {
                    add(&of_own[V], &mut own);
                    own = widen(round(&own));
                }
                let mut sum = [0.0; 8];
                unroll!(J in 8 if J < OTHERS => {
                    if OWN != 0 && behind == J as u32 {
                        unroll!(I in 8 => { sum[I] += own[I]; });
                    }
                    add(&[of_others[V][J]], &mut sum);
                });
                if OWN != 0 && (OTHERS == 1 || behind >= OTHERS as u32) {
                    unroll!(I in 8 => { sum[I] += own[I]; });
                }
                y.store_weak(vector, round(&sum));
            }
        });
        first += at_once;
    }
}

/// Sums any number of rows, eight in a pass: all passes of a piece of the row, so that its sums stay in registers. Warp-collective.
#[inline(always)]
fn sum_many([mut first, end]: [u32; 2], y: Global<U32x4>, rows: Rows, source: u64) {
    while first < end {
        let (mut sums, mut own) = ([[0.0; 8]; 2], [[0u32; 4]; 2]);
        // The own rank's; those before it; those behind it.
        let mut left = rows.own;
        for stage in thread::strided(0, 3, 1) {
            while left != 0 {
                let loaded = Sources::<8>::take(&mut left, source).load::<2, false>(first, end);
                unroll!(V in 2 => {
                    add(&loaded[V], &mut sums[V]);
                });
            }
            if stage == 0 {
                unroll!(V in 2 => {
                    (own[V], sums[V]) = (round(&sums[V]), [0.0; 8]);
                });
                left = rows.before_own();
            } else if stage == 1 {
                unroll!(V in 2 => {
                    add(&[own[V]], &mut sums[V]);
                });
                left = rows.others & !rows.before_own();
            }
        }
        unroll!(V in 2 => {
            let vector = first + warp::lane() + V as u32 * warp::LANES;
            if vector < end {
                y.store_weak(vector, round(&sums[V]));
            }
        });
        first += 2 * warp::LANES;
    }
}
