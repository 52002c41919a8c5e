//! A state is spent by the step that takes it.
use bulk::{Loading, Loads, Ring, Source};
use epoxide_dsl::prelude::*;
use wait::BulkAccess;

fn load_twice(ring: Ring<1, Loads>, from: Global<u8>) {
    let _first = ring.load(from, 16);
    let _second = ring.load(from, 16);
}

fn store_after_sending(source: Source<1>, free: &BulkAccess, to: Symmetric<u8>) {
    let _ring = source.send();
    source.store(free, 0, to, 16);
}

fn wait_twice(loading: Loading<1>) {
    let _first = loading.wait();
    let _second = loading.wait();
}

fn open_twice_in_a_turn(ring: Ring<2>) {
    let _first = ring.open();
    let _second = ring.open();
}

fn file_twice(stopped: fault::Stopped, watch: &wait::Watch) {
    watch.file(stopped);
    watch.file(stopped);
}

fn main() {}
