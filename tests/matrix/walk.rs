//! Goes through cells, and says what came of them.
use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::cell::{Filter, Whole};
use super::dimensions::Cell;
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
}

/// Runs all cells that a filter lets through, and prints how many ran, were refused as they should be, and make no sense.
pub fn whole(device: Device, seed: u64, filter: &Filter) -> Checked {
    let cells = Whole::new(seed, device, filter);
    let bar = ProgressBar::new(cells.cells()).with_style(style());
    bar.enable_steady_tick(Duration::from_millis(250));
    let mut tally = Tally::default();
    let cells = cells.map(|cell| filter.cell().unwrap_or(cell));
    for cell in cells {
        match sense::of(&cell, device) {
            Sense::Senseless(why) => *tally.senseless.entry(why).or_default() += 1,
            sense => match one(device, &cell) {
                Ok(()) => match sense {
                    Sense::Refused(why) => *tally.refused.entry(why).or_default() += 1,
                    _ => tally.ran += 1,
                },
                Err(why) => {
                    tally.failed += 1;
                    bar.suspend(|| eprintln!("{why}\n"));
                }
            },
        }
        bar.inc(1);
        bar.set_message(format!("{} failed", tally.failed));
        if tally.failed == ENOUGH {
            break;
        }
    }
    bar.finish_and_clear();
    let say = |what: &str, counts: &BTreeMap<&str, u64>| {
        counts.iter().for_each(|(why, count)| println!("{count:>7} {what}: {why}"));
    };
    println!("{:>7} right, bit for bit (seed {seed})", tally.ran);
    say("refused, as documented", &tally.refused);
    say("left out", &tally.senseless);
    match (tally.failed, tally.ran + tally.refused.values().sum::<u64>()) {
        (0, 0) => Err("no cell ran: the filter lets none through that makes sense".to_owned()),
        (0, _) => Ok(()),
        (failed, _) => Err(format!("{failed} cells failed; above are the lines that replay them")),
    }
}

fn style() -> ProgressStyle {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} cells, {msg}, {elapsed} gone, {eta} left");
    style.unwrap_or_else(|_| ProgressStyle::default_bar())
}
