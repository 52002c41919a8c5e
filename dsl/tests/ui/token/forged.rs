//! Nobody makes a token but the collective that earns it.
use epoxide_dsl::prelude::*;

fn free() -> bulk::Free {
    bulk::Free(())
}

fn landed() -> bulk::Landed {
    bulk::Landed(())
}

fn main() {}
