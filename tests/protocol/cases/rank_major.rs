//! The operations on rows in fixed places: what is enough, and what each wait, word and order is for.
use super::super::check::{breaks, holds};
use super::super::laws::{ENDS, NOT_OVERWRITTEN, OWN};
use super::super::machine::Memory;
use super::super::rank_major::{Free, Outputs, Parts, Variant, ops};
use super::super::step::Order::{Relaxed, Release};
use super::super::stream::Routes;
use super::super::world::{Says, Setup};

const RANKS: [u8; 2] = [2, 3];

/// All that comes before a dispatch: nothing, a combine that frees the slot, dispatches that are given up, rows that are kept, a dispatch again.
const MIXED: &str = "D C D C D D A C E K L D C A C D";

/// Blocks: one for all, one that sends and one that receives, two that send, and others in each operation.
const GRIDS: [&[u8]; 3] = [&[1], &[2], &[1, 2]];

fn each(of: impl Fn(Variant, &str)) {
    for ranks in RANKS {
        of(Variant::new(ranks, MIXED), &format!("{ranks} ranks"));
    }
}

#[test]
fn operations_in_any_order_hold() {
    for ranks in RANKS {
        for routes in Routes::EACH {
            for idle in [false, true] {
                let variant = Variant { routes, idle, ..Variant::new(ranks, MIXED) };
                holds(&format!("{ranks} ranks, {routes:?}, idle {idle}"), variant.programs());
            }
        }
    }
}

#[test]
fn blocks_of_a_grid_hold() {
    for grids in GRIDS {
        for text in ["D C D D C D", "E K L D C", "D C A C D"] {
            let variant = Variant { grids, ..Variant::new(2, text) };
            holds(&format!("{text}: grids {grids:?}"), variant.programs());
        }
    }
    // Two blocks that send.
    for (text, idle) in [("D C D", true), ("D D", false)] {
        let variant = Variant { grids: &[3], tokens: 2, idle, ..Variant::new(2, text) };
        holds(&format!("{text}: two blocks send, idle {idle}"), variant.programs());
    }
}

#[test]
fn each_wait_but_one_is_needed() {
    each(|base, name| {
        let without = |without| {
            let setup = Setup { without, ..Setup::WINDOW };
            Variant { setup, ..base.clone() }.programs()
        };
        for (wait, law) in [
            (&["entry, before rows"][..], NOT_OVERWRITTEN),
            (&["tokens"], OWN),
            (&["selections"], OWN),
            (&["landings"], OWN),
            (&["entry, in combine"], OWN),
            (&["entry, in dispatch again"], NOT_OVERWRITTEN),
        ] {
            breaks(&format!("{name}: without {wait:?}"), without(wait), law);
        }
        // Landing counters say of everyone that it has come so far. Entry words say besides in which operation it is.
        holds(&format!("{name}: no entry words before a dispatch is complete"), without(&["entry, before the end"]));
    });
}

/// Whether the slot is free says the epoch of the combine that freed it.
#[test]
fn a_slot_is_free_behind_the_combine_before() {
    each(|base, name| {
        let ever = Variant { free: Free::Ever, ..base.clone() };
        breaks(&format!("{name}: any combine of before frees the slot"), ever.programs(), NOT_OVERWRITTEN);
        let never = Variant { free: Free::Never, ..base.clone() };
        holds(&format!("{name}: no combine frees the slot"), never.programs());
        let keeping = Variant { keeping_frees: true, ..base.clone() };
        breaks(&format!("{name}: a combine that keeps rows frees the slot"), keeping.programs(), NOT_OVERWRITTEN);
        let early = Variant { tells_early: true, ..base };
        breaks(&format!("{name}: selections are told before the slot is free"), early.programs(), OWN);
    });
}

/// Blocks of the launches before are out, at whatever rank: their parts sum to the whole, in grids of any size.
#[test]
fn parts_of_landings_sum_to_the_whole() {
    for grids in [&[2][..], &[2, 3], &[3, 2]] {
        let base = Variant { grids, ..Variant::new(2, "D C D") };
        holds(&format!("grids {grids:?}: parts of a whole"), base.programs());
        let each = Variant { parts: Parts::OneEach, ..base };
        if grids.len() == 1 {
            holds(&format!("grids {grids:?}: one of each block"), each.programs());
        } else {
            breaks(&format!("grids {grids:?}: one of each block"), each.programs(), ENDS);
        }
    }
}

