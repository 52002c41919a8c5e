//! What pads rows by expert, in a buffer with several slots. That a row pads is said beside the rows of its routing slot, and in slabs said once: it is still
//! said whatever comes into other slots, behind a replay, and behind a dispatch that did not fit or failed.
use crate::support;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use epoxide::{
    CombineInput, Comm, Dispatched, ElasticBuffer, Error, ExpertOutputs, IndexType, Layout, Mode, Result, WireFormat,
};
use support::by_expert::{Padding, check_received, check_round_of};
use support::exchange::{Indices, Tensors};
use support::overflow::wanted;
use support::reference::World;
use support::routing::{Case, Choice, Random};
use support::{Checked, Device, replay};

const ROUTING_SLOTS: u32 = 3;
const STEPS: u32 = 40;

fn case(data: u64, mode: Mode) -> Case {
    Case {
        ranks: 3,
        experts: 5,
        top_k: 2,
        hidden: 64,
        format: WireFormat::Bf16,
        num_sms: 2,
        tokens: vec![12, 7, 9],
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 0,
        data,
        mode,
    }
}

/// Rows of many selections, of few and of none; the last are all of the first rank's two experts, for which there is too little room.
fn worlds(case: &Case) -> Vec<World> {
    let mut worlds = Vec::new();
    for (round, selections) in (0..).zip([24, 0, 2, 9, 24, 5]) {
        let mut world = Case { data: case.data.wrapping_add(round), ..case.clone() }.world();
        for input in &mut world.inputs {
            input.topk_idx.iter_mut().skip(selections).for_each(|selection| *selection = -1);
        }
        worlds.push(world);
    }
    let mut many = case.world();
    many.inputs.iter_mut().for_each(|input| input.topk_idx = [0, 1].repeat(input.tokens as usize));
    worlds.push(many);
    worlds
}

/// What a buffer of a layout has room for: all worlds but the last.
fn room(layout: Layout, worlds: &[World]) -> u64 {
    worlds[..worlds.len() - 1].iter().flat_map(|world| wanted(world, layout)).max().unwrap_or(0)
}

/// A rank's part in a history that follows from its seed, on every rank the same.
struct History<'a> {
    comm: &'a Comm,
    buffer: ElasticBuffer,
    tensors: Tensors,
    worlds: &'a [World],
    padding: Padding,
    /// What each slot has the routing of.
    routings: [Option<(Dispatched, usize)>; ROUTING_SLOTS as usize],
    /// Rows that are there, oldest first.
    flights: VecDeque<(Dispatched, usize)>,
}

