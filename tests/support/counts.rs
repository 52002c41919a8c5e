//! What a dispatch brings, in numbers.
use epoxide::{Layout, RecvCounts};

use super::by_expert::{self, Padding};
use super::reference::{World, owned};

/// What `rank` is told of a world's dispatch. Nothing is dropped: who knows of what was, has a world without it.
pub fn counts(world: &World, rank: u32, layout: Layout) -> RecvCounts {
    let mut counts = RecvCounts::default();
    if layout == Layout::Compact {
        let arrivals = world.arrivals(rank);
        counts.rows = arrivals.sources.len() as u32;
        (counts.by_source, counts.by_expert) = (arrivals.by_source, arrivals.by_expert);
        return counts;
    }
    let (slots, offsets) = by_expert::slots(world, rank, Padding::of(layout));
    let mine = owned(world.experts, world.ranks)[rank as usize].clone();
    (counts.by_source, counts.by_expert) = (vec![0; world.ranks as usize], vec![0; mine.len()]);
    for &(source, token, k) in slots.iter().flatten() {
        counts.by_source[source as usize] += 1;
        counts.by_expert[world.selections(source, token)[k] as usize - mine.start as usize] += 1;
    }
    (counts.rows, counts.offsets) = (slots.len() as u32, offsets);
    counts
}

/// Where each expert's part of an index begins, and the end.
pub fn index_offsets(by_expert: &[u32], alignment: u32) -> Vec<u32> {
    let mut end = 0;
    let ends = by_expert.iter().map(|rows| {
        end += rows.next_multiple_of(alignment);
        end
    });
    [0].into_iter().chain(ends).collect()
}
