//! The attribute's own arguments.
use epoxide_dsl::prelude::*;

#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
struct Args {
    n: u64,
}

const THREADS: u32 = 128;

#[kernel]
fn no_threads(_args: Args) {}

#[kernel(blocks_per_sm = 2)]
fn still_no_threads(_args: Args) {}

#[kernel(threads = 48)]
fn not_whole_warps(_args: Args) {}

#[kernel(threads = 2048)]
fn too_many_threads(_args: Args) {}

#[kernel(threads = 99999999999)]
fn not_even_a_u32(_args: Args) {}

#[kernel(threads = THREADS)]
fn not_a_literal(_args: Args) {}

#[kernel(threads = "128")]
fn not_a_number(_args: Args) {}

#[kernel(threads(128))]
fn not_a_value(_args: Args) {}

#[kernel(threads = 128, blocks_per_sm = 0)]
fn no_blocks(_args: Args) {}

#[kernel(threads = 128, blocks_per_sm = 33)]
fn too_many_blocks(_args: Args) {}

#[kernel(threads = 1024, blocks_per_sm = 4)]
fn too_many_resident_threads(_args: Args) {}

#[kernel(threads = 128, cooperative = true)]
fn a_flag_with_a_value(_args: Args) {}

#[kernel(threads = 128, threads = 256)]
fn twice(_args: Args) {}

#[kernel(threads = 128, grid = 4)]
fn unknown(_args: Args) {}

#[kernel(128)]
fn no_name(_args: Args) {}

fn main() {
    // What names a kernel with wrong bounds is not wrong too.
    let _ = not_whole_warps.name();
}
