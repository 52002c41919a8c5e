//! What a buffer can be asked for, in combination: bitwise what the plain references say, or refused as documented.
//!
//! [`dimensions`] lists what there is to combine, a line for each dimension; [`sense`] says which combinations make no sense or are refused,
//! and why; [`round`] runs one, a *cell*. An ordinary test run tries a sample, a new one every time. The whole is
//! `cargo xtask matrix`, or this binary alone where there is no cargo:
//!
//! ```text
//! EPOXIDE_TEST_DEVICE=cuda:0,1 ./matrix-0123456789abcdef --exact the_whole --ignored --nocapture
//! ```
//!
//! `EPOXIDE_MATRIX_PART=3/8` takes the third of eight parts, which take about as long as each other. `EPOXIDE_MATRIX="rows=Opaque,ranks=8,ranks=64"` takes only cells that have one of the values named of each dimension named; what a cell
//! that failed prints has a value for every one, and is that cell alone. `EPOXIDE_TEST_SEED` is the seed that sizes and data follow from.
#[path = "matrix/arrived.rs"]
mod arrived;
#[path = "matrix/cell.rs"]
mod cell;
#[path = "matrix/dimensions.rs"]
mod dimensions;
#[path = "matrix/group.rs"]
mod group;
#[path = "matrix/kernels.rs"]
mod kernels;
#[path = "matrix/masked.rs"]
mod masked;
#[path = "matrix/order.rs"]
mod order;
#[path = "matrix/progress.rs"]
mod progress;
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
use std::time::{Duration, Instant};

use cell::{Filter, Part, Whole};
use dimensions::DIMENSIONS;
use sense::Sense;
use support::processes::{Rank, Ranks};
use support::{Device, replay};

/// Cells of an ordinary run.
const SAMPLE: usize = 30;

/// Cells of each layout without one of their ranks.
const MASKED: u32 = 6;

/// The seed of the whole unless the environment names another.
const WHOLE_SEED: u64 = 4;

#[test]
fn a_sample_is_bitwise_the_reference() {
    let (device, filter) = (Device::from_env(), Filter::from_env());
    let seed = replay::seeds(1)[0];
    if let Some(cell) = filter.cell() {
        return walk::one(device, &cell).unwrap_or_else(|why| panic!("{why}"));
    }
    // One with 64 ranks takes as long as ten others.
    let mut many = 0;
    let few = |cell: &dimensions::Cell| {
        many += u32::from(cell.ranks == 64);
        cell.ranks < 64 || many == 1
    };
    for cell in cell::sample(seed, device, &filter).filter(few).take(SAMPLE) {
        let start = Instant::now();
        walk::one(device, &cell).unwrap_or_else(|why| panic!("{why}"));
        println!("{:6.2} s  {cell}", start.elapsed().as_secs_f64());
    }
}

#[test]
#[ignore = "takes many minutes: `cargo xtask matrix`"]
fn the_whole() {
    let seed = replay::named_seed().unwrap_or(WHOLE_SEED);
    let whole = walk::whole(Device::from_env(), seed, Part::from_env(), &Filter::from_env());
    whole.unwrap_or_else(|why| panic!("{why}"));
}

#[test]
fn every_kernel_is_launched() {
    kernels::every_one(Device::from_env(), Part::from_env()).unwrap_or_else(|why| panic!("{why}"));
}

/// Simulated ranks, each in a process of its own: a cell of each layout, and another.
#[test]
fn a_sample_of_processes_is_bitwise_the_reference() {
    let test = "a_sample_of_processes_is_bitwise_the_reference";
    if let Some(rank) = Rank::of_this_process() {
        let cell = Filter::parse(&rank.told).cell().expect("the test says which");
        let plan = worlds::plan(&cell);
        let machine = rank.machine();
        let checked = rank.comm(machine).and_then(|comm| round::rank(&cell, &plan, &round::Streams::of(&comm)));
        return checked.expect("every rank comes to its end").unwrap_or_else(|why| panic!("{cell}\n{why}"));
    }
    let device = Device::Simulated;
    for layout in ["Compact", "ByExpert", "Slab", "RankMajor"] {
        for seed in replay::seeds(2) {
            let filter = Filter::parse(&format!("layout={layout},schedule=Fast,ranks=2,ranks=3,ranks=4"));
            let cell = cell::sample(seed, device, &filter).find(|cell| sense::of(cell, device) == Sense::Runs);
            let cell = cell.expect("some run");
            println!("{cell}\nreplay: {}", replay::line(module_path!(), test, seed));
            Ranks::start(cell.ranks, test, &cell.to_string()).end(Duration::from_secs(120));
        }
    }
}

/// Whatever a buffer is asked for, it goes on without a rank that was killed: cells of each layout, and others in each run.
#[test]
fn a_sample_without_a_rank_is_bitwise_the_reference() {
    let device = Device::Simulated;
    for layout in ["Compact", "ByExpert", "Slab", "RankMajor"] {
        let filter = Filter::parse(&format!("layout={layout},schedule=Seeded,ranks=2,ranks=3,ranks=4"));
        for seed in replay::seeds(MASKED) {
            let cell = cell::sample(seed, device, &filter).find(|cell| sense::of(cell, device) == Sense::Runs);
            let cell = cell.expect("some run");
            let start = Instant::now();
            masked::check(&cell).unwrap_or_else(|why| {
                let test = "a_sample_without_a_rank_is_bitwise_the_reference";
                panic!("{cell}\n{why}\nreplay: {}", replay::line(module_path!(), test, seed))
            });
            println!("{:6.2} s  {cell}", start.elapsed().as_secs_f64());
        }
    }
}

