//! Goes through cells, and says what came of them.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::cell::{Filter, Part, Whole};
use super::dimensions::Cell;
use super::group;
use super::progress::Progress;
use super::round;
use super::sense::{self, Sense};
use super::support::{Checked, Device};

/// Failures after which the rest is not tried.
const ENOUGH: u64 = 20;

/// Runs one cell; a complaint ends with the line that replays it.
pub fn one(device: Device, cell: &Cell) -> Checked {
    let sense = sense::of(cell, device);
    match sense {
        Sense::Senseless(why) => told(cell, Err(format!("it makes no sense: {why}"))),
        sense => told(cell, judged(sense, round::check(cell, device))),
    }
}

/// What a cell that runs or is refused came to is as it should be.
fn judged(sense: Sense, checked: Checked) -> Checked {
    match (sense, checked) {
        (Sense::Refused(why), Err(said)) if said.contains(why) => Ok(()),
        (Sense::Refused(why), Err(said)) => Err(format!("it is refused, but not with `{why}`: {said}")),
        (Sense::Refused(why), Ok(())) => Err(format!("nobody refused it: {why}")),
        (Sense::Runs | Sense::Senseless(_), checked) => checked,
    }
}

/// A complaint with the line that replays it.
fn told(cell: &Cell, checked: Checked) -> Checked {
    checked.map_err(|why| format!("{cell}\n{why}\nreplay: {}", replay(cell)))
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

/// A part as it is gone through.
struct Walk {
    device: Device,
    progress: Progress,
    tally: Tally,
}

impl Walk {
    /// Takes down what came of a cell.
    fn came(&mut self, cell: &Cell, sense: Sense, took: Duration, checked: Checked) {
        match (told(cell, judged(sense, checked)), sense) {
            (Err(why), _) => {
                self.tally.failed += 1;
                self.progress.say(&why);
            }
            (Ok(()), Sense::Refused(why)) => *self.tally.refused.entry(why).or_default() += 1,
            (Ok(()), _) => self.tally.ran += 1,
        }
        if took > self.tally.slowest.0 {
            self.tally.slowest = (took, cell.to_string());
        }
        self.progress.one_more(self.tally.failed);
    }

    /// Runs a cell on a group of its own.
    fn alone(&mut self, cell: &Cell, sense: Sense) {
        let start = Instant::now();
        let checked = round::check(cell, self.device);
        self.came(cell, sense, start.elapsed(), checked);
    }

    /// Runs cells of as many ranks on one group.
    fn together(&mut self, cells: &[Cell]) {
        for (cell, came) in cells.iter().zip(group::check(self.device, cells)) {
            self.came(cell, sense::of(cell, self.device), came.took, came.checked);
        }
    }

    fn goes_on(&self) -> bool {
        self.tally.failed < ENOUGH
    }
}

/// Runs all cells of a part that a filter lets through, and prints how many ran, were refused as they should be, and make no sense.
pub fn whole(device: Device, seed: u64, part: Part, filter: &Filter) -> Checked {
    let begun = Instant::now();
    let cells = Whole::new(seed, device, part, filter);
    let mut walk = Walk { device, progress: Progress::new(part, cells.cells()), tally: Tally::default() };
    // On GPUs by the number of ranks, until there are enough for a group.
    let mut waiting: BTreeMap<u32, Vec<Cell>> = BTreeMap::new();
    for cell in cells.map(|cell| filter.cell().unwrap_or(cell)) {
        match (sense::of(&cell, device), device) {
            (Sense::Senseless(why), _) => {
                *walk.tally.senseless.entry(why).or_default() += 1;
                walk.progress.one_more(walk.tally.failed);
            }
            (sense, Device::Simulated) => walk.alone(&cell, sense),
            (_, Device::Cuda) => {
                let alike = waiting.entry(cell.ranks).or_default();
                alike.push(cell);
                if alike.len() == group::CELLS {
                    walk.together(&std::mem::take(alike));
                }
            }
        }
        if !walk.goes_on() {
            break;
        }
    }
    for cells in waiting.into_values() {
        if walk.goes_on() {
            walk.together(&cells);
        }
    }
    let Walk { progress, tally, .. } = walk;
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
