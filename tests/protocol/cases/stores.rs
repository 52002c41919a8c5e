//! Rows too arrive later than they were stored: what is released behind them, and what need not be.
use super::super::by_expert;
use super::super::check::{breaks, holds};
use super::super::laws::OWN;
use super::super::low_latency::Move::{Collect, Read, Receive, Return, Send};
use super::super::low_latency::{self, Combine};
use super::super::machine::Memory;
use super::super::step::Order::Relaxed;
use super::super::stream::ops;
use super::super::throughput::Variant;
use super::super::world::Setup;

const SETUP: Setup = Setup { memory: Memory::All, ..Setup::WINDOW };

#[test]
fn words_that_publish_are_released() {
    let base = Variant { setup: SETUP, ..Variant::new(2, ops("D C R C L C D C")) };
    holds("throughput", base.programs());
    breaks("landed words relaxed", Variant { landed_order: Relaxed, ..base.clone() }.programs(), OWN);
}

/// Entry words are relaxed: they speak of what was before their kernel, and what a kernel stored has arrived when it ends.
#[test]
fn entry_words_rest_on_the_ends_of_kernels() {
    let unsettled = Setup { ends_settled: false, ..SETUP };
    let base = Variant { setup: unsettled, ..Variant::new(2, ops("D C R C L C D C")) };
    breaks("expert outputs are on their way when their kernel ends", base.programs(), OWN);
}

#[test]
fn copies_are_complete_when_a_block_counts_itself_out() {
    let base = Variant { setup: SETUP, blocks: 2, ..Variant::new(2, ops("D")) };
    holds("two blocks", base.programs());
    breaks("blocks leave with copies on their way", Variant { drains: false, ..base }.programs(), OWN);
}

#[test]
fn block_words_are_released() {
    let base = by_expert::Variant { setup: SETUP, ..by_expert::Variant::new(2, 1, ops("D C")) };
    holds("by expert", base.programs());
    breaks("block words relaxed", by_expert::Variant { block_order: Relaxed, ..base }.programs(), OWN);
}

#[test]
fn of_low_latency_the_landed_and_combined_words_are_released() {
    let pair = [Send(0), Receive(0), Read(0), Return(0), Collect(0)];
    for combine in Combine::EACH {
        let moves = [&pair[..], &[Send(0), Receive(0), Read(0)], &pair].concat();
        let base = low_latency::Variant { setup: SETUP, ..low_latency::Variant::new(2, combine, &moves) };
        // With relaxed entry words: they come behind reads alone, which are over when the kernel begins.
        holds(&format!("{combine:?}"), base.programs());
        let landed = low_latency::Variant { landed_order: Relaxed, ..base.clone() };
        breaks(&format!("{combine:?}, landed words relaxed"), landed.programs(), OWN);
        let combined = low_latency::Variant { combined_order: Relaxed, ..base };
        breaks(&format!("{combine:?}, combined words relaxed"), combined.programs(), OWN);
    }
}
