//! The outcome of a wait is looked at, and what it proves comes out of it alone.
#![deny(unused_must_use)]
use epoxide_dsl::prelude::*;

fn unread(watch: &wait::Watch, counters: grid::GridCounters) {
    counters.sync(watch, 1);
}

fn proof_of_nothing(watch: &wait::Watch, counters: grid::GridCounters) -> wait::BulkReadable {
    counters.sync(watch, 1).for_bulk_loads()
}

fn main() {}
