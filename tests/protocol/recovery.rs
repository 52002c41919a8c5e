//! A fault anywhere, and a reset behind it: what came before has no part in what comes after, with all ranks or without one.
use super::low_latency;
use super::machine::Programs;
use super::rank_major;
use super::step::Step;
use super::stream::{Op, Places, Routes, Stream};
use super::throughput;
use super::world::{Setup, World};

/// What ranks do before the reset, and after it.
#[derive(Clone, Debug)]
pub enum Does {
    Throughput(Vec<Op>, Vec<Op>),
    LowLatency(low_latency::Variant, low_latency::Variant),
    RankMajor(rank_major::Variant, rank_major::Variant),
}

/// Operations of which any wait may end at its deadline, a reset, and operations behind it.
#[derive(Clone, Debug)]
pub struct Variant {
    pub ranks: u8,
    pub does: Does,
    /// Whether the last rank may end at any time, and is masked then.
    pub dies: bool,
    /// Whether a rank that is masked has ended, and what it stored has arrived.
    pub awaits_the_end: bool,
    /// Whether a rank's streams are idle when it comes to the reset, and what they stored has arrived.
    pub drains: bool,
    /// Whether ranks meet before they fill their words, and behind that.
    pub meets_before: bool,
    pub meets_after: bool,
    /// How many operations there were, as numbers have it, behind the reset: 0 if they begin anew.
    pub numbers: u16,
}

impl Variant {
    pub fn new(ranks: u8, does: Does) -> Self {
        let (dies, numbers) = (false, 0);
        Self { ranks, does, dies, awaits_the_end: true, drains: true, meets_before: true, meets_after: true, numbers }
    }

    pub fn programs(&self) -> Programs {
        let mut world = World::new(self.ranks, 1, Setup::WINDOW);
        let last = self.ranks - 1;
        world.mortal = self.dies.then_some(last);
        let living: Vec<u8> = (0..if self.dies { last } else { self.ranks }).collect();
        let meetings = [0; 2].map(|_| living.iter().map(|_| world.label()).collect::<Vec<_>>());
        for rank in 0..self.ranks {
            let agent = world.agent(rank, 0);
            let (gave_up, reset) = (world.label(), world.label());
            world.may_give_up(agent, Some(gave_up));
            world.setup.numbers = 0;
            let ops = self.before(&mut world, rank);
            world.push(agent, Step::Jump { target: reset });
            world.place(agent, gave_up);
            world.abort(agent, &(0..self.ranks).collect::<Vec<_>>());
            world.place(agent, reset);
            world.may_give_up(agent, None);
            if self.drains {
                world.push(agent, Step::Drain);
            }
            if !living.contains(&rank) {
                continue;
            }
            if self.dies && self.awaits_the_end {
                world.push(agent, Step::Gone { rank: last });
            }
            let [before, after] = &meetings;
            world.place(agent, before[usize::from(rank)]);
            if self.meets_before {
                world.push(agent, Step::Reached(before.clone()));
            }
            world.push(agent, Step::Fill { rank });
            world.place(agent, after[usize::from(rank)]);
            if self.meets_after {
                world.push(agent, Step::Reached(after.clone()));
            }
            world.setup.numbers = self.numbers;
            self.after(&mut world, rank, ops);
        }
        world.finish()
    }

    /// The operations before. Returns how many there were.
    fn before(&self, world: &mut World, rank: u8) -> u8 {
        match &self.does {
            Does::Throughput(ops, _) => {
                let mut stream = Stream::new(world, rank, Routes::All, Places::WINDOW);
                enqueue(&mut stream, ops);
                stream.op
            }
            Does::LowLatency(variant, _) => {
                variant.run(world, rank, 0);
                variant.moves[0].len() as u8
            }
            Does::RankMajor(variant, _) => variant.run(world, rank, 0).len() as u8,
        }
    }

    fn after(&self, world: &mut World, rank: u8, ops_before: u8) {
        match &self.does {
            Does::Throughput(_, ops) => {
                let mut stream = Stream::new(world, rank, Routes::All, Places::WINDOW);
                stream.op = ops_before;
                stream.masked = if self.dies { 1 << (self.ranks - 1) } else { 0 };
                // So that rows go where a masked rank's went.
                stream.dispatches = 1;
                enqueue(&mut stream, ops);
            }
            Does::LowLatency(_, variant) => {
                variant.run(world, rank, ops_before);
            }
            Does::RankMajor(_, variant) => {
                variant.run(world, rank, ops_before);
            }
        }
    }
}

fn enqueue(stream: &mut Stream<'_>, ops: &[Op]) {
    let kernels = throughput::Variant::new(stream.world.ranks, Vec::new());
    ops.iter().for_each(|&op| kernels.enqueue(stream, op));
}
