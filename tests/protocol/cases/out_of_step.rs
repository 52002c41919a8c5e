//! Ranks in different operations of a slot, of which each knows by itself, although nobody need wait for entry words.
use super::super::check::{breaks, holds};
use super::super::laws::{ENDS, OWN};
use super::super::low_latency::Move::{self, Collect, Read, Receive, Return, Send};
use super::super::low_latency::{Combine, Stops, Variant};

/// What each rank does, the first and all others: a history, and then a dispatch or a combine.
fn histories() -> Vec<Vec<Vec<Move>>> {
    let (dispatch, combine) = (vec![Send(0), Receive(0), Read(0)], vec![Return(0), Collect(0)]);
    let pair = [dispatch.clone(), combine.clone()].concat();
    let mut histories = Vec::new();
    // The dispatch waits for nothing, or the combine.
    for history in [[pair.clone(), pair.clone()].concat(), [pair, dispatch.clone()].concat()] {
        let [a, b] = [&dispatch, &combine].map(|last| [history.clone(), last.clone()].concat());
        histories.extend([vec![a.clone(), b.clone()], vec![b, a]]);
    }
    histories
}

fn each(of: impl Fn(Variant, &str)) {
    for ranks in [2, 3] {
        for combine in Combine::EACH {
            for moves in histories() {
                let base = Variant { moves: moves.clone(), shared: true, ..Variant::new(ranks, combine, &[]) };
                of(base, &format!("{combine:?}, {ranks} ranks, {:?} at rank 0", moves[0].last()));
            }
        }
    }
}

#[test]
fn who_stops_tells() {
    each(|base, name| {
        let tells = Variant { kinds: Some(Stops::Tells), ..base };
        _ = holds(&format!("{name}: who stops says so"), tells.programs());
    });
}

#[test]
fn who_stops_in_silence_is_waited_for() {
    each(|base, name| {
        let silent = Variant { kinds: Some(Stops::Silent), ..base };
        breaks(&format!("{name}: who stops says nothing"), silent.programs(), ENDS);
    });
}

#[test]
fn words_say_of_which_kind_they_are() {
    each(|base, name| {
        let never = Variant { kinds: Some(Stops::Never), ..base };
        breaks(&format!("{name}: words do not say of what they are"), never.programs(), OWN);
    });
}
