//! Fields of types that are known to be wrong: the error says what to write. All of a struct are reported at once.
use epoxide_dsl::prelude::*;

#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
struct Pointers {
    reference: &'static [f32],
    raw: *mut f32,
    function: fn(u32) -> u32,
    good: Global<f32>,
}

#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
struct Aggregates {
    array: [u64; 8],
    tuple: (u32, u32),
}

#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
struct Primitives(bool, char, usize, isize, u8, i16, u128, u64);

macro_rules! argument {
    ($name:ident, $ty:ty) => {
        #[derive(Clone, Copy, KernelArg)]
        #[repr(C)]
        struct $name {
            x: $ty,
        }
    };
}
argument!(FromAMacro, &'static u32);

fn main() {}
