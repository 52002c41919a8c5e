//! An argument travels by value to every thread.
use epoxide_dsl::prelude::*;

#[derive(KernelArg)]
#[repr(C)]
struct NotCopy {
    n: u64,
}

fn main() {}
