//! What a wait proves comes out of its outcome, and of nothing else.
use epoxide_dsl::prelude::*;

fn proof_of_nothing(watch: &wait::Watch, counters: grid::GridCounters) -> wait::BulkAccess {
    counters.sync(watch, 1).for_bulk_copies()
}

fn main() {}
