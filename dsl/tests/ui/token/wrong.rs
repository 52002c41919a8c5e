//! Every step of a bulk copy takes the token that the step before returned, and no other.
use bulk::{Editable, Free, Loading, Outbox, Source, Stage, Turn};
use epoxide_dsl::prelude::*;

fn store_of_what_is_not_sealed(stage: &Stage, free: Free, to: Symmetric<u8>) {
    stage.store(&free, 0, to, 16);
}

fn store_of_what_is_still_loading(stage: &Stage, free: Free, from: Global<u8>, to: Symmetric<u8>) {
    let loading = stage.load(free, from, 16);
    stage.store(&loading, 0, to, 16);
}

fn load_over_what_is_still_read(stage: &Stage, source: Source, from: Global<u8>) -> Loading {
    stage.load(source, from, 16)
}

fn seal_over_what_is_still_read(stage: &Stage, source: Source) -> Source {
    stage.seal(source)
}

fn recycle_what_is_still_loading(stage: &Stage, loading: Loading) -> Free {
    stage.recycle(loading)
}

fn flag_after_a_read_wait(counters: grid::GridCounters, stage: &Stage, source: Source) {
    let free = stage.recycle(source);
    let _ = counters.last_out(free);
}

fn flag_of_one_block_for_the_grid(flag: Symmetric<u64>) {
    let landed = bulk::land();
    landed.publish(flag, 1);
}

fn flag_of_a_block_that_is_not_the_last(counters: grid::GridCounters, flag: Symmetric<u64>) {
    let landed = bulk::land();
    counters.last_out(landed).publish(flag, 1);
}

fn bulk_store_to_memory_of_no_window(stage: &Stage, source: Source, to: Global<u8>) {
    stage.store(&source, 0, to, 16);
}

fn outbox_stored_before_it_is_sealed(outbox: &Outbox, turn: Turn, to: Symmetric<u8>) {
    let editable = outbox.open(turn);
    outbox.store(&editable, 0, to, 16);
}

fn outbox_sent_before_it_is_sealed(outbox: &mut Outbox, editable: Editable) -> Turn {
    outbox.send(editable)
}

fn outbox_opened_before_it_is_sent(outbox: &Outbox, source: Source) -> Editable {
    outbox.open(source)
}

fn main() {}
