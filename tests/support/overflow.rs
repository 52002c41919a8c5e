//! Dispatches that bring more rows than there is room for, and what every rank is told of one.
use epoxide::{Error, Layout, Result};

use super::Checked;
use super::by_expert::{self, Padding};
use super::reference::World;

/// A dispatch that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    /// The lowest rank, and in slabs its lowest expert, that has too little room.
    pub rank: u32,
    pub expert: Option<u32>,
    /// Rows that were to come there.
    pub wanted: u64,
    /// Rows that there is room for.
    pub room: u64,
    /// Which operation of the buffer the dispatch was.
    pub epoch: u64,
    /// Which buffer of the group's.
    pub buffer: u64,
}

/// Rows that are to come to each rank, or in slabs to each expert.
pub fn wanted(world: &World, layout: Layout) -> Vec<u64> {
    let of_rank = |rank| match layout {
        Layout::Compact => world.arrivals(rank).sources.len(),
        _ => by_expert::slots(world, rank, Padding::of(layout)).0.len(),
    };
    match layout {
        Layout::Slab { .. } => by_expert::dropped(world, 0).1.into_iter().map(u64::from).collect(),
        _ => (0..world.ranks).map(|rank| of_rank(rank) as u64).collect(),
    }
}

/// Whether a world's dispatch, operation `epoch` of the group's first buffer, is one for which there is too little room: `room` is that of a rank, or in slabs of an expert.
pub fn over(world: &World, layout: Layout, room: u64, epoch: u64) -> Option<Over> {
    let (place, wanted) = (0..).zip(wanted(world, layout)).find(|(_, wanted)| *wanted > room)?;
    let (rank, expert) = match layout {
        Layout::Slab { .. } => (world.owners()[place as usize], Some(place)),
        _ => (place, None),
    };
    Some(Over { rank, expert, wanted, room, epoch, buffer: 1 })
}

/// What comes of a dispatch that does not fit: that of one in which nobody selects anything.
pub fn nothing(world: &World) -> World {
    let mut nothing = world.clone();
    nothing.inputs.iter_mut().for_each(|input| input.topk_idx.fill(-1));
    nothing
}

/// Whether a call found what it must.
pub fn told<T>(what: &str, got: Result<T>, over: Over) -> Checked {
    let why = match got {
        Err(Error::CapacityExceeded { of_rank, expert, wanted, capacity, buffer, epoch, .. })
            if (Over { rank: of_rank, expert, wanted, room: capacity, epoch, buffer }) == over =>
        {
            return Ok(());
        }
        Err(other) => other.to_string(),
        Ok(_) => "no error".to_owned(),
    };
    Err(format!("{what}: {why}; expected {over:?}"))
}
