//! Combine of rows that lie by expert, where what crosses between ranks crosses in FP8.
//!
//! The words are those of [`super`] and of `by_expert`. An owner writes a row for every token that it has rows of, and not only where
//! these are several: the row that would cross in BF16, quantised as a dispatch quantises ([`crate::quantize`]): e4m3 with one f32 scale for every 128
//! elements. Codes lie at the beginning of the row, scales behind them; both take less than the row in BF16. A part of a token is whole groups, so whoever
//! sums a part has all that decides its scales.
//!
//! Who adds them up adds `code * scale`, the product rounded to f32, where it would add the BF16 row. Its own rank's rows do not cross, and are added as
//! they are on the wire of BF16. Gate weights are all applied by owners, single rows' too. An entry word says that rows cross so: ranks that differ are out of
//! step.
use epoxide_dsl::prelude::*;

use super::args::{CombineArgs, CombineByExpertArgs, CombineByExpertWithArgs};
use super::by_expert::{self, ByExpert, Ranks};
use super::options::{Ending, Weighed, bring_weights_by_expert};
use super::parts::Part;
use super::sum::{self, Sources, round};
use super::sum_with::{self, Terms, finish};
use super::{Sum, source};
use crate::quantize::{code_word, quantize_vectors, scale_group, widen};
use crate::scale::{GROUP, Scale};
use crate::words::Kind;

/// A combine whose rows cross in FP8, gate-weighted or not.
pub(crate) struct ByFp8<'a, const GATED: bool>(pub &'a CombineByExpertWithArgs);

impl<const GATED: bool> Sum for ByFp8<'_, GATED> {
    const SHORT_OF_REGISTERS: bool = true;

    #[inline(always)]
    fn args(&self) -> &CombineArgs {
        &self.0.sums.pull
    }

    #[inline(always)]
    fn kind(&self) -> Kind {
        match (GATED, self.0.options.returning != 0) {
            (false, false) => Kind::CombineFp8,
            (true, false) => Kind::CombineFp8Gated,
            (false, true) => Kind::CombineFp8Returning,
            (true, true) => Kind::CombineFp8GatedReturning,
        }
    }

    #[inline(always)]
    fn attempt(&self, watch: &wait::Watch, aborted: bool) -> Result<(), fault::Stopped> {
        by_expert::attempt(self, watch, aborted)
    }

    #[inline(always)]
    fn sum(&self, part: Part, token: u32, vectors: [u32; 2]) {
        let a = &self.0.sums;
        let window = a.pull.op.window();
        let own = part.rank == window.rank().0 as i32;
        let mut address = 0;
        if own {
            address = source(&a.pull, part);
        }
        let here = warp::ballot(warp::ALL, address != 0);
        let summed = here.count_ones() > u32::from(!GATED);
        let (ranks, sums) = (Ranks::of(part), window.own(a.sums));
        if summed {
            // In BF16, to where owners write. Each lane reads below what it writes here.
            let to = ranks.sum(a, sums, token, here.trailing_zeros()).as_global().cast();
            self.sum_in_bf16(vectors, to, here, part.row, address);
        }
        // Of each rank one row, by the lane of its first selection.
        if !ranks.is_first() {
            address = 0;
        } else if !own || summed {
            address = ranks.sum(a, sums, token, warp::lane()).address();
        }
        let lanes = warp::ballot(warp::ALL, address != 0);
        let in_bf16 = lanes & warp::ballot(warp::ALL, own);
        let ending = Ending::<false>::new(&a.pull, &self.0.options, token, 1.0);
        Crossed::<3> { lanes, in_bf16, address, hidden: a.pull.hidden }.sum(vectors, ending);
    }
}

impl<const GATED: bool> ByFp8<'_, GATED> {
    /// Sums rows of this rank's to a row in BF16. Warp-collective.
    #[inline(always)]
    fn sum_in_bf16(&self, vectors: [u32; 2], to: Global<U32x4>, rows: u32, row: u32, address: u64) {
        if GATED {
            sum_with::sum_some_rows(vectors, Weighed { to, weight: self.weight(rows, row) }, rows, address);
        } else {
            sum::sum_some_rows(vectors, to, rows, address);
        }
    }

    /// The gate weight of this lane's row, if it is one of `rows`.
    #[inline(always)]
    fn weight(&self, rows: u32, row: u32) -> f32 {
        let mut weight = 0.0;
        if rows >> warp::lane() & 1 != 0 {
            weight = self.0.sums.pull.op.window().own(self.0.options.gates).load_weak(row);
        }
        weight
    }
}