/// What is said to be refused is, by the library's own reason.
#[test]
fn every_refusal_is_the_librarys() {
    let device = Device::from_env();
    let filter = Filter::parse("ranks=1,ranks=2,schedule=Fast,calls=2");
    for refusal in sense::REFUSALS {
        let refused = |cell: &dimensions::Cell| sense::of(cell, device) == Sense::Refused(refusal.why);
        let cell = cell::any(5, &filter).find(refused).expect("there is one");
        walk::one(device, &cell).unwrap_or_else(|why| panic!("{why}"));
    }
}

/// Cells that share a group are each what they are alone, those that are refused too, and so is what comes behind one that ended the group.
#[test]
fn cells_that_share_a_group_are_told_apart() {
    let device = Device::from_env();
    let filter = Filter::parse("ranks=2,schedule=Fast,calls=2");
    let with = |sense| {
        let mut cells = cell::any(replay::seeds(1)[0], &filter);
        cells.find(|cell| sense::of(cell, device) == sense).expect("there is one")
    };
    let mut cells = vec![with(Sense::Runs); 2];
    cells.extend(sense::REFUSALS.iter().map(|refusal| with(Sense::Refused(refusal.why))));
    cells.push(with(Sense::Runs));
    let fails = 1;
    let came = group::check_by(device, &cells, |cell, plan, streams| {
        if std::ptr::eq(cell, &cells[fails]) && streams.own().rank() == 1 {
            streams.own().delay(Duration::MAX)?;
        }
        round::rank(cell, plan, streams)
    });
    assert_eq!(came.len(), cells.len());
    for (number, (cell, came)) in cells.iter().zip(came).enumerate() {
        let right = match (sense::of(cell, device), &came.checked) {
            (_, Err(said)) if number == fails => {
                said.contains("rank 1 failed") && said.contains("behind 1 of its group")
            }
            (Sense::Refused(why), Err(said)) => said.contains(why),
            (_, checked) => checked.is_ok() && number != fails,
        };
        assert!(right, "{number}: {cell}\n{:?}", came.checked);
    }
}

/// What the whole leaves out is nothing but what makes no sense or is refused: every two values of two dimensions meet in some cell that runs,
/// unless no cell could have them both.
#[test]
fn every_two_values_that_can_meet_do() {
    let device = Device::Simulated;
    let runs = |cell: &dimensions::Cell| sense::of(cell, device) == Sense::Runs;
    let mut met = BTreeSet::new();
    for cell in Whole::new(WHOLE_SEED, device, Part::WHOLE, &Filter::default()).filter(runs) {
        let places = cell.places();
        for (i, first) in places.iter().enumerate() {
            met.extend(places.iter().enumerate().skip(i + 1).map(|(j, second)| (i, *first, j, *second)));
        }
    }
    let mut missing = Vec::new();
    for (i, first) in DIMENSIONS.iter().enumerate() {
        for (j, second) in DIMENSIONS.iter().enumerate().skip(i + 1) {
            for (a, b) in (0..first.values().len()).flat_map(|a| (0..second.values().len()).map(move |b| (a, b))) {
                let two = || format!("{}={},{}={}", first.name, first.values()[a], second.name, second.values()[b]);
                if !met.contains(&(i, a, j, b))
                    && cell::sample(7, device, &Filter::parse(&two())).take(9).any(|c| runs(&c))
                {
                    missing.push(two());
                }
            }
        }
    }
    assert!(missing.is_empty(), "{} pairs: {missing:?}", missing.len());
}

/// Every cell is in one part, and parts are as large as each other.
#[test]
fn parts_are_the_whole() {
    let all = Whole::new(WHOLE_SEED, Device::Simulated, Part::WHOLE, &Filter::default()).cells();
    for of in [2, 3, 8] {
        let parts = (1..=of)
            .map(|number| Whole::new(WHOLE_SEED, Device::Simulated, Part { number, of }, &Filter::default()).cells());
        let parts: Vec<_> = parts.collect();
        assert_eq!(parts.iter().sum::<u64>(), all);
        assert!(parts.iter().all(|part| part.abs_diff(all / of) < all / of / 8), "{parts:?}");
    }
    assert_eq!(Part::parse("3/8").to_string(), "3/8");
}

/// What makes no sense has its reason, and every reason and refusal that is written down is one of some cell.
#[test]
fn what_is_left_out_has_a_reason() {
    let mut reasons = BTreeMap::new();
    for cell in Whole::new(WHOLE_SEED, Device::Simulated, Part::WHOLE, &Filter::default()) {
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

/// Where rows have fixed places a replay takes the row slot of what it replays.
#[test]
fn replays_in_fixed_places_take_the_slot_of_their_routing() {
    let filter = Filter::parse("layout=RankMajor,again=true,ranks=1,ranks=3,row_bytes=16");
    let cells = cell::sample(replay::seeds(1)[0], Device::Simulated, &filter);
    for cell in cells.filter(|cell| sense::of(cell, Device::Simulated) == Sense::Runs).take(40) {
        let steps = worlds::plan(&cell).steps;
        for step in &steps {
            let of = step.of.map_or(step, |of| &steps[of]);
            assert_eq!(step.row_slots, of.row_slots, "{cell}");
        }
    }
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
