//! Cells one after another on one group of ranks, where a group takes longer than a cell: on a GPU it loads its
//! kernels. What they come to is made by other threads meanwhile.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use epoxide::Result;

use super::dimensions::Cell;
use super::round::{self, Streams};
use super::support::{Checked, Device, complaints};
use super::worlds::{self, Plan};

/// Cells of a group: so many that what it takes is little beside them, and no more, since all their plans are there at once.
pub const CELLS: usize = 64;

/// Threads that make plans.
const MAKERS: usize = 8;

/// What came of a cell, and how long it took the slowest rank.
pub struct Came {
    pub took: Duration,
    pub checked: Checked,
}

/// Runs cells that have as many ranks. Behind one whose ranks did not come to its end the others have a new group.
pub fn check(device: Device, cells: &[Cell]) -> Vec<Came> {
    check_by(device, cells, round::rank)
}

/// [`check`] where a rank runs a cell so.
pub fn check_by(
    device: Device,
    cells: &[Cell],
    rank: impl Fn(&Cell, &Plan, &Streams) -> Result<Checked> + Sync,
) -> Vec<Came> {
    let mut came = Vec::new();
    while came.len() < cells.len() {
        came.extend(group(device, &cells[came.len()..], &rank));
    }
    came
}

/// Runs cells until one fails so that its ranks cannot go on: that one is the last that something came of.
fn group(
    device: Device,
    cells: &[Cell],
    rank: &(impl Fn(&Cell, &Plan, &Streams) -> Result<Checked> + Sync),
) -> Vec<Came> {
    let Some(first) = cells.first() else { return Vec::new() };
    assert!(cells.iter().all(|cell| cell.ranks == first.ranks), "a group has as many ranks as each of its cells");
    let plans: Vec<OnceLock<Plan>> = cells.iter().map(|_| OnceLock::new()).collect();
    // Who needs one that is not begun makes it.
    let plan = |number: usize| plans[number].get_or_init(|| worlds::plan(&cells[number]));
    let next = AtomicUsize::new(0);
    let of_ranks: Vec<Mutex<Vec<Came>>> = (0..first.ranks).map(|_| Mutex::default()).collect();
    let left = std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(MAKERS) {
            scope.spawn(|| {
                while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < cells.len()) {
                    plan(number);
                }
            });
        }
        let results = device.run_all(first.ranks, worlds::mode(first), |comm| {
            let streams = Streams::of(&comm);
            for (number, cell) in cells.iter().enumerate() {
                let plan = plan(number);
                let begun = Instant::now();
                let checked = rank(cell, plan, &streams)?;
                let came = Came { took: begun.elapsed(), checked };
                of_ranks[comm.rank() as usize].lock().unwrap_or_else(PoisonError::into_inner).push(came);
            }
            Ok(Ok(()))
        });
        // Nobody needs the rest.
        next.store(cells.len(), Ordering::Relaxed);
        complaints(results)
    });
    let of_ranks = of_ranks.into_iter().map(|came| came.into_inner().unwrap_or_else(PoisonError::into_inner));
    let mut of_ranks: Vec<_> = of_ranks.map(Vec::into_iter).collect();
    let mut came = Vec::new();
    // Each as far as every rank got.
    while let Some(each) = of_ranks.iter_mut().map(Iterator::next).collect::<Option<Vec<Came>>>() {
        let took = each.iter().map(|came| came.took).max().unwrap_or_default();
        came.push(Came { took, checked: complaints(each.into_iter().map(|came| Ok(came.checked)).collect()) });
    }
    if let Err(why) = left {
        let before = match came.len().checked_sub(1) {
            Some(last) => format!("behind {} of its group, the last {}", came.len(), cells[last]),
            None => "first of its group".to_owned(),
        };
        came.push(Came { took: Duration::ZERO, checked: Err(format!("{why}\n({before})")) });
    }
    came
}
