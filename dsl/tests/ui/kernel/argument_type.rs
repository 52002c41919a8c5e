//! An argument that is no `KernelArg`: the error is at its type.
use epoxide_dsl::prelude::*;

#[derive(Clone, Copy)]
#[repr(C)]
struct NotDerived {
    n: u64,
}

#[kernel(threads = 128)]
fn not_derived(_args: NotDerived) {}

#[kernel(threads = 128)]
fn owned(_args: std::string::String) {}

fn main() {}
