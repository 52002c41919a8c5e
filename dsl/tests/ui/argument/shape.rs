//! What the derive stands on.
use epoxide_dsl::prelude::*;

#[derive(Clone, Copy, KernelArg)]
struct NoRepr {
    n: u64,
}

#[derive(Clone, Copy, KernelArg)]
#[repr(transparent)]
struct WrongRepr(u64);

#[derive(Clone, Copy, KernelArg)]
#[repr(C, packed)]
struct Packed {
    n: u32,
    m: u64,
}

#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
struct Generic<T> {
    x: Global<T>,
}

#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
struct Unit;

#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
struct Empty {}

#[derive(Clone, Copy, KernelArg)]
#[repr(u32)]
enum Choice {
    This,
    That,
}

#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
union Either {
    this: u32,
    that: f32,
}

fn main() {}
