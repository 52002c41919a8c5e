//! What a cell's ranks send: the sizes that its values stand for, and the selections.
use epoxide::{Config, IndexType, Layout, Mode, Overflow, ScaleLayout, WireFormat};

use super::dimensions::{Cell, Experts, Form, Index, Lie, Room, Routing, Scales, Schedule, Y};
use super::order::{self, Do, RowSlots};
use super::support::gradient::gradients;
use super::support::masked::without;
use super::support::overflow::Over;
use super::support::reference::{Wire, World, owned};
use super::support::routing::{Case, Choice, Random, rows};
use super::support::{by_expert, overflow};

/// What a cell's ranks do.
pub struct Plan {
    pub config: Config,
    pub steps: Vec<Step>,
    /// In which order they begin and end.
    pub order: Vec<Do>,
    /// Where some ranks are masked, how many selections of theirs each rank drops in all.
    pub masked: Option<Vec<u64>>,
}

/// A dispatch and its combine, the same on all ranks.
pub struct Step {
    /// The step whose routing it replays.
    pub of: Option<usize>,
    /// The row slot that its dispatch takes, and that of its gradient.
    pub row_slots: [u32; 2],
    /// What ranks give.
    pub given: World,
    /// What comes of it: selections that were dropped are none, and all where it does not fit.
    pub world: World,
    /// That it does not fit, or what it replays did not.
    pub over: Option<Over>,
    /// Selections of each expert that are dropped.
    pub dropped: Vec<u32>,
    pub wires: Vec<Wire>,
    /// Gradients of the sums, if they go back.
    pub dy: Option<World>,
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
pub fn format(cell: &Cell) -> WireFormat {
    match cell.rows {
        Form::Bf16 => WireFormat::Bf16,
        Form::Fp8Inside | Form::Fp8Brought | Form::Fp8Both => match cell.scales {
            Scales::F32 => WireFormat::Fp8,
            Scales::Ue8m0 => WireFormat::Fp8Ue8m0,
            Scales::Mx => WireFormat::Mxfp8,
        },
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

/// Routings that are alive: one at least for each dispatch whose rows are there.
fn alive(cell: &Cell) -> u32 {
    cell.routings.max(cell.row_slots)
}

/// Its buffer, with room for so many rows.
fn config(cell: &Cell, layout: Layout, room: Option<u64>) -> Config {
    let config = Config::new(experts(cell), cell.top_k, hidden(cell), most_tokens(cell));
    let mut config = config.with_format(format(cell)).with_layout(layout).with_num_sms(cell.num_sms);
    config.routing_slots = alive(cell);
    config.row_slots = cell.row_slots;
    if cell.columns {
        config = config.with_scale_layout(ScaleLayout::ColumnMajor);
    }
    config.expert_index = (cell.layout == Lie::Compact && cell.alignment > 1).then_some(cell.alignment);
    config.zero_padding = cell.padding;
    config.counts_mirror = cell.told;
    config.expert_statistics = cell.statistics;
    if cell.biases > 0 || cell.accumulate || cell.y == Y::F32 || cell.gated {
        config = config.with_combine_options();
    }
    config.fp8_combine = cell.over_fp8;
    if cell.returned || cell.gradient {
        config = config.with_returned_weights();
    }
    if cell.room == Room::Dropping {
        config = config.with_overflow(Overflow::Drop);
    }
    // Slabs have theirs in the layout.
    config.capacity = room.filter(|_| cell.layout != Lie::Slab);
    config
}

/// Its dispatches, each with a combine: as many as there are routings and calls; and then each routing that is still alive again, the last
/// first.
pub fn plan(cell: &Cell) -> Plan {
    plan_without(cell, &[])
}

/// What comes of the same where these ranks are masked: all ranks give what they would, and nothing comes from these or goes to their experts.
pub fn plan_without(cell: &Cell, gone: &[u32]) -> Plan {
    let alive = alive(cell) as usize;
    let fresh = cell.calls.max(alive);
    let order = order::of(cell, fresh, if cell.again { alive } else { 0 });
    let places = RowSlots::places(cell, &order, fresh);
    let given: Vec<_> = (0..fresh as u64).map(|number| world(cell, number)).collect();
    let (left, masked): (Vec<World>, Vec<Vec<u64>>) = given.iter().map(|world| without(world, gone)).unzip();
    let masked = (0..cell.ranks as usize).map(|rank| masked.iter().map(|of| of[rank]).sum()).collect();
    let (layout, room) = room(cell, &left);
    let config = config(cell, layout, room);
    let mut steps = Vec::new();
    for ((given, left), place) in given.into_iter().zip(left).zip(&places) {
        let over = match cell.room {
            Room::Exact | Room::TooFew => overflow::over(&left, layout, room.unwrap_or(0), place.operation),
            Room::Worst | Room::Dropping => None,
        };
        let (world, dropped) = match (over, layout) {
            (Some(_), _) => (overflow::nothing(&left), Vec::new()),
            (None, Layout::Slab { capacity }) => by_expert::dropped(&left, capacity),
            (None, _) => (left, Vec::new()),
        };
        let (wires, dy, row_slots) = (Vec::new(), None, place.slots);
        steps.push(step(cell, Step { of: None, row_slots, given, world, over, dropped, wires, dy }));
    }
    if cell.again {
        for (of, place) in (fresh..fresh + alive).map(|step| order::replayed(step, fresh)).zip(&places[fresh..]) {
            let mut random = Random::new(cell.data ^ 0x5eed ^ (of as u64) << 40);
            let mut world = steps[of].world.clone();
            world.inputs.iter_mut().for_each(|input| input.x = rows(&mut random, input.tokens, world.hidden));
            let (over, dropped) = (steps[of].over, steps[of].dropped.clone());
            let given = world.clone();
            let (wires, dy, row_slots) = (Vec::new(), None, place.slots);
            steps.push(step(cell, Step { of: Some(of), row_slots, given, world, over, dropped, wires, dy }));
        }
    }
    Plan { config, steps, order, masked: Some(masked).filter(|_| !gone.is_empty()) }
}

/// A step with what follows from its rows.
fn step(cell: &Cell, mut step: Step) -> Step {
    step.wires = step.world.wires();
    step.dy = cell.gradient.then(|| {
        let mut random = Random::new(cell.data ^ 0xdada ^ u64::from(step.of.is_some()) << 41);
        let mut dy = step.world.clone();
        dy.inputs.iter_mut().for_each(|input| input.x = rows(&mut random, input.tokens, dy.hidden));
        gradients(&dy)
    });
    step
}

/// How rows lie, and for how many there is room, if not for all that could come.
fn room(cell: &Cell, worlds: &[World]) -> (Layout, Option<u64>) {
    let layout = |capacity: u64| match cell.layout {
        Lie::Compact => Layout::Compact,
        Lie::ByExpert => Layout::ExpertContiguous { alignment: cell.alignment },
        Lie::Slab => Layout::Slab { capacity: capacity as u32 },
        Lie::RankMajor => Layout::RankMajor { alignment: cell.alignment },
    };
    if cell.layout == Lie::RankMajor {
        return (layout(0), None);
    }
    let wanted = worlds.iter().flat_map(|world| overflow::wanted(world, layout(u64::MAX)));
    let room = match (cell.room, cell.layout) {
        (Room::Worst, Lie::Slab) => Some(u64::from(cell.ranks * most_tokens(cell))),
        (Room::Worst, _) => None,
        (Room::Exact, _) => wanted.max(),
        (Room::TooFew, _) => wanted.max().map(|most| most.saturating_sub(1)),
        (Room::Dropping, _) => wanted.max().map(|most| 1 + cell.data % most.max(1)),
    };
    // A buffer has room for one row at least.
    let room = room.map(|room| room.max(1));
    (layout(room.unwrap_or(0)), room)
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
