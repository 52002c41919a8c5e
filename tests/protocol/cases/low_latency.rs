//! The low-latency mode: which edges it needs, and that they are enough.
use super::super::check::{breaks, holds};
use super::super::laws::{ENDS, NOT_OVERWRITTEN, OWN, TOGETHER};
use super::super::low_latency::Combine::{Pull, PullOutputs, Push};
use super::super::low_latency::Move::{self, Collect, Read, Receive, Return, Send};
use super::super::low_latency::{Combine, Decides, Variant, Whose};
use super::super::stream::Routes;
use super::super::world::Setup;

const RANKS: [u8; 2] = [2, 3];

/// A dispatch, its experts and its combine, in a slot.
const fn pair(slot: u8) -> [Move; 5] {
    [Send(slot), Receive(slot), Read(slot), Return(slot), Collect(slot)]
}

/// A dispatch whose rows are read, in slot 0.
const DISPATCH: [Move; 3] = [Send(0), Receive(0), Read(0)];

/// Pairs, with all between them that makes a slot not known to be free.
fn mixed() -> Vec<Move> {
    let again = [Return(0), Collect(0)];
    [&pair(0)[..], &pair(0), &DISPATCH, &DISPATCH, &pair(0), &again, &pair(0)].concat()
}

/// Two micro-batches in two slots, their halves side by side.
fn side_by_side() -> Vec<Move> {
    let sends = [Send(0), Send(1), Receive(0), Read(0), Return(0)];
    let layer = [&sends[..], &[Receive(1), Read(1), Return(1), Collect(0), Collect(1)]].concat();
    [layer.clone(), layer].concat()
}

/// Two micro-batches in two slots, of which one is sent again before the other is received.
fn staggered() -> Vec<Move> {
    let rest = |slot| [Receive(slot), Read(slot), Return(slot), Collect(slot)];
    [&[Send(0), Send(1)][..], &rest(0), &[Send(0)], &rest(1), &[Send(1)], &rest(0), &rest(1)].concat()
}

fn each(of: impl Fn(u8, Combine, &str)) {
    for ranks in RANKS {
        for combine in Combine::EACH {
            of(ranks, combine, &format!("{combine:?}, {ranks} ranks"));
        }
    }
}

#[test]
fn one_word_from_every_rank_each_way_is_enough() {
    each(|ranks, combine, name| {
        for (sequence, moves) in [("mixed", mixed()), ("side by side", side_by_side()), ("staggered", staggered())] {
            for routes in Routes::EACH {
                // Places of words are by slot, so one of each is enough.
                for places in [1, 2] {
                    let variant = Variant { routes, places, ..Variant::new(ranks, combine, &moves) };
                    holds(&format!("{sequence}: {name}, {routes:?}, {places} places"), variant.programs());
                }
            }
        }
    });
}

#[test]
fn each_wait_is_needed() {
    each(|ranks, combine, name| {
        let without = |without| {
            let setup = Setup { without, ..Setup::WINDOW };
            Variant { setup, ..Variant::new(ranks, combine, &mixed()) }.programs()
        };
        breaks(&format!("{name}: no entry words in a dispatch"), without(&["entry, in dispatch"]), NOT_OVERWRITTEN);
        breaks(&format!("{name}: no landed words"), without(&["landed"]), OWN);
        breaks(&format!("{name}: no combined words"), without(&["combined"]), OWN);
        let name = format!("{name}: no entry words in a combine");
        match combine {
            Push | Pull => breaks(&name, without(&["entry, in combine"]), NOT_OVERWRITTEN),
            // Who combines writes nothing that a peer reads.
            PullOutputs => _ = holds(&name, without(&["entry, in combine"])),
        }
    });
}

#[test]
fn readers_come_before_the_combine() {
    each(|ranks, combine, name| {
        let beside = Variant { reads_before: false, ..Variant::new(ranks, combine, &mixed()) };
        breaks(&format!("{name}: a combine reads behind its words what came with the rows"), beside.programs(), OWN);
        let late = [Send(0), Receive(0), Return(0), Collect(0), Read(0)];
        let law = if combine == PullOutputs { OWN } else { NOT_OVERWRITTEN };
        let rows = Variant::new(ranks, combine, &[late, late].concat());
        breaks(&format!("{name}: rows are read behind the combine"), rows.programs(), law);
    });
}

