//! Goes through cells, and says what came of them.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::cell::{Filter, Part, Whole};
use super::dimensions::Cell;
use super::progress::Progress;
use super::round;
use super::sense::{self, Sense};
use super::support::{Checked, Device};

/// Failures after which the rest is not tried.
const ENOUGH: u64 = 20;

/// Runs one cell; a complaint ends with the line that replays it.
pub fn one(device: Device, cell: &Cell) -> Checked {
    let right = match sense::of(cell, device) {
        Sense::Runs => round::check(cell, device),
        Sense::Senseless(why) => Err(format!("it makes no sense: {why}")),
        Sense::Refused(why) => match round::check(cell, device) {
            Err(said) if said.contains(why) => Ok(()),
            Err(said) => Err(format!("it is refused, but not with `{why}`: {said}")),
            Ok(()) => Err(format!("nobody refused it: {why}")),
        },
    };
    right.map_err(|why| format!("{cell}\n{why}\nreplay: {}", replay(cell)))
}

/// The line that runs a cell again.
fn replay(cell: &Cell) -> String {
    let device = std::env::var("EPOXIDE_TEST_DEVICE").ok().filter(|device| !device.is_empty());
    let device = device.map_or(String::new(), |device| format!("EPOXIDE_TEST_DEVICE={device} "));
    let test = "cargo test -p epoxide --test matrix -- --exact a_sample_is_bitwise_the_reference";
    format!("{device}EPOXIDE_MATRIX=\"{cell}\" {test}")
}

/// What came of cells.
#[derive(Debug, Default)]
struct Tally {
    ran: u64,
    failed: u64,
    refused: BTreeMap<&'static str, u64>,
    senseless: BTreeMap<&'static str, u64>,
    /// The cell that took longest.
    slowest: (Duration, String),
}

/// Runs all cells of a part that a filter lets through, and prints how many ran, were refused as they should be, and make no sense.
pub fn whole(device: Device, seed: u64, part: Part, filter: &Filter) -> Checked {
    let begun = Instant::now();
    let cells = Whole::new(seed, device, part, filter);
    let mut progress = Progress::new(part, cells.cells());
    let mut tally = Tally::default();
    let cells = cells.map(|cell| filter.cell().unwrap_or(cell));
    for cell in cells {
        match sense::of(&cell, device) {
            Sense::Senseless(why) => *tally.senseless.entry(why).or_default() += 1,
            sense => {
                let start = Instant::now();
                match one(device, &cell) {
                    Ok(()) => match sense {
                        Sense::Refused(why) => *tally.refused.entry(why).or_default() += 1,
                        _ => tally.ran += 1,
                    },
                    Err(why) => {
                        tally.failed += 1;
                        progress.say(&why);
                    }
                }
                if start.elapsed() > tally.slowest.0 {
                    tally.slowest = (start.elapsed(), cell.to_string());
                }
            }
        }
        progress.one_more(tally.failed);
        if tally.failed == ENOUGH {
            break;
        }
    }
    drop(progress);
    let say = |what: &str, counts: &BTreeMap<&str, u64>| {
        counts.iter().for_each(|(why, count)| println!("{count:>7} {what}: {why}"));
    };
    println!("{:>7} right, bit for bit", tally.ran);
    say("refused, as documented", &tally.refused);
    say("left out", &tally.senseless);
    let (longest, cell) = &tally.slowest;
    println!(
        "part {part} of seed {seed} took {:.0} s; longest, {:.1} s: {cell}",
        begun.elapsed().as_secs_f64(),
        longest.as_secs_f64()
    );
    match (tally.failed, tally.ran + tally.refused.values().sum::<u64>()) {
        (0, 0) => Err("no cell ran: the filter lets none through that makes sense".to_owned()),
        (0, _) => Ok(()),
        (failed, _) => Err(format!("{failed} cells failed; above are the lines that replay them")),
    }
}
