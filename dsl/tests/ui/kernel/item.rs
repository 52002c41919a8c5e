//! What the attribute stands on.
use epoxide_dsl::prelude::*;

#[kernel(threads = 128)]
struct NotAFunction {
    n: u64,
}

#[kernel(threads = 128)]
const NOT_A_FUNCTION_EITHER: fn() = main;

trait Kernels {
    #[kernel(threads = 128)]
    fn no_body(_args: Args);
}

#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
struct Args {
    n: u64,
}

#[kernel(threads = 128)]
#[inline(always)]
fn inlined(_args: Args) {}

#[kernel(threads = 128)]
#[unsafe(no_mangle)]
fn named_twice(_args: Args) {}

#[kernel(threads = 128)]
#[track_caller]
#[must_use]
fn decided(_args: Args) {}

fn main() {}
