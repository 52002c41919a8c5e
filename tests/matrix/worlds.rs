//! What a cell's ranks send: the sizes that its values stand for, and the selections.
use epoxide::{Config, IndexType, Layout, Mode, WireFormat};

use super::dimensions::{Cell, Experts, Form, Index, Lie, Routing, Schedule};
use super::support::reference::{Wire, World, owned};
use super::support::routing::{Case, Choice, Random, rows};

/// A dispatch and its combine, the same on all ranks.
pub struct Step {
    /// The step whose routing it replays.
    pub of: Option<usize>,
    pub world: World,
    pub wires: Vec<Wire>,
}

/// Experts in all, at least as many as a token selects.
pub fn experts(cell: &Cell) -> u32 {
    let experts = match cell.experts {
        Experts::Even => 4 * cell.ranks,
        Experts::Uneven => 2 * cell.ranks + cell.ranks / 2 + 1,
        Experts::Fewest => 1,
        Experts::Many => 256,
    };
    match cell.experts {
        Experts::Even => experts.max(cell.top_k.next_multiple_of(cell.ranks)),
        _ => experts.max(cell.top_k),
    }
}

/// The most tokens of a rank.
pub fn most_tokens(cell: &Cell) -> u32 {
    match cell.ranks {
        64 => 2,
        8 => 6,
        _ => 12,
    }
}

/// Elements of an expert output: those of a row, where it has elements.
pub fn hidden(cell: &Cell) -> u32 {
    match cell.rows {
        Form::Bf16 => cell.row_bytes / 2,
        Form::Fp8Inside | Form::Fp8Brought | Form::Fp8Both => cell.row_bytes,
        Form::Opaque => 24,
    }
}

/// How rows travel.
fn format(cell: &Cell) -> WireFormat {
    match cell.rows {
        Form::Bf16 => WireFormat::Bf16,
        Form::Fp8Inside | Form::Fp8Brought | Form::Fp8Both => WireFormat::Fp8,
        Form::Opaque => {
            let scale_words = [0, 1, 3, 4, 56, 131][(cell.data % 6) as usize];
            WireFormat::Opaque { row_bytes: cell.row_bytes, scale_words }
        }
    }
}

/// The type of its selections.
pub fn index(cell: &Cell) -> IndexType {
    match cell.index {
        Index::I32 => IndexType::I32,
        Index::I64 => IndexType::I64,
        Index::U32 => IndexType::U32,
    }
}

/// Its schedule.
pub fn mode(cell: &Cell) -> Mode {
    match cell.schedule {
        // One worker: cells run beside other tests.
        Schedule::Fast => Mode::Fast { workers: 1 },
        Schedule::Seeded => Mode::Seeded { seed: cell.data },
    }
}

/// Its buffer.
pub fn config(cell: &Cell) -> Config {
    let config = Config::new(experts(cell), cell.top_k, hidden(cell), most_tokens(cell));
    let config = config.with_format(format(cell)).with_num_sms(cell.num_sms).with_routing_slots(cell.routings);
    let config = match cell.layout {
        Lie::Compact => config,
        Lie::ByExpert => config.with_layout(Layout::ExpertContiguous { alignment: cell.alignment }),
    };
    if cell.padding { config.with_zero_padding() } else { config }
}

/// Its dispatches, each with a combine: as many as there are routings, and two at least, since buffers have two sides; and then each
/// routing that is still alive again, the last first.
pub fn steps(cell: &Cell) -> Vec<Step> {
    let fresh = cell.routings.max(2) as usize;
    let mut steps: Vec<_> = (0..fresh).map(|number| step(cell, None, world(cell, number as u64))).collect();
    if cell.again {
        for of in (fresh - cell.routings as usize..fresh).rev() {
            let mut random = Random::new(cell.data ^ 0x5eed ^ (of as u64) << 40);
            let mut world = steps[of].world.clone();
            world.inputs.iter_mut().for_each(|input| input.x = rows(&mut random, input.tokens, world.hidden));
            steps.push(step(cell, Some(of), world));
        }
    }
    steps
}

fn step(cell: &Cell, of: Option<usize>, world: World) -> Step {
    let wires = (0..cell.ranks).map(|rank| world.wire(rank)).collect();
    Step { of, world, wires }
}

/// What all ranks dispatch.
fn world(cell: &Cell, number: u64) -> World {
    let data = cell.data ^ (number + 1) << 33;
    let mut random = Random::new(data);
    let special = random.below(cell.ranks);
    let tokens = (0..cell.ranks).map(|rank| match cell.routing {
        Routing::NoTokenAnywhere => 0,
        Routing::NoTokenOnOne if rank == special => 0,
        _ => 1 + random.below(most_tokens(cell)),
    });
    let case = Case {
        ranks: cell.ranks,
        experts: experts(cell),
        top_k: cell.top_k,
        hidden: hidden(cell),
        format: format(cell),
        num_sms: cell.num_sms,
        tokens: tokens.collect(),
        index: index(cell),
        choice: match cell.routing {
            Routing::Skewed => Choice::Skewed,
            Routing::Same => Choice::Same,
            _ => Choice::Uniform,
        },
        holes: match cell.routing {
            Routing::Holes => 4,
            Routing::AllHoles => 16,
            _ => 0,
        },
        data,
        mode: mode(cell),
    };
    let mut world = case.world();
    let own = owned(world.experts, world.ranks);
    // A rank that has experts.
    let target = (0..world.ranks).map(|i| (special + i) % world.ranks).find(|rank| !own[*rank as usize].is_empty());
    let target = own[target.unwrap_or_default() as usize].clone();
    for selections in world.inputs.iter_mut().flat_map(|input| input.topk_idx.chunks_exact_mut(cell.top_k as usize)) {
        match cell.routing {
            Routing::HotExpert => make_hot(selections, i64::from(target.start)),
            Routing::OneRank => {
                // From one of its experts on, as many as it has.
                let first = random.below(target.len() as u32);
                let ring = (0..target.len() as u32).map(|i| target.start + (first + i) % target.len() as u32);
                let mut ring = ring.map(i64::from);
                selections.fill_with(|| ring.next().unwrap_or(-1));
            }
            _ => {}
        }
    }
    world
}

/// Puts an expert among a token's selections, if it is not.
fn make_hot(selections: &mut [i64], expert: i64) {
    if !selections.contains(&expert) {
        let at = selections.len() / 2;
        selections[at] = expert;
    }
}
