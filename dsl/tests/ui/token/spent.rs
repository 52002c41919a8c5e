//! A token is spent by the step that takes it.
use bulk::{Free, Outbox, Source, Stage, Turn};
use epoxide_dsl::prelude::*;

fn load_twice(stage: &Stage, free: Free, from: Global<u8>) {
    let _first = stage.load(free, from, 16);
    let _second = stage.load(free, from, 16);
}

fn store_after_recycling(stage: &Stage, source: Source, to: Symmetric<u8>) {
    let _free = stage.recycle(source);
    stage.store(&source, 0, to, 16);
}

fn wait_twice(stage: &mut Stage, free: Free, from: Global<u8>) {
    let loading = stage.load(free, from, 16);
    let _first = stage.wait(loading);
    let _second = stage.wait(loading);
}

fn open_twice_in_a_turn(outbox: &Outbox, turn: Turn) {
    let _first = outbox.open(turn);
    let _second = outbox.open(turn);
}

fn main() {}
