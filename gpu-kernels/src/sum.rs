//! Sums over device memory with many loads under way.
use epoxide_dsl::prelude::*;

/// The sum of `load` over `0..count`. Eight loads are under way at a time: one after the other, each would wait for the memory.
#[inline(always)]
#[track_caller]
pub(crate) fn sum(count: u32, load: impl Fn(u32) -> u32) -> u32 {
    let mut sum = 0;
    let mut first = 0;
    while first < count {
        let mut loaded = [0; 8];
        unroll!(J in 8 if first + (J as u32) < count => {
            loaded[J] = load(first + J as u32);
        });
        unroll!(J in 8 => {
            sum += loaded[J];
        });
        first += 8;
    }
    sum
}
