//! The attribute's own arguments.
use epoxide_dsl::prelude::*;

#[derive(Clone, Copy, KernelArg)]
#[repr(C)]
struct Args {
    n: u64,
}

const THREADS: u32 = 128;

#[kernel]
fn no_threads(args: Args) {}

#[kernel(blocks_per_sm = 2)]
fn still_no_threads(args: Args) {}

#[kernel(threads = 48)]
fn not_whole_warps(args: Args) {}

#[kernel(threads = 2048)]
fn too_many_threads(args: Args) {}

#[kernel(threads = 99999999999)]
fn not_even_a_u32(args: Args) {}

#[kernel(threads = THREADS)]
fn not_a_literal(args: Args) {}

#[kernel(threads = "128")]
fn not_a_number(args: Args) {}

#[kernel(threads(128))]
fn not_a_value(args: Args) {}

#[kernel(threads = 128, blocks_per_sm = 0)]
fn no_blocks(args: Args) {}

#[kernel(threads = 128, blocks_per_sm = 33)]
fn too_many_blocks(args: Args) {}

#[kernel(threads = 1024, blocks_per_sm = 4)]
fn too_many_resident_threads(args: Args) {}

#[kernel(threads = 128, cooperative = true)]
fn a_flag_with_a_value(args: Args) {}

#[kernel(threads = 128, threads = 256)]
fn twice(args: Args) {}

#[kernel(threads = 128, grid = 4)]
fn unknown(args: Args) {}

#[kernel(128)]
fn no_name(args: Args) {}

fn main() {}
