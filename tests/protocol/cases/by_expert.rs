//! Dispatch, dispatch again, combine and lend, where rows lie by expert.
use super::super::by_expert::Variant;
use super::super::check::{breaks, holds};
use super::super::laws::{ENDS, NOT_OVERWRITTEN, OWN};
use super::super::stream::{Places, Routes, ops};
use super::super::world::Setup;

const MIXED: &str = "D C C L C R R D C";

#[test]
fn operations_in_any_order_hold() {
    for routes in Routes::EACH {
        for (ranks, text) in [(2, "D C D R C C L C R D C"), (3, MIXED)] {
            let variant = Variant { routes, ..Variant::new(ranks, 1, ops(text)) };
            holds(&format!("{text}: {ranks} ranks, {routes:?}"), variant.programs());
        }
    }
}

#[test]
fn blocks_tell_blocks_of_their_number() {
    for (ranks, text) in [(2, MIXED), (3, "D")] {
        holds(&format!("{text}: {ranks} ranks, 2 blocks"), Variant::new(ranks, 2, ops(text)).programs());
    }
}

#[test]
fn each_wait_but_one_is_needed() {
    let needed = [
        (&["entry, in dispatch again"][..], NOT_OVERWRITTEN),
        (&["entry, in combine"], OWN),
        (&["counts"], OWN),
        (&["landed"], OWN),
        (&["reduced"], OWN),
        (&["done"], OWN),
    ];
    for ranks in [2, 3] {
        let without = |without| {
            let setup = Setup { without, ..Setup::WINDOW };
            Variant { setup, ..Variant::new(ranks, 1, ops(MIXED)) }.programs()
        };
        for (waits, law) in needed {
            breaks(&format!("without {waits:?}, {ranks} ranks"), without(waits), law);
        }
        holds(&format!("a dispatch without entry words, {ranks} ranks"), without(&["entry, in dispatch"]));
    }
}

#[test]
fn places_of_words() {
    for ranks in [2, 3] {
        let places = Places { block: 1, ..Places::WINDOW };
        let variant = Variant { places, ..Variant::new(ranks, 1, ops(MIXED)) };
        holds(&format!("one block word, {ranks} ranks"), variant.programs());
    }
}

#[test]
fn handles_and_sums_are_written_only_when_all_are_in() {
    for ranks in [2, 3] {
        let base = Variant::new(ranks, 1, ops(MIXED));
        let handles = Variant { handles_early: true, ..base.clone() };
        breaks(&format!("handles written while it counts, {ranks} ranks"), handles.programs(), OWN);
        let sums = Variant { sums_early: true, ..base };
        breaks(&format!("sums written before all have entered, {ranks} ranks"), sums.programs(), OWN);
    }
}

/// Who sees both words of a place by the time that his own rows are sent need not read the handle.
#[test]
fn places_are_told_ahead_of_rows() {
    for (ranks, blocks, text) in [(2, 1, "D C D R C D C C C D C"), (2, 2, "D")] {
        for routes in [Routes::All, Routes::Ring] {
            let base = Variant { routes, told_by: 2, ..Variant::new(ranks, blocks, ops(text)) };
            holds(&format!("{text}: {ranks} ranks, {blocks} blocks, {routes:?}"), base.programs());
        }
        let one = Variant { told_by: 1, ..Variant::new(ranks, blocks, ops(text)) };
        breaks(&format!("one word of two proves them, {ranks} ranks, {blocks} blocks"), one.programs(), OWN);
        // A word that is overwritten proves nothing any more: then the handle is read.
        let early = Variant { told_by: 2, tells_early: true, ..Variant::new(ranks, blocks, ops(text)) };
        holds(&format!("{text}: told before all are in, {ranks} ranks, {blocks} blocks"), early.programs());
    }
}

#[test]
fn all_blocks_come() {
    for blocks in [1, 2] {
        let first = Variant { waits_first: true, ..Variant::new(2, blocks, ops("D C")) };
        breaks(&format!("words are waited for before the own are posted, {blocks} blocks"), first.programs(), ENDS);
    }
    let missing = Variant { missing: Some((0, 1)), ..Variant::new(2, 2, ops("D C")) };
    breaks("a rank has one block, the other two", missing.programs(), ENDS);
}

/// A combine waits for all ranks' entry words before.
#[test]
fn owners_alone_tell_that_they_have_summed() {
    for ranks in [2, 3] {
        for routes in [Routes::Ring, Routes::Silent] {
            let variant = Variant { routes, reduced_of_owners: true, ..Variant::new(ranks, 1, ops(MIXED)) };
            holds(&format!("reduced words of owners, {routes:?}, {ranks} ranks"), variant.programs());
        }
    }
}
