//! The function's signature.
use epoxide_dsl::prelude::*;

#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
struct Args {
    n: u64,
}

#[kernel(threads = 128)]
const fn constant(_args: Args) {}

#[kernel(threads = 128)]
async fn asynchronous(_args: Args) {}

#[kernel(threads = 128)]
unsafe fn careful(_args: Args) {}

#[kernel(threads = 128)]
extern "C" fn foreign(_args: Args) {}

#[kernel(threads = 128)]
fn generic<T: Copy, const N: usize>(_args: Args) {}

#[kernel(threads = 128)]
fn bounded(_args: Args)
where
    Args: Copy,
{
}

#[kernel(threads = 128)]
fn returns(_args: Args) -> Result<(), u32> {
    Ok(())
}

#[kernel(threads = 128)]
fn no_argument() {}

#[kernel(threads = 128)]
fn two_arguments(args: Args, n: u64) {}

#[kernel(threads = 128)]
fn by_reference(args: &Args) {}

#[kernel(threads = 128)]
fn by_pointer(args: *const Args) {}

#[kernel(threads = 128)]
fn a_tuple(args: (u64, u64)) {}

#[kernel(threads = 128)]
fn a_slice(args: [u64]) {}

#[kernel(threads = 128)]
fn any_argument(args: impl KernelArg) {}

impl Args {
    #[kernel(threads = 128)]
    fn method(self) {}
}

fn main() {}
