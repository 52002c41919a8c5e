//! Errors in a kernel's body are at their own place: the macro hides nothing.
use epoxide_dsl::prelude::*;

#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
struct Args {
    x: Global<f32>,
    n: u64,
}

#[kernel(threads = 128)]
fn wrong_type(args: Args) {
    args.x.store_weak(0, args.n);
}

#[kernel(threads = 128)]
fn no_such_access(args: Args) {
    args.x.store_release::<System>(0, 1.0);
}

fn main() {}