#[test]
fn a_slot_is_sent_again_only_when_its_combine_was_received() {
    each(|ranks, combine, name| {
        let early =
            [Send(0), Receive(0), Read(0), Return(0), Send(0), Collect(0), Receive(0), Read(0), Return(0), Collect(0)];
        let law = if combine == PullOutputs { OWN } else { NOT_OVERWRITTEN };
        let variant = Variant::new(ranks, combine, &[&early[..], &pair(0)].concat());
        breaks(&format!("{name}: sent before it was received"), variant.programs(), law);
    });
}

#[test]
fn the_device_decides() {
    each(|ranks, combine, name| {
        // A graph of one dispatch, captured behind a combine: none is waited for. It is replayed twice.
        let moves = [&pair(0)[..], &DISPATCH, &DISPATCH].concat();
        let device = Variant::new(ranks, combine, &moves);
        let host = Variant { decides: Decides::Host(vec![true, true, false, false]), ..device.clone() };
        breaks(&format!("{name}: the host decides"), host.programs(), NOT_OVERWRITTEN);
        holds(&format!("{name}: the device word decides"), device.programs());
    });
}

/// Entry words that nobody waits for are posted for ranks that decide otherwise.
#[test]
fn ranks_may_decide_otherwise_if_all_post() {
    each(|ranks, combine, name| {
        let base = Variant::new(ranks, combine, &mixed());
        let other = Variant { decides: Decides::DeviceButOfRank0, ..base.clone() };
        for places in [1, 2] {
            let other = Variant { places, ..other.clone() };
            holds(&format!("{name}: rank 0 always waits, {places} places"), other.programs());
        }
        let silent = Variant { posts_entry: false, ..other };
        breaks(&format!("{name}: rank 0 always waits, and the others post nothing"), silent.programs(), ENDS);
        let agreed = Variant { posts_entry: false, ..base };
        holds(&format!("{name}: all decide alike, and post nothing where they do not wait"), agreed.programs());
    });
}

#[test]
fn slots_are_free_at_first() {
    each(|ranks, combine, name| {
        let variant = Variant { begins_free: true, ..Variant::new(ranks, combine, &mixed()) };
        holds(&format!("{name}: the first dispatch waits for nobody, since all have met"), variant.programs());
    });
}

#[test]
fn words_are_of_a_slot() {
    each(|ranks, combine, name| {
        let parity = Variant { per_slot: false, ..Variant::new(ranks, combine, &staggered()) };
        breaks(&format!("{name}: words by the parity of one number"), parity.programs(), ENDS);
    });
}

#[test]
fn places_of_shared_words() {
    each(|ranks, combine, name| {
        for moves in [mixed(), staggered()] {
            let two = Variant { shared: true, ..Variant::new(ranks, combine, &moves) };
            holds(&format!("{name}: one array for landed and combined words, 2 places"), two.programs());
            let one = Variant { places: 1, ..two };
            breaks(&format!("{name}: one array for landed and combined words, 1 place"), one.programs(), ENDS);
        }
    });
}

/// Who has no row for a rank has a word for it. Rows are safe without, as their places are by source; words are not.
#[test]
fn ranks_without_rows_are_waited_for() {
    each(|ranks, combine, name| {
        for routes in [Routes::Ring, Routes::Silent] {
            let base = Variant { routes, ..Variant::new(ranks, combine, &[pair(0), pair(0), pair(0)].concat()) };
            let landed = Variant { landed: Whose::WithRows, ..base.clone() };
            let combined = Variant { combined: Whose::WithRows, ..base };
            for (word, variant) in [("landed", landed), ("combined", combined)] {
                let name = format!("{name}, {routes:?}: {word} words of ranks with rows");
                breaks(&name, variant.programs(), TOGETHER);
                breaks(&name, variant.programs(), ENDS);
            }
        }
    });
}

#[test]
fn masked_ranks_are_left_out() {
    for combine in Combine::EACH {
        let base = Variant { masked: 1 << 2, ..Variant::new(3, combine, &mixed()) };
        holds(&format!("{combine:?}: one of 3 masked"), base.programs());
        let awaited = Variant { masked_awaited: true, ..base.clone() };
        breaks(&format!("{combine:?}: a masked rank is waited for"), awaited.programs(), ENDS);
        let lives = Variant { masked_live: true, ..base };
        holds(&format!("{combine:?}: a masked rank posts words"), lives.programs());
        let landed = Variant { landed: Whose::Number, ..lives.clone() };
        breaks(&format!("{combine:?}: a masked rank posts words, landed words are counted"), landed.programs(), OWN);
        let combined = Variant { combined: Whose::Number, ..lives };
        breaks(
            &format!("{combine:?}: a masked rank posts words, combined words are counted"),
            combined.programs(),
            OWN,
        );
    }
}