impl<const GATED: bool> ByExpert for ByFp8<'_, GATED> {
    const SINGLE_ROWS_TOO: bool = true;

    #[inline(always)]
    fn sums(&self) -> &CombineByExpertArgs {
        &self.0.sums
    }

    /// Sums, and quantises.
    #[allow(unused_assignments, reason = "the last of the unrolled turns leaves lanes that nobody asks for")]
    #[inline(always)]
    fn sum_at_owner(&self, [mut first, end]: [u32; 2], to: Global<U32x4>, rows: u32, row: u32, address: u64) {
        let hidden = self.0.sums.pull.hidden;
        let to = to.cast::<u8>();
        let weight = if GATED { self.weight(rows, row) } else { 1.0 };
        while first < end {
            let mut rounded = [[0; 4]; 4];
            // Two vectors of four rows at a time, which are as many loads as the other way round, and fewer sums.
            unroll!(H in 2 => {
                let mut sums = [[0.0; 8]; 2];
                let mut left = rows;
                while left != 0 {
                    let (mut some, mut lanes) = (Sources::<4> { addresses: [0; 4], count: 0 }, left);
                    unroll!(J in 4 if left != 0 => {
                        let from = left.trailing_zeros();
                        left &= left - 1;
                        some.addresses[J] = shuffled(address, from);
                        some.count += 1;
                    });
                    let loaded = some.load::<2, false>(first + 2 * H as u32 * warp::LANES, end);
                    unroll!(J in 4 => {
                        // Later than the loads, which take most registers.
                        let mut weight = weight;
                        if GATED {
                            let of_lane = warp::shuffle(warp::ALL, weight, lanes.trailing_zeros() & 31);
                            weight = if lanes != 0 { of_lane } else { 1.0 };
                            lanes &= lanes.wrapping_sub(1);
                        }
                        unroll!(V in 2 => {
                            // A missing row adds +0, which changes no bit of a sum that began at +0.
                            let x = widen(loaded[V][J]);
                            unroll!(I in 8 => { sums[V][I] += if GATED { x[I] * weight } else { x[I] }; });
                        });
                    });
                }
                unroll!(V in 2 => { rounded[2 * H + V] = round(&sums[V]); });
            });
            store_quantized(to, hidden, [first, end], &rounded);
            first += 4 * warp::LANES;
        }
    }

    #[inline(always)]
    fn beside(&self) {
        bring_weights_by_expert(&self.0.sums.pull, &self.0.options);
    }
}

/// Quantises four vectors of each lane, a warp apart, from `first` on and below `end`, and writes them to a row that crosses. Warp-collective.
#[inline(always)]
pub(super) fn store_quantized(to: Global<u8>, hidden: u32, [first, end]: [u32; 2], vectors: &[U32x4; 4]) {
    let (codes, scales, at) = (to.cast::<u64>(), to.at(hidden).cast::<u32>(), first + warp::lane());
    let (of_vectors, of_groups) = quantize_vectors::<4, f32>(vectors);
    unroll!(V in 4 if at + V as u32 * warp::LANES < end => {
        codes.store_weak(at + V as u32 * warp::LANES, code_word(of_vectors[V]));
    });
    if let Some(group) = scale_group::<4, f32>(0) {
        let group = first * 8 / GROUP + group;
        if group * GROUP < end * 8 {
            of_groups[0].store(scales, group.into());
        }
    }
}

/// An address that a lane has. Warp-collective.
#[inline(always)]
fn shuffled(address: u64, from: u32) -> u64 {
    let low = warp::shuffle(warp::ALL, address as u32, from);
    let high = warp::shuffle(warp::ALL, (address >> 32) as u32, from);
    u64::from(high) << 32 | u64::from(low)
}

