//! A wrong argument struct is reported where it is wrong, and not again at every kernel that takes it.
use epoxide_dsl::prelude::*;

#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
struct Args {
    on: bool,
}

#[kernel(threads = 128)]
fn takes_it(_args: Args) {}

fn main() {
    let _ = takes_it.name();
}
