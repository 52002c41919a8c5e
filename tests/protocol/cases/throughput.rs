//! Dispatch, dispatch again, combine and lend, where rows lie by source.
use super::super::check::{breaks, holds};
use super::super::laws::{ENDS, NOT_OVERWRITTEN, OWN, TOGETHER};
use super::super::stream::{Places, Routes, ops};
use super::super::throughput::Variant;
use super::super::world::Setup;

/// All that follows on what, of a dispatch, a replay, a combine, and a combine that is lent.
const MIXED: &str = "D C D D C R C L C R R D C C L C D R D C";
/// Two row slots, with a routing of each and with routings in each other's.
const SLOTS: &str = "D0:0 D1:1 C0:0 R0:1 C1:1 C0:1 D1:0 R0:0 C1:0 L1 C0:0 D0:0 C0:0";

#[test]
fn operations_in_any_order_hold() {
    for ranks in [2, 3] {
        for routes in Routes::EACH {
            for text in [MIXED, SLOTS] {
                let variant = Variant { routes, ..Variant::new(ranks, ops(text)) };
                holds(&format!("{text}: {ranks} ranks, {routes:?}"), variant.programs());
            }
        }
    }
}

/// Every sequence of so many operations that begins with a dispatch.
fn sequences(length: u32) -> impl Iterator<Item = String> {
    let letters = ["D", "R", "C", "C L"];
    (0..4_usize.pow(length - 1)).map(move |number| {
        let rest = (0..length - 1).map(|at| letters[number / 4_usize.pow(at) % 4]);
        std::iter::once("D").chain(rest).collect::<Vec<_>>().join(" ")
    })
}

#[test]
fn all_short_sequences_hold() {
    for (ranks, length) in [(2, 5), (3, 3)] {
        for text in sequences(length) {
            holds(&format!("{text}: {ranks} ranks"), Variant::new(ranks, ops(&text)).programs());
        }
    }
}

#[test]
fn blocks_of_a_grid_hold() {
    for text in ["D C R C", "D D C L C"] {
        holds(&format!("{text}: 2 blocks"), Variant { blocks: 2, ..Variant::new(2, ops(text)) }.programs());
    }
}

/// Each wait, and what is broken without it.
#[test]
fn each_wait_but_one_is_needed() {
    let needed = [
        (&["entry, in dispatch again"][..], NOT_OVERWRITTEN),
        (&["entry, in combine"], OWN),
        (&["counts"], OWN),
        (&["landed"], OWN),
        (&["done"], OWN),
    ];
    for ranks in [2, 3] {
        let without = |without| {
            let setup = Setup { without, ..Setup::WINDOW };
            Variant { setup, ..Variant::new(ranks, ops(MIXED)) }.programs()
        };
        for (waits, law) in needed {
            breaks(&format!("without {waits:?}, {ranks} ranks"), without(waits), law);
        }
        // In a dispatch every rank's counts are waited for, which it tells no earlier than that it has entered. Entry words say what they do not: in
        // which operation it is, and with which configuration.
        holds(&format!("a dispatch without entry words, {ranks} ranks"), without(&["entry, in dispatch"]));
    }
}

#[test]
fn places_of_words() {
    for ranks in [2, 3] {
        let with = |places| Variant { places, ..Variant::new(ranks, ops(MIXED)) }.programs();
        let two = Places::WINDOW;
        breaks(&format!("one entry word, {ranks} ranks"), with(Places { entry: 1, ..two }), ENDS);
        breaks(&format!("one row of counts, {ranks} ranks"), with(Places { counts: 1, ..two }), OWN);
        holds(&format!("one landed word, {ranks} ranks"), with(Places { landed: 1, ..two }));
    }
}

#[test]
fn outputs_are_written_again_only_behind_a_lend_or_a_dispatch() {
    for ranks in [2, 3] {
        breaks(&format!("not lent, {ranks} ranks"), Variant::new(ranks, ops("D C X C")).programs(), OWN);
        holds(&format!("lent, {ranks} ranks"), Variant::new(ranks, ops("D C L C")).programs());
    }
}

/// Who has no row for a rank has a word for it.
#[test]
fn a_combine_meets_all_ranks() {
    for ranks in [2, 3] {
        for routes in [Routes::Ring, Routes::Silent] {
            let variant = Variant { routes, meets_owners: true, ..Variant::new(ranks, ops("D C D C D C")) };
            breaks(&format!("meets owners, {routes:?}, {ranks} ranks"), variant.programs(), TOGETHER);
            // A dispatch waits for all ranks' counts before.
            let variant = Variant { routes, lands_with_rows: true, ..Variant::new(ranks, ops("D C D C D C")) };
            holds(&format!("landed words of ranks with rows, {routes:?}, {ranks} ranks"), variant.programs());
        }
    }
}
