//! Documentation goes on the descriptor, so that the lint for what lacks it works on kernels.
#![deny(missing_docs)]
use epoxide_dsl::prelude::*;

/// Documented.
#[kernel(threads = 32)]
pub fn documented(n: u64) {
    let _ = n;
}

#[kernel(threads = 32)]
pub fn undocumented(n: u64) {
    let _ = n;
}

fn main() {}
