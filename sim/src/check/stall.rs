//! Who waits for what when nothing can ever move again: the lines of a deadlock's report.

use std::time::Duration;

use crate::device::Space;
use crate::engine::block::barriers::Mbarrier;
use crate::engine::block::state::{BlockState, Waiting};
use crate::engine::block::warp::{bits, ranges};
use crate::engine::books::{ActorState, Books};
use crate::memory::arena::Arena;

/// The most lines of a worker's part of a report.
const REPORT_LINES: usize = 64;

/// One line for each group of threads that wait for the same thing.
pub(crate) fn blocks(arena: &Arena, blocks: &[&BlockState]) -> Vec<String> {
    let mut lines = Vec::new();
    for state in blocks {
        if lines.len() >= REPORT_LINES {
            lines.push("  and more blocks".to_string());
            break;
        }
        let place =
            format!("  kernel {} (launch {}), rank {}, block {}", state.kernel, state.launch, state.rank, state.index);
        let more = (REPORT_LINES - lines.len()).max(1);
        lines.extend(waits(arena, state).into_iter().take(more).map(|(warps, lanes, what)| {
            format!("{place}, warp {}, lanes {}: {what}", ranges(warps.into_iter()), ranges(bits(lanes)))
        }));
    }
    lines
}

/// Groups a block's waiting threads: warps, lanes, and what they wait for.
fn waits(arena: &Arena, state: &BlockState) -> Vec<(Vec<u32>, u32, String)> {
    let mut groups: Vec<(Vec<u32>, u32, String)> = Vec::new();
    for (warp, lanes) in (0u32..).zip(state.lanes.chunks(32)) {
        let mut kinds: Vec<(u32, String)> = Vec::new();
        for (lane, waiting) in lanes.iter().map(|lane| describe(arena, state, warp, &lane.waiting)).enumerate() {
            let Some(what) = waiting else { continue };
            match kinds.iter_mut().find(|(_, known)| *known == what) {
                Some((mask, _)) => *mask |= 1 << lane,
                None => kinds.push((1 << lane, what)),
            }
        }
        for (mask, what) in kinds {
            match groups.iter_mut().find(|(_, lanes, known)| *lanes == mask && *known == what) {
                Some((warps, ..)) => warps.push(warp),
                None => groups.push((vec![warp], mask, what)),
            }
        }
    }
    groups
}

/// What one thread waits for; `None` when it has returned.
fn describe(arena: &Arena, state: &BlockState, warp: u32, waiting: &Waiting) -> Option<String> {
    Some(match waiting {
        Waiting::Exited => return None,
        Waiting::Start => "not started".to_string(),
        Waiting::Preempted { .. } => "ready to run".to_string(),
        Waiting::Warp { op, mask, location } => {
            let meets = &state.warps[warp as usize].meets;
            let arrived = meets.iter().find(|meet| meet.mask == *mask).map_or(0, |meet| meet.arrived);
            let missing = ranges(bits(mask & !arrived));
            format!("in {} with mask {mask:#010x} at {location}, waiting for lanes {missing}", op.name())
        }
        Waiting::Barrier { id, location } => {
            let barrier = &state.barriers[*id as usize];
            format!("at barrier {id} at {location}, where {} of {} threads are", barrier.arrived, barrier.expected)
        }
        Waiting::Poll { wait, location } => format!(
            "polling {} of peer {} at {location}: expected {}, seen {} in the {} bytes at {}{}",
            wait.what,
            wait.peer,
            wait.expected,
            wait.seen,
            wait.bytes,
            match wait.word.space {
                Space::Global => arena.place_of(wait.word.at),
                Space::Shared => format!("shared offset {:#x}", wait.word.at),
            },
            wait.deadline_ns.map_or_else(String::new, |time| format!(", deadline {time} ns of virtual time"))
        ),
        Waiting::Sleep { until, location } => format!("asleep until {until} ns of virtual time at {location}"),
        Waiting::Mbarrier { at, parity, location } => {
            let missing = state.mbarriers.iter().find(|object| object.at == *at).map(Mbarrier::missing);
            format!("waiting for mbarrier {at:#x}, parity {parity}, at {location}: {}", missing.unwrap_or_default())
        }
    })
}

/// One line for each host thread that is blocked, or counts as blocked.
pub(crate) fn hosts(books: &Books, patience: Duration) -> Vec<String> {
    let line = |(rank, actor): (u32, &ActorState)| {
        let what = match actor {
            ActorState::Absent | ActorState::Running if !books.overdue[rank as usize] => return None,
            ActorState::Absent => format!("has not come for {patience:?} of wall time"),
            ActorState::Running => format!("runs elsewhere, and nothing moved for {patience:?} of wall time"),
            ActorState::InSynchronize(stream) => format!("synchronizes stream {stream}"),
            ActorState::InEvent(_) => "waits for an event".to_string(),
            ActorState::InExchange => "is in an exchange".to_string(),
            ActorState::InLookout(lookout) => format!("waits for a word until {} ns of virtual time", lookout.until),
            ActorState::Left | ActorState::Gone => "is gone".to_string(),
            ActorState::Killed => "was killed".to_string(),
        };
        Some(format!("  host thread of rank {rank} {what}"))
    };
    (0u32..).zip(&books.actors).filter_map(line).collect()
}

/// One line for each kernel with blocks that found no SM.
pub(crate) fn queued(books: &Books) -> Vec<String> {
    let waiting = books.placing.iter().flatten();
    waiting
        .map(|placing| {
            let (grid, left) = (&placing.grid, placing.left());
            let (kernel, blocks) = (grid.launch.kernel, grid.launch.grid);
            let (number, rank) = (grid.number, grid.stream.rank);
            format!("  kernel {kernel} (launch {number}), rank {rank}: {left} of {blocks} blocks wait for a free SM")
        })
        .collect()
}
