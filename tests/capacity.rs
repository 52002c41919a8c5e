//! A bound on what a rank receives: what fits exactly is bitwise what it is without a bound; one row more, and every rank gets the same error, no row
//! is moved, a combine behind it gives zeros, and the buffer goes on to work.
use crate::support;

use std::time::Duration;

use epoxide::{
    CombineInput, Comm, Config, ElasticBuffer, ExpertOutputs, IndexType, Layout, LocalGroup, Machine, MachineConfig,
    Mode, Result, WireFormat, bf16,
};
use proptest::prelude::*;
use support::by_expert::Padding;
use support::exchange::Tensors;
use support::overflow::{Over, over, told, wanted};
use support::reference::{Wire, World};
use support::routing::{Bounds, Case, Choice};
use support::{Checked, Device, by_expert, exchange, replay};

fn config(case: &Case, layout: Layout) -> Config {
    case.config().with_layout(layout)
}

fn zeros(y: &[bf16]) -> Checked {
    match y.iter().position(|y| y.to_bits() != 0) {
        None => Ok(()),
        Some(at) => Err(format!("element {at} of the sums is {:?}, not +0", y[at])),
    }
}

/// What a caller does when a dispatch does not fit.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// Has enqueued the combine already, and waits for both.
    CombinesUnseen,
    /// Asks what came, twice, and combines all the same.
    CombinesSeen,
    /// Wants to be told the counts before rows have landed, is told this instead, and goes on.
    AsksEarly,
    /// Goes on to the next dispatch.
    GoesOn,
}

/// A dispatch that does not fit, as operation `epoch` of the buffer; returns how many operations it was.
fn overflows(
    buffer: &mut ElasticBuffer,
    tensors: &mut Tensors,
    case: &Case,
    tokens: u32,
    then: Then,
    over: Over,
) -> Result<(Checked, u64)> {
    let handle = tensors.dispatch(buffer, tokens)?;
    let told = |what: &str, got: Result<()>| told(what, got, over);
    let mut checked = Ok(());
    match then {
        Then::GoesOn => {
            checked = checked.and(told("synchronize", buffer.synchronize()));
            checked = checked.and(buffer.synchronize().map_err(|again| format!("told twice: {again}")));
            return Ok((checked, 1));
        }
        Then::AsksEarly => {
            let counts = buffer.wait_counts(&handle, Duration::from_secs(20));
            checked = checked.and(told("wait_counts", counts.map(drop)));
            checked = checked.and(buffer.synchronize().map_err(|again| format!("told twice: {again}")));
            return Ok((checked, 1));
        }
        Then::CombinesSeen => {
            for _ in 0..2 {
                checked = checked.and(told("recv_counts", buffer.recv_counts(&handle).map(drop)));
            }
            checked = checked.and(told("received", buffer.received(&handle).map(drop)));
            checked = checked.and(buffer.synchronize().map_err(|again| format!("told twice: {again}")));
        }
        Then::CombinesUnseen => {}
    }
    buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
    checked = checked.and(told("synchronize after combine", buffer.synchronize()));
    checked = checked.and(buffer.synchronize().map_err(|again| format!("told twice: {again}")));
    checked = checked.and(zeros(&tensors.sums(tokens, case.hidden)?));
    Ok((checked, 2))
}

/// Rounds with data of their own on a buffer with room for `capacity` rows: those that fit are checked bit for bit, of the others that
/// they are refused.
fn rounds(comm: &Comm, case: &Case, layout: Layout, capacity: u64, then: Then, worlds: &[World]) -> Result<Checked> {
    let rank = comm.rank();
    let tokens = case.tokens[rank as usize];
    let config = config(case, layout).with_capacity(capacity);
    let mut buffer =
        ElasticBuffer::new(comm, if matches!(then, Then::AsksEarly) { config.with_counts_mirror() } else { config })?;
    let mut tensors = Tensors::empty(comm, tokens, case.hidden, case.top_k, case.index)?;
    let (mut checked, mut epoch) = (Ok(()), 1);
    for (round, world) in worlds.iter().enumerate() {
        let wires: Vec<Wire> = world.wires();
        tensors.fill(world, rank)?;
        let (right, operations) = match (over(world, layout, capacity, epoch), layout) {
            (Some(over), _) => overflows(&mut buffer, &mut tensors, case, tokens, then, over)?,
            (None, Layout::Compact) => (exchange::check_round(comm, &mut buffer, &mut tensors, world, &wires)?, 2),
            (None, _) => {
                let padding = Padding::of(layout);
                (by_expert::check_round(comm, &mut buffer, &mut tensors, world, &wires, padding)?, 2)
            }
        };
        epoch += operations;
        checked = checked.and(right.map_err(|why| format!("round {round}, {then:?}: {why}")));
    }
    buffer.close()?;
    Ok(checked)
}

fn check(device: Device, case: &Case, layout: Layout, then: Then) -> Checked {
    let world = |round| Case { data: case.data.wrapping_add(round), ..case.clone() }.world();
    let worlds = [world(0), world(1), world(0)];
    let most = wanted(&worlds[0], layout).into_iter().max().unwrap_or(0);
    // The first just fits, or is too much by one row; the one between is what it is.
    for capacity in [most, most.saturating_sub(1)] {
        if capacity > 0 {
            device
                .check(case.ranks, case.mode, |comm| rounds(&comm, case, layout, capacity, then, &worlds))
                .map_err(|why| format!("room for {capacity} rows: {why}"))?;
        }
    }
    Ok(())
}

fn thens() -> impl Strategy<Value = Then> {
    prop_oneof![Just(Then::CombinesUnseen), Just(Then::CombinesSeen), Just(Then::AsksEarly), Just(Then::GoesOn)]
}

