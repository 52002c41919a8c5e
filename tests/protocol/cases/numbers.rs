//! Numbers of which words carry half, so that they come again: after 2^32 operations, and here after a few.
use super::super::by_expert;
use super::super::check::{breaks, holds};
use super::super::laws::OWN;
use super::super::low_latency::Move::{Collect, Read, Receive, Return, Send};
use super::super::low_latency::{self, Combine};
use super::super::stream::ops;
use super::super::throughput::Variant;
use super::super::world::{Says, Setup};

const MIXED: &str = "D C D D C R C L C R R D C C L C D R D C";

/// Words that carry half of their number, which comes again after `modulus`.
fn halves(modulus: u16, halves: &'static [Says]) -> Setup {
    Setup { modulus, halves, ..Setup::WINDOW }
}

const STAMPED: &[Says] = &[Says::Entry, Says::Counts];

/// Each word of a kind is written with each second number of that kind, so what it holds is of the number two before.
#[test]
fn words_that_are_always_written_may_carry_half() {
    for ranks in [2, 3] {
        for modulus in [4, 6] {
            // From every number on.
            for numbers in 0..modulus {
                let setup = Setup { numbers, ..halves(modulus, STAMPED) };
                let variant = Variant { setup, ..Variant::new(ranks, ops(MIXED)) };
                holds(&format!("modulo {modulus}, behind {numbers}, {ranks} ranks"), variant.programs());
            }
        }
        let two = Variant { setup: halves(2, STAMPED), ..Variant::new(ranks, ops(MIXED)) };
        breaks(&format!("modulo 2, {ranks} ranks"), two.programs(), OWN);
    }
}

/// The first number may be one whose half is 0, as memory is.
#[test]
fn words_of_even_numbers_begin_with_an_odd_stamp() {
    for ranks in [2, 3] {
        let setup = Setup { numbers: 3, fills_even: false, ..halves(4, STAMPED) };
        let zeros = Variant { setup, ..Variant::new(ranks, ops("D C")) };
        breaks(&format!("filled with 0, {ranks} ranks"), zeros.programs(), OWN);
    }
}

/// Four operations from one dispatch to the next, of which none writes the word.
#[test]
fn words_that_are_not_always_written_carry_the_whole_number() {
    for ranks in [2, 3] {
        let base = Variant { counts_by_epoch: true, ..Variant::new(ranks, ops("D C C C D C")) };
        let counts = Variant { setup: halves(4, STAMPED), ..base.clone() };
        breaks(&format!("counts carry half of the epoch, {ranks} ranks"), counts.programs(), OWN);
        holds(&format!("counts carry the epoch, {ranks} ranks"), base.programs());
        let landed = Variant { setup: halves(4, &[Says::Landed]), ..Variant::new(ranks, ops("D R C C C R C")) };
        breaks(&format!("landed words carry half, {ranks} ranks"), landed.programs(), OWN);
        let done = Variant { setup: halves(4, &[Says::Done]), ..Variant::new(ranks, ops("D C D D D C L C")) };
        // They are counted by combines, each of which writes them.
        holds(&format!("done counters carry half, {ranks} ranks"), done.programs());
    }
}

/// Combines write none, nor do blocks without tokens those of rows.
#[test]
fn place_words_carry_what_does_not_come_again() {
    let ranks = 2;
    let base = by_expert::Variant { told_by: 2, ..by_expert::Variant::new(ranks, 1, ops("D C C C D")) };
    let half = by_expert::Variant { setup: halves(4, &[Says::Place]), ..base.clone() };
    breaks(&format!("place words carry half of the epoch, {ranks} ranks"), half.programs(), OWN);
    holds(&format!("place words carry the epoch, {ranks} ranks"), base.programs());
}

/// In low latency a slot's number counts dispatches and combines.
#[test]
fn words_of_a_slot_carry_half_if_both_operations_write_them() {
    let pair = [Send(0), Receive(0), Read(0), Return(0), Collect(0)];
    let again = [Return(0), Collect(0)];
    let moves = [&pair[..], &again, &again, &pair].concat();
    for ranks in [2, 3] {
        for combine in Combine::EACH {
            let base = low_latency::Variant::new(ranks, combine, &moves);
            let own = low_latency::Variant { setup: halves(4, &[Says::Landed]), ..base.clone() };
            breaks(&format!("{combine:?}: landed words carry half, {ranks} ranks"), own.programs(), OWN);
            let setup = halves(4, &[Says::Entry, Says::Landed]);
            let shared = low_latency::Variant { setup, shared: true, ..base };
            holds(&format!("{combine:?}: words of both carry half, {ranks} ranks"), shared.programs());
        }
    }
}
