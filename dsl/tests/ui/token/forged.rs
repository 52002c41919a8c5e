//! Nobody makes a token but the collective that earns it.
use epoxide_dsl::prelude::*;

fn source(ring: bulk::Ring<1>) -> bulk::Source<1> {
    bulk::Source(ring)
}

fn landed() -> bulk::Landed {
    bulk::Landed(())
}

fn free() -> wait::BulkAccess {
    wait::BulkAccess(())
}

fn uniform() -> block::Uniform<bool> {
    block::Uniform(true)
}

fn main() {}
