//! Every form that is allowed, under lints that a careful crate denies.
#![deny(missing_docs, unsafe_op_in_unsafe_fn, unused, nonstandard_style)]
use epoxide_dsl::prelude::*;

/// Documented, with every kind of field.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct Args {
    /// Device memory.
    pub x: Global<Bf16>,
    /// A window.
    pub y: Symmetric<E4m3>,
    /// Numbers.
    pub n: u64,
    /// Numbers.
    pub a: f32,
    /// Another argument.
    pub window: Window,
    /// A place in it.
    pub region: Region<u32>,
}

/// A tuple struct, aligned.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(align(16), C)]
pub struct Pair(pub u32, pub i64);

/// All that the attribute takes, in another order, with a trailing comma.
#[kernel(cooperative, blocks_per_sm = 2, threads = 0x2_00,)]
pub fn everything(args: Args) {
    let _ = args.n;
}

/// A pattern, an early return, a module's own name.
#[kernel(threads = 1024, blocks_per_sm = 2)]
#[allow(clippy::needless_return)]
pub fn pattern(Pair(a, mut b): Pair) {
    b += i64::from(a);
    if b > 0 {
        return;
    }
}

/// A number alone is an argument too.
#[kernel(threads = 32)]
pub fn number(mut n: u64) {
    n += 1;
    let _ = n;
}

#[allow(dead_code)]
mod inner {
    use super::*;
    #[kernel(threads = 64)]
    pub(super) fn hidden(args: super::Pair) {
        let _ = args;
    }
}

fn main() {
    assert_eq!((everything.name(), everything.threads(), everything.blocks_per_sm()), ("everything", 512, 2));
    assert!(everything.cooperative() && !pattern.cooperative());
    assert_eq!((number.blocks_per_sm(), inner::hidden.threads()), (1, 64));
    // The descriptor is a plain value.
    let kernels: [Kernel<Pair>; 2] = [pattern, inner::hidden];
    assert_eq!(kernels.map(|kernel| kernel.name()), ["pattern", "hidden"]);
}
