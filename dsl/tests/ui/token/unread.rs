//! The outcome of a wait is looked at.
#![deny(unused_must_use)]
use epoxide_dsl::prelude::*;

fn unread(watch: &wait::Watch, counters: grid::GridCounters) {
    counters.sync(watch, 1);
}

fn main() {
    let _ = unread;
}
