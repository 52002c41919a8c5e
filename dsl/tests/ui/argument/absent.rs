//! No address is made without `from_raw`, and none is calculated from an absent one.
use epoxide_dsl::prelude::*;

fn made_of_nothing() -> Global<u64> {
    Global::null()
}

fn calculated_from_none(x: Optional<u64>) -> Global<u64> {
    x.at(0x7000_0000_0000u64)
}

fn loaded_from_none(x: Optional<u64>) -> u64 {
    x.load_weak(3)
}

fn main() {}
