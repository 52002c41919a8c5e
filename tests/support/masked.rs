//! What ranks exchange that go on without others.
use super::reference::World;

/// What the others exchange without some ranks: nothing comes from them, and no selection of their experts counts. And how many selections
/// of each rank those are.
pub fn without(world: &World, gone: &[u32]) -> (World, Vec<u64>) {
    let (mut left, owners) = (world.clone(), world.owners());
    let mut dropped = Vec::new();
    for (rank, input) in (0..).zip(&mut left.inputs) {
        if gone.contains(&rank) {
            input.tokens = 0;
            input.x.clear();
            input.topk_idx.clear();
            input.topk_weights.clear();
        }
        let lost = |e: &i64| usize::try_from(*e).is_ok_and(|e| owners.get(e).is_some_and(|owner| gone.contains(owner)));
        dropped.push(input.topk_idx.iter().filter(|e| lost(e)).count() as u64);
        input.topk_idx.iter_mut().filter(|e| lost(e)).for_each(|e| *e = -1);
    }
    (left, dropped)
}
