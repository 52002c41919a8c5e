//! Tokens are neither copied nor made of nothing.
use epoxide_dsl::prelude::*;

fn copied(source: &bulk::Source<1>) -> bulk::Source<1> {
    source.clone()
}

fn made_of_nothing() -> bulk::Loading<1> {
    Default::default()
}

fn landed_again(landed: &bulk::Landed) -> bulk::Landed {
    landed.again()
}

fn stopped() -> fault::Stopped {
    fault::Stopped { found: fault::Fault::NONE }
}

fn main() {}
