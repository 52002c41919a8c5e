//! Fields that are not `KernelArg`: the error is at the field's type.
use epoxide_dsl::prelude::*;

#[derive(Clone, Copy)]
struct NotDerived {
    n: u64,
}

#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
struct Args {
    good: u64,
    nested: NotDerived,
    code: E4m3,
    optional: Option<u32>,
    in_a_block: Shared<f32>,
}

fn main() {}
