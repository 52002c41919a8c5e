//! Every step of a bulk copy is one of the state that the step before returned, and of no other.
use bulk::{Editable, Loading, Loads, Ring, Source};
use epoxide_dsl::prelude::*;
use wait::{Acquired, BulkAccess};

fn store_of_what_is_not_filled(ring: Ring<1>, free: &BulkAccess, to: Symmetric<u8>) {
    ring.store(free, 0, to, 16);
}

fn store_of_what_is_still_loading(ring: Ring<1, Loads>, free: &BulkAccess, from: Global<u8>, to: Symmetric<u8>) {
    ring.load(from, 16).store(free, 0, to, 16);
}

fn store_of_what_is_not_sealed(editable: Editable<2>, free: &BulkAccess, to: Symmetric<u8>) {
    editable.store(free, 0, to, 16);
}

fn load_over_what_is_still_read(source: Source<1, Loads>, from: Global<u8>) -> Loading<1> {
    source.load(from, 16)
}

fn load_without_an_mbarrier(ring: Ring<1>, from: Global<u8>) -> Loading<1> {
    ring.load(from, 16)
}

fn edit_what_is_still_read(source: Source<2>) -> Editable<2> {
    source.open()
}

fn send_what_is_still_loading(loading: Loading<1>) -> Ring<1, Loads> {
    loading.send()
}

fn send_before_it_is_sealed(editable: Editable<2>) -> Ring<2> {
    editable.send()
}

fn store_to_a_peer_that_nobody_asked(source: &Source<1>, acquired: &Acquired, to: Symmetric<u8>) {
    source.store(acquired, 0, to, 16);
}

fn store_to_memory_of_no_window(source: &Source<1>, free: &BulkAccess, to: Global<u8>) {
    source.store(free, 0, to, 16);
}

fn store_to_a_peer_as_if_it_were_here(source: &Source<1>, to: Symmetric<u8>) {
    source.store_here(0, to, 16);
}

fn another_stage(of_two: Source<2>) -> Ring<1> {
    of_two.send()
}

fn flag_after_a_turn(counters: grid::GridCounters, source: Source<1>) {
    let ring = source.send();
    let _ = counters.last_out(ring, false);
}

fn flag_of_one_block_for_the_grid(flag: Symmetric<u64>) {
    let landed = bulk::land();
    landed.publish(flag, 1);
}

fn flag_of_a_block_that_is_not_the_last(counters: grid::GridCounters, flag: Symmetric<u64>) {
    let landed = bulk::land();
    counters.last_out(landed, false).publish(flag, 1);
}

fn flag_of_a_grid_of_which_a_block_has_stopped(last: &grid::LastOut, flag: Symmetric<u64>) {
    last.publish(flag, 1);
}

fn collective_in_a_branch_that_is_not_uniform(p: bool) {
    if block::any(p) {
        block::sync();
    }
}

fn main() {}
