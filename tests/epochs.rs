//! Words that carry half of a number: none is taken for one from 2^32 operations before, nor for one before its first use.
use crate::support;

use std::time::Duration;

use epoxide::{Comm, ElasticBuffer, IndexType, Layout, Mode, Result, WireFormat};
use support::exchange::{Tensors, check_received, check_round_of};
use support::reference::{Wire, World};
use support::routing::{Case, Choice, Random, rows};
use support::{Checked, Device, replay};

/// What a buffer does: a dispatch whose rows are never combined, a dispatch and its combine, new rows by the routing of the last dispatch and
/// their combine, or a jump in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Dispatch,
    Round,
    Again,
    /// As if there had been so many operations, and dispatches among them.
    CountFrom(u64, u64),
}
use Step::{Again, CountFrom, Dispatch, Round};

const WRAP: u64 = 1 << 32;

/// Those whose dispatches have words of their own. Where rows have fixed places the words of all dispatches lie in one place, half of a number in some.
const LAYOUTS: [Layout; 2] = [Layout::Compact, Layout::RankMajor { alignment: 1 }];

/// Histories that a buffer can have, from its making on; what a jump leaves out wrote every word of its kind again and again, so
/// a buffer that has really come so far has younger words than the test's.
const HISTORIES: [&[Step]; 8] = [
    // The first use of the words of even dispatches, where the epoch's half is 0.
    &[CountFrom(WRAP - 2, WRAP / 2 - 1), Dispatch, Dispatch, Round],
    // The same where the dispatch's half is 0, on either parity of the epoch.
    &[CountFrom(2 * WRAP - 4, WRAP - 2), Dispatch, Dispatch, Round],
    &[CountFrom(2 * WRAP - 3, WRAP - 2), Dispatch, Dispatch, Round],
    // Dispatches of even epochs, none for 2^32 operations, and one again. (Entry words of epochs 1 and 2 are taken for those of
    // 2^32 + 1 and + 2 here, which the operations that were left out would have overwritten; the counts keep the ranks apart.)
    &[Dispatch, Dispatch, CountFrom(WRAP, WRAP / 2), Dispatch, Dispatch, Round],
    // Whole rounds across the wrap.
    &[Round, CountFrom(WRAP - 3, WRAP / 2 - 2), Dispatch, Round, Round, Round],
    &[Round, CountFrom(2 * WRAP - 4, WRAP - 2), Round, Round, Round],
    // Replays on both sides of the wrap, of a dispatch before it and of one whose number has no lower 16 bits.
    &[Round, Again, CountFrom(WRAP - 4, WRAP / 2 - 2), Again, Again, Round, Again, Dispatch, Again],
    &[Dispatch, Again, CountFrom(2 * WRAP - 3, WRAP - 1), Again, Round, Again, Again],
];

/// A rank's part in a history of dispatches with these worlds.
fn run_rank(comm: &Comm, steps: &[Step], case: &Case, layout: Layout, worlds: &[World]) -> Result<Checked> {
    // Half of the buffers tell the host the counts, by the number of the dispatch too, where they can.
    let mirrored = case.num_sms == 2 && layout == Layout::Compact;
    let config = case.config().with_layout(layout);
    let config = if mirrored { config.with_counts_mirror() } else { config };
    let mut buffer = ElasticBuffer::new(comm, config)?;
    let wires: Vec<Vec<Wire>> = worlds.iter().map(|world| world.wires()).collect();
    let mut tensors = Vec::new();
    for world in worlds {
        let tokens = world.inputs[comm.rank() as usize].tokens;
        let mut mine = Tensors::empty(comm, tokens, case.hidden, case.top_k, case.index)?;
        mine.fill(world, comm.rank())?;
        tensors.push(mine);
    }
    comm.barrier()?;
    let (mut checked, mut next, mut last) = (Ok(()), 0, None);
    for step in steps {
        if let CountFrom(operations, dispatches) = *step {
            buffer.synchronize()?;
            comm.barrier()?;
            // SAFETY: all ranks are here, and none is in an operation.
            unsafe { buffer.test_count_from(operations, dispatches)? };
            comm.barrier()?;
            continue;
        }
        let (world, wires, tensors) = (&worlds[next], &wires[next], &mut tensors[next]);
        let handle = match (step, &last) {
            (Again, Some(last)) => buffer.dispatch_again(last, &tensors.x)?,
            _ => tensors.dispatch(&mut buffer, world.inputs[comm.rank() as usize].tokens)?,
        };
        if mirrored {
            let told = buffer.wait_counts(&handle, Duration::from_secs(3600))?;
            let counts = buffer.recv_counts(&handle)?;
            if told != counts {
                return Ok(Err(format!("dispatch {next} of {steps:?}: told {told:?}, and it is {counts:?}")));
            }
        }
        let right = if *step == Dispatch {
            let received = buffer.received(&handle)?;
            check_received(world, wires, &world.arrivals(comm.rank()), &received)
        } else {
            check_round_of(comm, &mut buffer, &handle, tensors, world, wires)?
        };
        last = Some(handle);
        checked = checked.and(right.map_err(|e| format!("dispatch {next} of {steps:?}: {e}")));
        next += 1;
    }
    buffer.close()?;
    Ok(checked)
}

fn run(device: Device, steps: &[Step], layout: Layout, (least, seed): (u32, u64), mode: Mode) -> Checked {
    let mut random = Random::new(seed);
    let case = Case {
        ranks: 3,
        experts: 5,
        top_k: 3,
        hidden: 64,
        format: if seed.is_multiple_of(2) { WireFormat::Bf16 } else { WireFormat::Fp8 },
        num_sms: 1 + random.below(2),
        tokens: (0..3).map(|_| least + random.below(12)).collect(),
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: random.below(3),
        data: 0,
        mode,
    };
    let mut worlds: Vec<World> = Vec::new();
    for step in steps.iter().filter(|step| !matches!(step, CountFrom(..))) {
        let mut world = Case { data: random.draw(), ..case.clone() }.world();
        if let (Again, Some(last)) = (step, worlds.last()) {
            world = last.clone();
            world.inputs.iter_mut().for_each(|input| input.x = rows(&mut random, input.tokens, case.hidden));
        }
        worlds.push(world);
    }
    device.check(case.ranks, mode, |comm| run_rank(&comm, steps, &case, layout, &worlds))
}

#[test]
fn numbers_pass_two_to_the_thirty_second() {
    let device = Device::from_env();
    for seed in replay::seeds(3) {
        for mode in device.schedules([seed]) {
            for (layout, steps) in LAYOUTS.into_iter().flat_map(|layout| HISTORIES.map(|steps| (layout, steps))) {
                // Where rows have fixed places entry words alone keep the ranks apart, and every operation writes them.
                if layout != Layout::Compact && steps.contains(&CountFrom(WRAP, WRAP / 2)) {
                    continue;
                }
                if let Err(why) = run(device, steps, layout, (1, seed), mode) {
                    let line = replay::line(module_path!(), "numbers_pass_two_to_the_thirty_second", seed);
                    panic!("{layout:?}: {why}\nreplay: {line}");
                }
            }
        }
    }
}

/// Of so many tokens that blocks tell each other what they have counted.
#[test]
fn numbers_of_many_tokens_pass_two_to_the_thirty_second() {
    let device = Device::from_env();
    for mode in device.schedules([7]) {
        for (seed, steps) in (0..).zip([HISTORIES[1], HISTORIES[3], HISTORIES[5]]) {
            run(device, steps, Layout::Compact, (600, seed), mode).unwrap_or_else(|why| panic!("{steps:?}: {why}"));
        }
    }
}
