//! Loops that are written out at compile time.

/// Repeats a block with a constant index: `unroll!(J in 4 => { sums[J] += x[J]; })` is four blocks with `J` 0, 1, 2 and 3.
///
/// `unroll!(J in 8 if J < N => { .. })` leaves out those for which the condition does not hold: a count that is itself a constant, such as that of a
/// generic function, is at most 8 then.
///
/// An array indexed by such a constant stays in registers; rustc has no attribute that promises it of a loop. The counts are
/// 2, 3, 4, 8 and 16.
#[macro_export]
macro_rules! unroll {
    ($j:ident in 2 => $body:block) => { $crate::unroll!(@ $j $body 0 1) };
    ($j:ident in 3 => $body:block) => { $crate::unroll!(@ $j $body 0 1 2) };
    ($j:ident in 4 => $body:block) => { $crate::unroll!(@ $j $body 0 1 2 3) };
    ($j:ident in 8 => $body:block) => { $crate::unroll!(@ $j $body 0 1 2 3 4 5 6 7) };
    ($j:ident in 16 => $body:block) => { $crate::unroll!(@ $j $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15) };
    ($j:ident in $count:tt if $holds:expr => $body:block) => { $crate::unroll!($j in $count => { if $holds $body }) };
    (@ $j:ident $body:block $($n:literal)*) => {{ $({ const $j: usize = $n; $body })* }};
}