/// Rows of a token that one lane of each rank knows, of which a thread loads `ROWS` at once, four at most.
pub(super) struct Crossed<const ROWS: usize> {
    /// Those lanes.
    pub lanes: u32,
    /// The one of the own rank, if it is among them.
    pub in_bf16: u32,
    /// Where this lane's row is.
    pub address: u64,
    pub hidden: u32,
}

/// Vectors of a row that a thread loads at once: of eight codes.
const VECTORS: usize = 2;

impl<const ROWS: usize> Crossed<ROWS> {
    /// Adds the rows in the order of their lanes, then what else is of the `terms`. Warp-collective.
    #[inline(always)]
    pub(super) fn sum<T: Terms>(&self, [mut first, end]: [u32; 2], terms: T) {
        while first < end {
            let at = first + warp::lane();
            let mut sums = [[0.0; 8]; VECTORS];
            let mut left = self.lanes;
            while left != 0 {
                left = self.add_some(left, at, end, &mut sums);
            }
            let mut more = terms.more();
            while more.is_some() {
                let row = Sources::<1> { addresses: [more.next()], count: 1 }.load::<VECTORS, false>(first, end);
                unroll!(V in 2 => {
                    let x = widen(row[V][0]);
                    unroll!(I in 8 => { sums[V][I] += x[I]; });
                });
            }
            unroll!(V in 2 => {
                let vector = at + V as u32 * warp::LANES;
                if vector < end {
                    finish(terms, vector, terms.last(vector), sums[V]);
                }
            });
            first += VECTORS as u32 * warp::LANES;
        }
    }

    /// Adds the first rows of `left`, of which it returns the others: all loads first, then all sums. Warp-collective.
    #[inline(always)]
    fn add_some(&self, mut left: u32, at: u32, end: u32, sums: &mut [[f32; 8]; VECTORS]) -> u32 {
        let (mut codes, mut scales) = ([[0u64; ROWS]; VECTORS], [0.0f32; ROWS]);
        // Half of the lanes share a scale of each vector: the even ones load that of the first, the odd ones that of the second.
        let half = warp::lane() & 16;
        let of_scale = at - warp::lane() + half + (warp::lane() & 1) * warp::LANES;
        let (mut bf16, mut of_bf16) = ([[0u32; 4]; VECTORS], 0);
        unroll!(J in 4 if J < ROWS && left != 0 => {
            let from = left.trailing_zeros();
            left &= left - 1;
            let address = shuffled(self.address, from);
            if self.in_bf16 >> from & 1 != 0 {
                of_bf16 = 1 << J;
                // SAFETY: a row of this rank's expert outputs, which its stream wrote before this launch, or one that this lane has written where
                // it reads; vectors inside the row.
                let row = unsafe { Symmetric::<U32x4>::from_raw(address) }.at(at);
                unroll!(V in 2 if at + V as u32 * warp::LANES < end => {
                    bf16[V] = row.load_weak(V as u32 * warp::LANES);
                });
            } else {
                // SAFETY: a row of this rank's sums, whose codes and scales its owner's reduced word says are there, and which nobody writes before this
                // rank has entered another combine; vectors inside the row.
                let row = unsafe { Symmetric::<u8>::from_raw(address) };
                unroll!(V in 2 if at + V as u32 * warp::LANES < end => {
                    let vector = at + V as u32 * warp::LANES;
                    codes[V][J] = row.cast::<u64>().load_weak(vector);
                });
                if of_scale < end {
                    scales[J] = row.at(self.hidden).cast::<f32>().load_weak(of_scale * 8 / GROUP);
                }
            }
        });
        unroll!(V in 2 => {
            unroll!(J in 4 if J < ROWS => {
                // A missing row adds +0, which changes no bit of a sum that began at +0.
                let mut x = dequantized(codes[V][J], warp::shuffle(warp::ALL, scales[J].to_bits(), half + V as u32));
                if of_bf16 == 1 << J {
                    x = widen(bf16[V]);
                }
                unroll!(I in 8 => { sums[V][I] += x[I]; });
            });
        });
        left
    }
}

/// Eight codes, each times the scale.
#[inline(always)]
fn dequantized(codes: u64, scale: u32) -> [f32; 8] {
    let scale = f32::from_bits(scale);
    let [low, high] = [E4m3::unpack(codes as u32), E4m3::unpack((codes >> 32) as u32)];
    [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]].map(|x| x * scale)
}