/// Where packed rows are summed in the combine: whoever writes a peer's sums has met nobody in it, and who posts the entry words has seen all blocks.
#[test]
fn sums_that_blocks_write_hold_behind_all_of_them() {
    for (ranks, grids, text) in [
        (2, &[1][..], MIXED),
        (3, &[1], MIXED),
        (2, &[2], "D C D D C D"),
        (2, &[2], "E K L D C"),
        (2, &[2], "D C A C D"),
        (2, &[1, 2], "D C D C"),
    ] {
        let base = Variant { grids, outputs: Outputs::ByBlocks, ..Variant::new(ranks, text) };
        let name = format!("{ranks} ranks, {text}: grids {grids:?}, sums in combines");
        holds(&name, base.programs());
        if grids != [1] {
            let unmet = Variant { outputs: Outputs::ByBlocksUnmet, ..base.clone() };
            breaks(&format!("{name}, posted behind one block's"), unmet.programs(), OWN);
        }
        let setup = Setup { without: &["entry, in combine"], ..Setup::WINDOW };
        breaks(&format!("{name}, no entry words"), Variant { setup, ..base }.programs(), OWN);
    }
}

/// The numbers advance when the receiving block is done: its own rank's landings say that all other blocks have read them.
#[test]
fn a_receiving_block_waits_for_its_own_rank() {
    // Two that send, of which one has no token: it tells nothing else.
    let base = Variant { grids: &[3], ..Variant::new(2, "D D") };
    let alone = Variant { awaits_itself: false, ..base };
    breaks("a receiving block waits for its peers alone", alone.programs(), NOT_OVERWRITTEN);
}

#[test]
fn places_of_words() {
    each(|base, name| {
        breaks(&format!("{name}: one entry word"), Variant { places: 1, ..base }.programs(), ENDS);
    });
}

/// Token words carry half of a number and lie in one place: whoever dispatches writes them. A token's words are not written by who has fewer tokens.
#[test]
fn words_that_are_not_always_written_carry_the_whole_number() {
    for ranks in RANKS {
        // From every number on but that of which the half is 0, as memory is: the first dispatch of a buffer is number 1.
        for numbers in [0, 1, 2, 4, 5, 6] {
            let setup = Setup { numbers, modulus: 4, halves: &[Says::Entry, Says::Tokens], ..Setup::WINDOW };
            let variant = Variant { setup, idle: true, ..Variant::new(ranks, "D C D D D C D C D") };
            holds(&format!("{ranks} ranks, behind {numbers}"), variant.programs());
        }
        let setup = Setup { modulus: 2, halves: &[Says::Selection], ..Setup::WINDOW };
        let variant = Variant { setup, idle: true, ..Variant::new(ranks, "D D D D D") };
        breaks(&format!("{ranks} ranks: selection words carry half"), variant.programs(), OWN);
    }
}

/// Rows, and what words publish, arrive later than they were stored.
#[test]
fn words_that_publish_are_released() {
    let setup = Setup { memory: Memory::All, ..Setup::WINDOW };
    let base = Variant { setup, idle: true, ..Variant::new(2, "D C D D C") };
    holds("a landing without rows is relaxed, and so are selections", base.programs());
    let rows = Variant { landing_order: [Relaxed, Relaxed], ..base.clone() };
    breaks("landings of rows relaxed", rows.programs(), OWN);
    // Entry words are relaxed. Those of a combine speak of what experts stored, which has arrived when their kernel ends.
    let unsettled = Setup { ends_settled: false, ..setup };
    let combine = Variant { setup: unsettled, ..base.clone() };
    breaks("expert outputs are on their way when their kernel ends", combine.programs(), OWN);
    let released = Variant { combine_order: Some(Release), ..combine };
    holds("entry words of a combine are released behind them", released.programs());
    // Who sums packed rows in the same kernel releases them.
    let packed = Variant { outputs: Outputs::ByBlocks, ..base.clone() };
    holds("packed", packed.programs());
    let relaxed = Variant { combine_order: Some(Relaxed), ..packed };
    breaks("entry words behind sums relaxed", relaxed.programs(), OWN);
    let bad = Variant { bad: true, ..Variant { setup, ..Variant::new(2, "D") } };
    holds("a bad selection is released behind its index", bad.programs());
    breaks("a bad selection's word is relaxed", Variant { bad_order: Relaxed, ..bad }.programs(), OWN);
}

/// Rank 0 dispatches by the routing of before where the others dispatch anew, into a slot that is free.
#[test]
fn ranks_out_of_step_stop() {
    for ranks in RANKS {
        for grids in [&[1][..], &[2]] {
            let ops = vec![ops("D C A"), ops("D C D")];
            let base = Variant { ops, grids, out_of_step: Some(true), ..Variant::new(ranks, "") };
            let name = format!("{ranks} ranks, grids {grids:?}");
            _ = holds(&format!("{name}: who waits for token words looks at entry words"), base.programs());
            let blind = Variant { out_of_step: Some(false), ..base.clone() };
            breaks(&format!("{name}: who waits for token words looks at nothing else"), blind.programs(), ENDS);
            let setup = Setup { without: &["entry, before the end"], ..Setup::WINDOW };
            let apart = Variant { setup, ..base };
            breaks(&format!("{name}: no entry words before a dispatch is complete"), apart.programs(), ENDS);
        }
    }
}
