//! Histories of a buffer with several row slots: dispatches and replays in flight, combined in any order, kept, looked at and released.
use epoxide::{Config, IndexType, Layout, Mode, Received, WireFormat, bf16};

use super::by_expert::{self, Padding};
use super::exchange;
use super::reference::{Wire, World, same};
use super::routing::{Case, Choice, Random};

/// Elements of a row.
pub const HIDDEN: u32 = 48;
const EXPERTS: u32 = 9;

/// Where a flight's rows and routing must lie, by the rule that the library states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub row: u32,
    pub routing: u32,
}

/// What all ranks do, each step by the number of a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A dispatch.
    Dispatch(usize),
    /// Its rows are read, which must be there.
    Look(usize),
    /// Its rows are summed.
    Combine(usize),
    /// Its row slot is given back.
    Release(usize),
}

/// A dispatch or a replay.
pub struct Flight {
    /// The flight whose routing it replays.
    pub again: Option<usize>,
    /// The row slot that it names.
    pub named: Option<u32>,
    pub keep: bool,
    pub place: Place,
    pub world: World,
    pub wires: Vec<Wire>,
}

/// What a history is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub ranks: u32,
    pub row_slots: u32,
    pub routing_slots: u32,
    pub steps: usize,
    pub tokens: u32,
    pub format: WireFormat,
    pub layout: Layout,
    pub seed: u64,
    pub mode: Mode,
    /// How many operations and dispatches there were before, in each row slot.
    pub before: u64,
}

/// A flight that holds its row slot.
#[derive(Clone, Copy)]
struct Held {
    flight: usize,
    combined: bool,
}

impl Plan {
    /// The configuration of its buffer.
    pub fn config(&self) -> Config {
        let case = Case { tokens: vec![self.tokens], ..self.case(&mut Random::new(self.seed)) };
        let config = case.config().with_layout(self.layout).with_row_slots(self.row_slots);
        config.with_routing_slots(self.routing_slots)
    }

    fn case(&self, random: &mut Random) -> Case {
        Case {
            ranks: self.ranks,
            experts: EXPERTS,
            top_k: 3,
            hidden: HIDDEN,
            format: self.format,
            num_sms: 1 + self.seed as u32 % 2,
            tokens: (0..self.ranks).map(|_| random.below(self.tokens + 1)).collect(),
            index: IndexType::I64,
            choice: [Choice::Uniform, Choice::Skewed][random.below(2) as usize],
            holes: random.below(4),
            data: random.draw(),
            mode: self.mode,
        }
    }

