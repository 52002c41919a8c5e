//! A fault anywhere, and a reset behind it.
use super::super::check::{breaks, holds};
use super::super::laws::{ENDS, NOT_OVERWRITTEN, OWN};
use super::super::low_latency::Move::{Collect, Read, Receive, Return, Send};
use super::super::low_latency::{self, Combine};
use super::super::rank_major;
use super::super::recovery::{Does, Variant};
use super::super::stream::ops;

fn throughput(before: &str, after: &str) -> Does {
    Does::Throughput(ops(before), ops(after))
}

/// Two pairs, of which the second does not wait, and a dispatch and a pair behind the reset.
fn low_latency(ranks: u8, combine: Combine, masked: u8) -> Does {
    let pair = [Send(0), Receive(0), Read(0), Return(0), Collect(0)];
    let before = low_latency::Variant::new(ranks, combine, &[pair, pair].concat());
    let after = [&[Send(0), Receive(0), Read(0)][..], &pair].concat();
    Does::LowLatency(before, low_latency::Variant { masked, ..low_latency::Variant::new(ranks, combine, &after) })
}

fn rank_major(ranks: u8, before: &str, after: &str) -> Does {
    let [before, after] = [before, after].map(|text| rank_major::Variant::new(ranks, text));
    Does::RankMajor(before, after)
}

/// Landing counters, to which is added, begin anew: what is added late has arrived before they are filled.
#[test]
fn a_reset_of_rows_in_fixed_places_leaves_nothing() {
    holds("2 ranks", Variant::new(2, rank_major(2, "D C D C", "D C")).programs());
    holds("3 ranks", Variant::new(3, rank_major(3, "D", "D")).programs());
    let base = Variant::new(2, rank_major(2, "D C", "D C"));
    let busy = Variant { drains: false, ..base.clone() };
    breaks("landings on their way when counters are filled", busy.programs(), ENDS);
    let alone = Variant { meets_before: false, ..base.clone() };
    breaks("filled before all are idle", alone.programs(), ENDS);
    let early = Variant { meets_after: false, ..base };
    breaks("begun before all are filled", early.programs(), ENDS);
}

#[test]
fn a_reset_leaves_nothing() {
    holds("throughput, 2 ranks", Variant::new(2, throughput("D C D C", "D C")).programs());
    holds("throughput, 3 ranks", Variant::new(3, throughput("D", "D")).programs());
    for combine in Combine::EACH {
        holds(&format!("{combine:?}, 2 ranks"), Variant::new(2, low_latency(2, combine, 0)).programs());
    }
}

#[test]
fn ranks_are_idle_and_meet_before_words_are_filled() {
    // Numbers that begin anew, and that go on.
    for numbers in [0, 20] {
        let base = Variant { numbers, ..Variant::new(2, throughput("D C", "D C")) };
        let alone = Variant { meets_before: false, ..base.clone() };
        breaks(&format!("filled before all are idle, numbers from {numbers}"), alone.programs(), NOT_OVERWRITTEN);
        let early = Variant { meets_after: false, ..base };
        breaks(&format!("begun before all are filled, numbers from {numbers}"), early.programs(), ENDS);
    }
    let base = Variant::new(2, throughput("D C", "D C"));
    let alone = Variant { meets_before: false, ..base.clone() };
    breaks("filled before all are idle: a late word is taken for a new one", alone.programs(), OWN);
    let busy = Variant { drains: false, ..base };
    breaks("words on their way when others are filled, numbers begin anew", busy.programs(), OWN);
    let goes_on = Variant { numbers: 20, ..busy };
    holds("words on their way when others are filled, numbers go on", goes_on.programs());
}

#[test]
fn a_rank_is_masked_when_it_has_ended() {
    let dies = Variant { dies: true, ..Variant::new(3, throughput("D", "D")) };
    holds("throughput, one of 3 ends anywhere", dies.programs());
    for numbers in [0, 20] {
        let lives = Variant { awaits_the_end: false, numbers, ..dies.clone() };
        breaks(&format!("masked while it writes, numbers from {numbers}"), lives.programs(), NOT_OVERWRITTEN);
    }
}