impl History<'_> {
    fn tokens(&self) -> u32 {
        self.worlds[0].inputs[self.comm.rank() as usize].tokens
    }

    /// Dispatches into a slot, by the selections in the tensors.
    fn dispatch(&mut self, slot: u32) -> Result<Dispatched> {
        let tokens = self.tokens();
        self.tensors.dispatch_into(&mut self.buffer, tokens, (&self.tensors.x).into(), Some(slot))
    }

    fn combine_oldest(&mut self) -> Result<Checked> {
        let Some((handle, world)) = self.flights.pop_front() else { return Ok(Ok(())) };
        let world = &self.worlds[world];
        let y = &mut self.tensors.y;
        check_round_of(self.comm, &mut self.buffer, &handle, y, world, &world.wires(), self.padding)
    }

    /// A dispatch that fits, or of which it is told that it does not.
    fn bring(&mut self, slot: u32, world: usize) -> Result<Checked> {
        self.tensors.fill(&self.worlds[world], self.comm.rank())?;
        let handle = self.dispatch(slot)?;
        self.routings[slot as usize] = None;
        match (self.buffer.received(&handle), world + 1 == self.worlds.len()) {
            (Ok(_), false) => {
                self.routings[slot as usize] = Some((handle.clone(), world));
                self.flights.push_back((handle, world));
                Ok(Ok(()))
            }
            (Err(Error::CapacityExceeded { .. }), true) => {
                let y = CombineInput::new(ExpertOutputs::InPlace, &mut self.tensors.y);
                self.buffer.combine(&handle, y)?;
                // The combine says it too.
                match self.buffer.synchronize() {
                    Err(Error::CapacityExceeded { .. }) => Ok(Ok(())),
                    other => Ok(Err(format!("{other:?} of the combine behind a dispatch that did not fit"))),
                }
            }
            (Err(error), _) => Err(error),
            (Ok(_), true) => Ok(Err("it fits".to_owned())),
        }
    }

    /// The same rows by the routing of a slot.
    fn bring_again(&mut self, handle: &Dispatched, world: usize) -> Result<Checked> {
        self.tensors.fill(&self.worlds[world], self.comm.rank())?;
        let again = self.buffer.dispatch_again(handle, &self.tensors.x)?;
        self.flights.push_back((again, world));
        Ok(Ok(()))
    }

    /// A dispatch of which one rank's selections are none, behind which the buffer is reset.
    fn fail(&mut self, slot: u32, world: usize) -> Result<Checked> {
        self.tensors.fill(&self.worlds[world], self.comm.rank())?;
        if self.comm.rank() == 1
            && let Indices::I64(idx) = &mut self.tensors.topk_idx
        {
            idx.copy_from_host(&vec![1000; self.worlds[world].inputs[1].topk_idx.len()])?;
        }
        self.dispatch(slot)?;
        let said = self.buffer.synchronize();
        self.buffer.reset()?;
        self.routings = [const { None }; ROUTING_SLOTS as usize];
        Ok(if said.is_err() { Ok(()) } else { Err("there was no fault".to_owned()) })
    }

    /// Looks at all rows that are there.
    fn look(&mut self) -> Result<Checked> {
        let mut checked = Ok(());
        for (handle, world) in &self.flights {
            let (received, world) = (self.buffer.received(handle)?, &self.worlds[*world]);
            let right = check_received(world, &world.wires(), self.comm.rank(), self.padding, false, &received);
            checked = checked.and(right.map_err(|why| format!("routing slot {}: {why}", handle.routing_slot())));
        }
        Ok(checked)
    }

    fn step(&mut self, random: &mut Random) -> Result<Checked> {
        let (slot, world, what) =
            (random.below(ROUTING_SLOTS), random.below(self.worlds.len() as u32), random.below(8));
        let mut checked = Ok(());
        let is_held = |history: &Self| history.flights.iter().any(|(handle, _)| handle.routing_slot() == slot);
        while self.flights.len() == 2 || is_held(self) || what == 0 && !self.flights.is_empty() {
            checked = checked.and(self.combine_oldest()?);
        }
        let right = match (what, self.routings[slot as usize].clone()) {
            (0, _) => self.fail(slot, world as usize)?,
            (1..4, Some((handle, world))) => self.bring_again(&handle, world)?,
            _ => self.bring(slot, world as usize)?,
        };
        Ok(checked.and(right).and(self.look()?))
    }
}

fn history(comm: &Comm, case: &Case, layout: Layout, worlds: &[World]) -> Result<Checked> {
    let config = case.config().with_layout(layout).with_row_slots(2).with_routing_slots(ROUTING_SLOTS);
    let config = match layout {
        Layout::Slab { .. } => config,
        _ => config.with_capacity(room(layout, worlds)),
    };
    let tokens = case.tokens[comm.rank() as usize];
    let mut history = History {
        comm,
        buffer: ElasticBuffer::new(comm, config)?,
        tensors: Tensors::empty(comm, tokens, case.hidden, case.top_k, case.index)?,
        worlds,
        padding: Padding::of(layout),
        routings: [const { None }; ROUTING_SLOTS as usize],
        flights: VecDeque::new(),
    };
    let (mut random, mut checked) = (Random::new(case.data), Ok(()));
    for number in 0..STEPS {
        let right = history.step(&mut random)?;
        checked = checked.and(right.map_err(|why| format!("step {number}: {why}")));
    }
    history.buffer.close()?;
    Ok(checked)
}

