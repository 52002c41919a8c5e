//! What a buffer can be asked for, in combination (slabs, bounds and combine's options have tests of their own): bitwise what the plain references say, or refused as documented.
//!
//! [`dimensions`] lists what there is to combine, a line for each dimension; [`sense`] says which combinations make no sense or are refused,
//! and why; [`round`] runs one, a *cell*. An ordinary test run tries a sample, a new one every time. The whole is
//! `cargo xtask matrix`, or this binary alone where there is no cargo:
//!
//! ```text
//! EPOXIDE_TEST_DEVICE=cuda:0,1 ./matrix-0123456789abcdef --exact the_whole --ignored --nocapture
//! ```
//!
//! `EPOXIDE_MATRIX="rows=Opaque,ranks=8,ranks=64"` takes only cells that have one of the values named of each dimension named; what a cell
//! that failed prints has a value for every one, and is that cell alone. `EPOXIDE_TEST_SEED` is the seed that sizes and data follow from.
#[path = "matrix/cell.rs"]
mod cell;
#[path = "matrix/dimensions.rs"]
mod dimensions;
#[path = "matrix/round.rs"]
mod round;
#[path = "matrix/sense.rs"]
mod sense;
mod support;
#[path = "matrix/walk.rs"]
mod walk;
#[path = "matrix/worlds.rs"]
mod worlds;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use cell::{Filter, Whole};
use dimensions::DIMENSIONS;
use sense::Sense;
use support::{Device, replay};

/// Cells of an ordinary run.
const SAMPLE: usize = 30;

/// The seed of the whole unless the environment names another.
const WHOLE_SEED: u64 = 1;

#[test]
fn a_sample_is_bitwise_the_reference() {
    let (device, filter) = (Device::from_env(), Filter::from_env());
    let seed = replay::seeds(1)[0];
    if let Some(cell) = filter.cell() {
        return walk::one(device, &cell).unwrap_or_else(|why| panic!("{why}"));
    }
    for cell in cell::sample(seed, device, &filter).take(SAMPLE) {
        let start = Instant::now();
        walk::one(device, &cell).unwrap_or_else(|why| panic!("{why}"));
        println!("{:6.2} s  {cell}", start.elapsed().as_secs_f64());
    }
}

#[test]
#[ignore = "takes many minutes: `cargo xtask matrix`"]
fn the_whole() {
    let seed = replay::named_seed().unwrap_or(WHOLE_SEED);
    walk::whole(Device::from_env(), seed, &Filter::from_env()).unwrap_or_else(|why| panic!("{why}"));
}

/// What the whole leaves out is nothing but what makes no sense: every two values of two dimensions meet in some cell, unless no cell could
/// have them both.
#[test]
fn every_two_values_that_can_meet_do() {
    let device = Device::Simulated;
    let mut met = BTreeSet::new();
    for cell in Whole::new(WHOLE_SEED, device, &Filter::default()) {
        if !matches!(sense::of(&cell, device), Sense::Senseless(_)) {
            let places = cell.places();
            for (i, first) in places.iter().enumerate() {
                met.extend(places.iter().enumerate().skip(i + 1).map(|(j, second)| (i, *first, j, *second)));
            }
        }
    }
    let mut missing = Vec::new();
    for (i, first) in DIMENSIONS.iter().enumerate() {
        for (j, second) in DIMENSIONS.iter().enumerate().skip(i + 1) {
            for (a, b) in (0..first.values().len()).flat_map(|a| (0..second.values().len()).map(move |b| (a, b))) {
                let two = || format!("{}={},{}={}", first.name, first.values()[a], second.name, second.values()[b]);
                if !met.contains(&(i, a, j, b)) && cell::sample(7, device, &Filter::parse(&two())).next().is_some() {
                    missing.push(two());
                }
            }
        }
    }
    assert!(missing.is_empty(), "{} pairs: {missing:?}", missing.len());
}

/// What makes no sense has its reason, and every reason and refusal that is written down is one of some cell.
#[test]
fn what_is_left_out_has_a_reason() {
    let mut reasons = BTreeMap::new();
    for cell in Whole::new(WHOLE_SEED, Device::Simulated, &Filter::default()) {
        match sense::of(&cell, Device::Simulated) {
            Sense::Runs => {}
            Sense::Refused(why) | Sense::Senseless(why) => *reasons.entry(why).or_insert(0) += 1,
        }
    }
    let there: BTreeSet<_> = reasons.keys().copied().collect();
    let rules = sense::RULES.iter().filter(|rule| rule.of_picks);
    let written: BTreeSet<_> = rules.map(|rule| rule.why).chain(sense::REFUSALS.iter().map(|r| r.why)).collect();
    assert_eq!(there, written);
}

/// A cell's text is the cell.
#[test]
fn a_cell_that_is_printed_is_read_again() {
    for cell in cell::sample(3, Device::Simulated, &Filter::default()).take(100) {
        let text = cell.to_string();
        let again = Filter::parse(&text).cell().unwrap_or_else(|| panic!("{text}: no cell"));
        assert_eq!(again.to_string(), text);
    }
}
