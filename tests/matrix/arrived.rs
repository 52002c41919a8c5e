//! What came, and what must.
use epoxide::{Config, ElasticBuffer, Layout, Received, RecvCounts, Result, WireRows};

use super::dimensions::Cell;
use super::support::by_expert::Padding;
use super::support::overflow::{Over, told};
use super::support::reference::{owned, same};
use super::support::{Checked, by_expert, counts, exchange, gradient};
use super::worlds::{Plan, Step};

/// What the host has of a dispatch before its combine.
pub enum Came {
    /// It did not look.
    Unseen,
    /// That it does not fit.
    Nothing,
    Rows(Box<Received>),
}

/// Compares what a rank received, if it looked.
pub fn check(cell: &Cell, layout: Layout, step: &Step, rank: u32, came: &Came) -> Checked {
    let Came::Rows(received) = came else { return Ok(()) };
    let (world, wires) = (&step.world, &step.wires);
    let all: u32 = step.dropped.iter().sum();
    let mine = owned(world.experts, world.ranks)[rank as usize].clone();
    let here: u32 = step.dropped.iter().skip(mine.start as usize).take(mine.len()).sum();
    let dropped = [received.counts.dropped, received.counts.dropped_in_all];
    same("dropped selections", &dropped, &[here, all], 1).and_then(|()| match layout {
        Layout::Compact | Layout::RankMajor { .. } => {
            exchange::check_received(world, wires, &world.arrivals(rank), received)
        }
        _ => by_expert::check_received(world, wires, rank, Padding::of(layout), cell.padding, received),
    })
}

/// Compares what a rank received of a gradient, if it looked.
pub fn check_gradient(layout: Layout, step: &Step, rank: u32, came: &Came) -> Checked {
    match (came, &step.dy) {
        (Came::Rows(received), Some(dy)) => match &received.x {
            WireRows::Bf16(rows) => gradient::check_weighed(&step.world, dy, rank, Padding::of(layout), rows),
            _ => Err("gradients are not in BF16".to_owned()),
        },
        _ => Ok(()),
    }
}

/// Compares what a rank was told while the rows travelled.
pub fn counts(config: &Config, step: &Step, over: Option<Over>, rank: u32, got: Result<RecvCounts>) -> Result<Checked> {
    if let Some(over) = over {
        return Ok(told("wait_counts", got, over));
    }
    let (got, mut want) = (got?, counts::counts(&step.world, rank, config.layout));
    if let Some(alignment) = config.expert_index {
        want.index_offsets = counts::index_offsets(&want.by_expert, alignment);
    }
    Ok(if got == want { Ok(()) } else { Err(format!("told {got:?}, expected {want:?}")) })
}

/// Compares how many selections came for each expert in all: replays count nothing.
pub fn statistics(plan: &Plan, buffer: &mut ElasticBuffer) -> Result<Checked> {
    let mut want = vec![0u64; buffer.local_experts().1 as usize];
    for step in plan.steps.iter().filter(|step| step.of.is_none()) {
        let came = counts::counts(&step.world, buffer.comm().rank(), plan.config.layout).by_expert;
        want.iter_mut().zip(came).for_each(|(sum, count)| *sum += u64::from(count));
    }
    let got = buffer.expert_statistics()?;
    Ok(if got == want { Ok(()) } else { Err(format!("{got:?} selections in all, expected {want:?}")) })
}