#[test]
fn what_pads_is_marked_in_every_slot_whatever_comes_into_others() {
    let device = Device::from_env();
    for seed in replay::seeds(2) {
        for mode in device.schedules([seed]) {
            let case = case(seed, mode);
            let worlds = worlds(&case);
            let capacity = room(Layout::Slab { capacity: 1 }, &worlds) as u32;
            for layout in [Layout::Slab { capacity }, Layout::ExpertContiguous { alignment: 8 }] {
                let checked = device.check(case.ranks, mode, |comm| history(&comm, &case, layout, &worlds));
                checked.unwrap_or_else(|why| {
                    let test = "what_pads_is_marked_in_every_slot_whatever_comes_into_others";
                    panic!("{layout:?}: {why}\n{}", replay::line(module_path!(), test, seed))
                });
            }
        }
    }
}

/// Rounds of few rows in a slab, of many to which rank 1 comes `late`, and of few again: whether some rank gave up in the second, and what is wrong with the third.
fn given_up_in_between(
    device: Device,
    case: &Case,
    worlds: [&World; 2],
    late: Duration,
) -> std::result::Result<bool, String> {
    let gave_up = AtomicBool::new(false);
    let capacity = wanted(worlds[1], Layout::Slab { capacity: 1 }).into_iter().max().unwrap_or(0) as u32;
    let layout = Layout::Slab { capacity };
    let checked = device.check(case.ranks, case.mode, |comm| {
        let rank = comm.rank();
        let config = case.config().with_layout(layout).with_timeout(Duration::from_micros(100));
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        let tokens = case.tokens[rank as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        let mut checked = Ok(());
        for round in 0..3 {
            let world = worlds[round % 2];
            tensors.fill(world, rank)?;
            comm.barrier()?;
            if (round, rank) == (1, 1) {
                comm.delay(late)?;
            }
            let handle = tensors.dispatch(&mut buffer, tokens)?;
            if round == 1 && buffer.synchronize().is_err() {
                gave_up.store(true, Relaxed);
            }
            if round == 1 {
                buffer.reset()?;
                continue;
            }
            let padding = Padding::of(layout);
            checked = checked.and(check_round_of(
                &comm,
                &mut buffer,
                &handle,
                &mut tensors.y,
                world,
                &world.wires(),
                padding,
            )?);
        }
        buffer.close()?;
        Ok(checked)
    });
    checked.map(|()| gave_up.into_inner())
}

/// Its rows may come to a rank that has given up and marked nothing any more. What that rank marked before is forgotten with the reset.
#[test]
fn what_pads_is_marked_anew_behind_a_dispatch_that_was_given_up() {
    let (mut whole, mut gave_up) = (0, 0);
    for seed in replay::seeds(2) {
        for late in (60..130).step_by(2).map(Duration::from_micros) {
            let case = Case { ranks: 2, experts: 4, tokens: vec![9, 9], ..case(seed, Mode::Seeded { seed }) };
            let many = case.world();
            let mut few = many.clone();
            few.inputs.iter_mut().for_each(|input| input.topk_idx.fill(-1));
            match given_up_in_between(Device::Simulated, &case, [&few, &many], late) {
                Ok(true) => gave_up += 1,
                Ok(false) => whole += 1,
                Err(why) => {
                    let test = "what_pads_is_marked_anew_behind_a_dispatch_that_was_given_up";
                    panic!("{late:?}: {why}\n{}", replay::line(module_path!(), test, seed))
                }
            }
        }
    }
    assert!(whole > 0 && gave_up > 0, "{whole} whole, {gave_up} not");
}