#[test]
fn a_compact_buffer_has_room_for_as_many_rows_as_were_asked_for() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=8, experts: 1..=64, top_k: 16, hidden: 256, tokens: 16 };
    let test = "a_compact_buffer_has_room_for_as_many_rows_as_were_asked_for";
    replay::law(module_path!(), test, 8, (bounds.cases(device), thens()), |(case, then)| {
        check(device, &case, Layout::Compact, then)
    });
}

#[test]
fn rows_by_expert_have_room_for_as_many_as_were_asked_for() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=8, experts: 1..=128, top_k: 16, hidden: 256, tokens: 16 };
    let cases = (bounds.cases(device), prop_oneof![Just(1), Just(8), 1..=20u32], thens());
    let test = "rows_by_expert_have_room_for_as_many_as_were_asked_for";
    replay::law(module_path!(), test, 8, cases, |(case, alignment, then)| {
        check(device, &case, Layout::ExpertContiguous { alignment }, then)
    });
}

/// Three ranks, all of whose tokens go to the same two of four experts.
fn hot(data: u64, mode: Mode) -> Case {
    Case {
        ranks: 3,
        experts: 4,
        top_k: 2,
        hidden: 64,
        format: WireFormat::Bf16,
        num_sms: 2,
        tokens: vec![9, 5, 7],
        index: IndexType::I32,
        choice: Choice::Same,
        holes: 0,
        data,
        mode,
    }
}

/// The rows that lie there from before are there still, in memory that the simulated machine shows.
#[test]
fn a_dispatch_that_does_not_fit_writes_no_row() {
    for mode in Device::Simulated.schedules(1..=4) {
        for layout in [Layout::Compact, Layout::ExpertContiguous { alignment: 4 }] {
            let machine = Machine::new(MachineConfig::new(3, mode)).expect("a machine");
            let results = LocalGroup::on_machine(&machine).expect("a group").run_all(|comm| {
                let (few, many) = (Case { holes: 12, ..hot(1, mode) }.world(), hot(2, mode).world());
                let room = wanted(&few, layout).into_iter().max().unwrap_or(0);
                let over = over(&many, layout, room, 2).expect("they are more");
                let tokens = few.inputs[comm.rank() as usize].tokens;
                let mut buffer = ElasticBuffer::new(&comm, config(&hot(0, mode), layout).with_capacity(room))?;
                let mut tensors = Tensors::empty(&comm, tokens, 64, 2, IndexType::I32)?;
                tensors.fill(&few, comm.rank())?;
                let handle = tensors.dispatch(&mut buffer, tokens)?;
                let view = buffer.recv_view(&handle)?;
                buffer.synchronize()?;
                comm.barrier()?;
                let words = ((view.expert_outputs - view.x) / 8) as usize;
                // SAFETY: what this rank received, between two barriers: nobody writes there meanwhile.
                let peek = || unsafe { machine.peek(view.x, words) }.expect("the buffer's own memory");
                let before = peek();
                comm.barrier()?;
                tensors.fill(&many, comm.rank())?;
                tensors.dispatch(&mut buffer, tokens)?;
                let mut checked = told("synchronize", buffer.synchronize(), over);
                comm.barrier()?;
                if peek() != before {
                    checked = checked.and(Err("a row was written".to_owned()));
                }
                buffer.close()?;
                Ok(checked)
            });
            support::complaints(results).unwrap_or_else(|why| panic!("{mode:?}, {layout:?}: {why}"));
        }
    }
}

/// Ranks that have room for different numbers of rows would not see the same.
#[test]
fn ranks_agree_on_their_bounds() {
    let group = LocalGroup::simulated(2, Mode::Fast { workers: 1 }).expect("a group");
    let results = group.run_all(|comm| {
        let config = hot(0, Mode::Fast { workers: 1 }).config().with_capacity(9 + u64::from(comm.rank()));
        ElasticBuffer::new(&comm, config).map(drop)
    });
    for result in results {
        let error = result.expect_err("they differ").to_string();
        assert!(error.starts_with("capacity differs between ranks: Some(9) on ranks [0], Some(10)"), "{error}");
    }
}

/// The first of two is told; the combine of the second is told too.
#[test]
fn of_two_dispatches_that_do_not_fit_the_first_is_told_and_the_combine_of_the_other() {
    for mode in Device::from_env().schedules(1..=3) {
        let results = Device::from_env().run_all(3, mode, |comm| {
            let (case, world) = (hot(1, mode), hot(1, mode).world());
            let [first, second] = [1, 2].map(|epoch| over(&world, Layout::Compact, 3, epoch).expect("they are more"));
            let tokens = case.tokens[comm.rank() as usize];
            let mut buffer = ElasticBuffer::new(&comm, case.config().with_capacity(3).with_routing_slots(2))?;
            let mut tensors = Tensors::empty(&comm, tokens, 64, 2, IndexType::I32)?;
            tensors.fill(&world, comm.rank())?;
            tensors.dispatch(&mut buffer, tokens)?;
            let handle = tensors.dispatch(&mut buffer, tokens)?;
            let mut checked = told("the first", buffer.synchronize(), first);
            checked = checked.and(buffer.synchronize().map_err(|again| format!("told twice: {again}")));
            // A replay of nothing sends nothing, and says whose routing it went by.
            let again = buffer.dispatch_again(&handle, &tensors.x)?;
            checked = checked.and(told("the replay", buffer.recv_counts(&again), second));
            buffer.combine(&again, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
            checked = checked.and(told("the combine", buffer.synchronize(), second));
            checked = checked.and(zeros(&tensors.sums(tokens, 64)?));
            buffer.close()?;
            Ok(checked)
        });
        support::complaints(results).unwrap_or_else(|why| panic!("{mode:?}: {why}"));
    }
}
