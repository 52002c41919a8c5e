//! In which order a cell's dispatches begin and end, and the row slots that they take by the library's rule.
use super::dimensions::{Cell, Lie, Room};

/// What all ranks do next, by the number of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Do {
    Dispatch(usize),
    /// What comes of it is looked at, expert outputs are handed over, and it is combined; then its gradient, if there is one.
    Combine(usize),
    /// Rows that were kept are looked at once more, and given up.
    Release(usize),
}

/// Whether rows are kept. Where there is one row slot, a gradient needs it.
pub fn keeps(cell: &Cell) -> bool {
    cell.kept && !(cell.gradient && cell.row_slots == 1)
}

/// The step whose routing step number `step` behind `fresh` others replays: the last of those first.
pub fn replayed(step: usize, fresh: usize) -> usize {
    2 * fresh - 1 - step
}

/// So many steps, and replays of the last of them: as many at once as there are row slots for. They end in the order in which they began, or the
/// other way round.
pub fn of(cell: &Cell, fresh: usize, replays: usize) -> Vec<Do> {
    // What is kept stays while its gradient is in another slot.
    let most = if keeps(cell) && cell.gradient { cell.row_slots - 1 } else { cell.row_slots };
    // Who waits is told of any that did not fit, of one that is combined later too.
    let at_once = if cell.room == Room::TooFew && cell.waits { 1 } else { most };
    // Of several that did not fit the first is told first.
    let back = cell.room != Room::TooFew && cell.data & 0x100 != 0;
    let numbers: Vec<_> = (0..fresh + replays).collect();
    // Where rows have fixed places a replay takes the row slot of what it replays, which must be free.
    let (fresh, replays) = numbers.split_at(if cell.layout == Lie::RankMajor { fresh } else { fresh + replays });
    let mut order = Vec::new();
    for batch in fresh.chunks(at_once as usize).chain(replays.chunks(at_once as usize)) {
        let mut ends = batch.to_vec();
        if back {
            ends.reverse();
        }
        order.extend(batch.iter().copied().map(Do::Dispatch));
        order.extend(ends.iter().copied().map(Do::Combine));
        if keeps(cell) {
            order.extend(ends.iter().copied().map(Do::Release));
        }
    }
    order
}

/// Where a step's dispatch and that of its gradient are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    pub slots: [u32; 2],
    /// Which operation of its row slot the dispatch is.
    pub operation: u64,
}

/// Row slots as they are taken.
pub struct RowSlots {
    held: Vec<bool>,
    operations: Vec<u64>,
    next: usize,
}

impl RowSlots {
    /// The places of all steps, of which so many replay none: each takes the next free slot in turn, or where rows have fixed places that of what
    /// it replays.
    pub fn places(cell: &Cell, order: &[Do], fresh: usize) -> Vec<Place> {
        let slots = cell.row_slots as usize;
        let mut slots = Self { held: vec![false; slots], operations: vec![0; slots], next: 0 };
        let mut places: Vec<Place> = Vec::new();
        for what in order {
            match *what {
                Do::Dispatch(step) => {
                    let replayed = |step| places[replayed(step, fresh)].slots[0] as usize;
                    let slot = match cell.layout {
                        // It is held in cells alone that are refused before they come so far.
                        Lie::RankMajor if step >= fresh && !slots.held[replayed(step)] => {
                            slots.take_one(replayed(step))
                        }
                        _ => slots.take(),
                    };
                    places.push(Place { slots: [slot as u32; 2], operation: slots.operations[slot] });
                }
                Do::Combine(step) => {
                    let slot = places[step].slots[0] as usize;
                    slots.operations[slot] += 1;
                    slots.held[slot] = keeps(cell);
                    if cell.gradient {
                        let of_gradient = slots.take();
                        slots.operations[of_gradient] += 1;
                        slots.held[of_gradient] = false;
                        places[step].slots[1] = of_gradient as u32;
                    }
                }
                Do::Release(step) => slots.held[places[step].slots[0] as usize] = false,
            }
        }
        places
    }

    /// A dispatch takes one.
    fn take(&mut self) -> usize {
        let slots = self.held.len();
        let slot = (0..slots).map(|i| (self.next + i) % slots).find(|slot| !self.held[*slot]);
        self.take_one(slot.expect("no more are in flight than there are slots"))
    }

    fn take_one(&mut self, slot: usize) -> usize {
        self.next = (slot + 1) % self.held.len();
        self.held[slot] = true;
        self.operations[slot] += 1;
        slot
    }
}
