//! What ranks exchange that go on without others.
use epoxide::{IndexType, Mode, WireFormat};

use super::reference::World;
use super::routing::{Case, Choice};

/// What ranks with so many tokens exchange, before one of them goes and behind that.
pub fn case(tokens: Vec<u32>, data: u64, mode: Mode) -> Case {
    let ranks = tokens.len() as u32;
    Case {
        ranks,
        experts: 3 * ranks + 1,
        top_k: 4,
        hidden: 144,
        format: WireFormat::Bf16,
        num_sms: 2,
        tokens,
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 2,
        data,
        mode,
    }
}

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
