//! One item, eight mistakes, one compile.
use epoxide_dsl::prelude::*;

#[kernel(threads = 33, blocks_per_sm = 64, grid = 2)]
pub async unsafe fn eight<T>(args: &T, n: u32) -> u32 {
    n
}

fn main() {}