    /// The steps and the flights that they are of: as many in flight as there are row slots, and any of them ends at any time.
    pub fn history(&self) -> (Vec<Step>, Vec<Flight>) {
        let mut random = Random::new(self.seed);
        let (mut steps, mut flights): (Vec<Step>, Vec<Flight>) = (Vec::new(), Vec::new());
        let mut rows: Vec<Option<Held>> = vec![None; self.row_slots as usize];
        // The flight that made it.
        let mut routings: Vec<Option<usize>> = vec![None; self.routing_slots as usize];
        let (mut row_turn, mut routing_turn) = (0, 0);
        while steps.len() < self.steps {
            let held: Vec<(usize, Held)> =
                rows.iter().enumerate().filter_map(|(slot, held)| held.map(|held| (slot, held))).collect();
            let full = held.len() == rows.len();
            if !full && random.below(5) < 3 {
                let free = |turn: usize, slots: &dyn Fn(usize) -> bool, len: usize| {
                    (0..len).map(|i| (turn + i) % len).find(|slot| slots(*slot)).expect("one is free")
                };
                let named =
                    (random.below(4) == 0).then(|| free(random.below(99) as usize, &|s| rows[s].is_none(), rows.len()));
                let row = named.unwrap_or_else(|| free(row_turn, &|slot| rows[slot].is_none(), rows.len()));
                if named.is_none() {
                    row_turn = (row + 1) % rows.len();
                }
                let alive: Vec<usize> = routings.iter().copied().flatten().collect();
                let again = (!alive.is_empty() && random.below(3) == 0)
                    .then(|| alive[random.below(alive.len() as u32) as usize]);
                let (routing, world) = match again {
                    Some(of) => {
                        let mut world = flights[of].world.clone();
                        world.inputs.iter_mut().for_each(|i| i.x = super::routing::rows(&mut random, i.tokens, HIDDEN));
                        (flights[of].place.routing, world)
                    }
                    None => {
                        let holds =
                            |slot: usize| held.iter().any(|(_, h)| flights[h.flight].place.routing as usize == slot);
                        let routing = free(routing_turn, &|slot| !holds(slot), routings.len());
                        routing_turn = (routing + 1) % routings.len();
                        routings[routing] = Some(flights.len());
                        (routing as u32, self.case(&mut random).world())
                    }
                };
                let wires = world.wires();
                let (named, keep) = (named.map(|slot| slot as u32), random.below(3) == 0);
                rows[row] = Some(Held { flight: flights.len(), combined: false });
                steps.push(Step::Dispatch(flights.len()));
                flights.push(Flight { again, named, keep, place: Place { row: row as u32, routing }, world, wires });
                continue;
            }
            let Some(&(slot, Held { flight, combined })) = held.get(random.below(held.len().max(1) as u32) as usize)
            else {
                continue;
            };
            match random.below(6) {
                0 | 1 => steps.push(Step::Look(flight)),
                // Given up, or what was kept.
                2 if combined || random.below(3) == 0 => {
                    rows[slot] = None;
                    steps.push(Step::Release(flight));
                }
                _ if !combined => {
                    rows[slot] = flights[flight].keep.then_some(Held { flight, combined: true });
                    steps.push(Step::Combine(flight));
                }
                _ => {}
            }
        }
        (steps, flights)
    }

    fn padding(&self) -> Option<Padding> {
        match self.layout {
            Layout::ExpertContiguous { alignment } => Some(Padding::Multiple(alignment)),
            Layout::Slab { capacity } => Some(Padding::Slab(capacity)),
            _ => None,
        }
    }

    /// Compares what a rank received with the reference.
    pub fn check_received(&self, flight: &Flight, rank: u32, got: &Received) -> Result<(), String> {
        let Flight { world, wires, .. } = flight;
        match self.padding() {
            Some(padding) => by_expert::check_received(world, wires, rank, padding, false, got),
            None => exchange::check_received(world, wires, &world.arrivals(rank), got),
        }
    }

    /// What a rank's experts make of what it received.
    pub fn outputs(&self, flight: &Flight, rank: u32, received: &Received) -> Vec<bf16> {
        match self.padding() {
            Some(_) => by_expert::expert_outputs(&flight.world, rank, received),
            None => exchange::expert_outputs(rank, HIDDEN, received),
        }
    }

    /// What they will make of what it will receive, in BF16.
    pub fn predicted_outputs(&self, flight: &Flight, rank: u32) -> Vec<bf16> {
        match self.layout {
            Layout::ExpertContiguous { alignment } => {
                by_expert::predicted_outputs(&flight.world, rank, &flight.wires, alignment)
            }
            _ => flight.world.expert_outputs(rank, &flight.wires),
        }
    }

    /// The rows that a rank receives, in BF16; none where a row pads.
    pub fn predicted_rows(&self, flight: &Flight, rank: u32) -> Vec<Option<Vec<bf16>>> {
        let row = |(source, token)| flight.world.row(source, token).to_vec();
        match self.padding() {
            Some(padding) => {
                let (slots, _) = by_expert::slots(&flight.world, rank, padding);
                slots.into_iter().map(|slot| slot.map(|(source, token, _)| row((source, token)))).collect()
            }
            None => flight.world.arrivals(rank).sources.into_iter().map(|source| Some(row(source))).collect(),
        }
    }

    /// Compares a rank's sums with the reference.
    pub fn check_sums(&self, flight: &Flight, rank: u32, y: &[bf16]) -> Result<(), String> {
        let (world, wire) = (&flight.world, &flight.wires[rank as usize]);
        let want = match self.padding() {
            Some(_) => by_expert::combined(world, rank, wire),
            None => world.combined(rank, wire),
        };
        same("combined rows", y, &want, HIDDEN as usize)
    }
}
