//! Folds over device memory with many loads under way.
use epoxide_dsl::prelude::*;

/// The sum of `load` over `0..count`.
#[inline(always)]
#[track_caller]
pub(crate) fn sum(count: u32, load: impl Fn(u32) -> u32) -> u32 {
    fold(count, 0, load, |a, b| a + b)
}

/// Folds what `load` gives for `0..count` into `value`. Eight loads are under way at a time: one after the other, each would wait
/// for the memory.
#[inline(always)]
#[track_caller]
pub(crate) fn fold<T: Copy>(count: u32, value: T, load: impl Fn(u32) -> T, with: impl Fn(T, T) -> T) -> T {
    let mut folded = value;
    let mut first = 0;
    while first < count {
        let mut loaded = [value; 8];
        unroll!(J in 8 => {
            if first + (J as u32) < count {
                loaded[J] = load(first + J as u32);
            }
        });
        unroll!(J in 8 => {
            folded = with(folded, loaded[J]);
        });
        first += 8;
    }
    folded
}
