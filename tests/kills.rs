//! Ranks that are processes, one of which is killed wherever it happens to be: when it starts, makes a buffer, dispatches, combines, or
//! closes. Every other one ends with the error that names it, in time; goes on without it; and nothing is left behind.
//!
//! `EPOXIDE_TEST_KILLS` says how many are killed; `cargo xtask kill` makes them many more than an ordinary run.
mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use epoxide::{Comm, ElasticBuffer, Error, Gone, IndexType, Layout, Mode, Result, ScaleLayout, WireFormat};
use support::exchange::{Tensors, check_round};
use support::processes::{Rank, Ranks};
use support::reference::Wire;
use support::routing::{Case, Choice};
use support::traces::{self, Traces};
use support::{by_expert, replay};

const RANKS: u32 = 3;
/// Of an operation: far beyond what a test waits for.
const DEADLINE: Duration = Duration::from_secs(30);
/// By when a survivor's call ends with its error. A second is what it must be; a test machine may be busy.
const SOON: Duration = Duration::from_secs(3);

fn case(number: u64, dead: Option<u32>) -> Case {
    let tokens = |rank| if Some(rank) == dead { 0 } else { 3 + 4 * rank };
    Case {
        ranks: RANKS,
        experts: 7,
        top_k: 3,
        hidden: 144,
        format: if number.is_multiple_of(2) { WireFormat::Bf16 } else { WireFormat::Fp8 },
        num_sms: 2,
        tokens: (0..RANKS).map(tokens).collect(),
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 1,
        data: number,
        mode: Mode::Fast { workers: 1 },
    }
}

/// A buffer's whole life, from when it is made to when it is closed.
fn life(comm: &Comm, number: u64, dead: Option<u32>) -> Result<()> {
    let case = case(number, dead);
    let layout = [Layout::Compact, Layout::ExpertContiguous { alignment: 2 }][(number / 2 % 2) as usize];
    let config = case.config().with_layout(layout).with_timeout(DEADLINE);
    let config = if number % 3 == 1 { config.with_row_slots(2) } else { config };
    let config =
        if case.format == WireFormat::Fp8 { config.with_scale_layout(ScaleLayout::ColumnMajor) } else { config };
    let mut buffer = ElasticBuffer::new(comm, config)?;
    let mut world = case.world();
    let (tokens, owners) = (case.tokens[comm.rank() as usize], world.owners());
    let mut tensors = Tensors::empty(comm, tokens, case.hidden, case.top_k, case.index)?;
    tensors.fill(&world, comm.rank())?;
    for selected in world.inputs.iter_mut().flat_map(|input| &mut input.topk_idx) {
        let owner = usize::try_from(*selected).ok().and_then(|e| owners.get(e).copied());
        if owner.is_some() && owner == dead {
            *selected = -1;
        }
    }
    let wires: Vec<Wire> = world.wires();
    for _ in 0..2 {
        let checked = match layout {
            Layout::Compact => check_round(comm, &mut buffer, &mut tensors, &world, &wires)?,
            _ => by_expert::check_round(comm, &mut buffer, &mut tensors, &world, &wires, 2)?,
        };
        checked.unwrap_or_else(|complaint| panic!("{case:?}, {layout:?}: {complaint}"));
    }
    buffer.close()
}

/// A rank of which one is killed.
fn rank(rank: Rank) {
    let dead: u32 = rank.told.parse().expect("the test says who");
    let machine = rank.machine();
    println!("begins");
    let comm = match rank.comm(machine) {
        Ok(comm) => comm,
        // Who is not connected yet is told in words.
        Err(error @ (Error::Bootstrap { .. } | Error::PeerGone { .. })) => return println!("not started: {error}"),
        Err(other) => panic!("{other}"),
    };
    println!("started");
    let mut number = 0;
    let error = loop {
        let begun = Instant::now();
        match life(&comm, number, None) {
            Ok(()) => number += 1,
            Err(error) => {
                assert!(begun.elapsed() < SOON, "{error} after {:?}", begun.elapsed());
                break error;
            }
        }
    };
    match error {
        Error::PeerGone { rank, how: Gone::Ended, .. } if rank == dead => {}
        // Another one was not connected yet, and ends.
        Error::PeerGone { how: Gone::Ended | Gone::Aborted { .. } | Gone::Left, .. } => {
            return println!("not started: {error}");
        }
        other => panic!("{other}"),
    }
    let goes_on = comm.mask(&[dead]).and_then(|()| (100..104).try_for_each(|number| life(&comm, number, Some(dead))));
    match goes_on.and_then(|()| comm.barrier()) {
        Ok(()) => println!("went on without it"),
        Err(error @ Error::PeerGone { .. }) => println!("not started: {error}"),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn every_survivor_of_a_kill_ends_in_time_and_goes_on() {
    if let Some(this) = Rank::of_this_process() {
        return rank(this);
    }
    let test = "every_survivor_of_a_kill_ends_in_time_and_goes_on";
    let kills: u64 = std::env::var("EPOXIDE_TEST_KILLS").ok().map_or(30, |kills| kills.parse().expect("a number"));
    let seed = replay::seeds(1)[0];
    let mut went_on = 0;
    traces::are_seen();
    let before = Traces::now();
    for kill in 0..kills {
        let chance = seed.wrapping_add(kill).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        let dead = (chance % u64::from(RANKS)) as u32;
        let mut ranks = Ranks::start(RANKS, test, &dead.to_string());
        // One in four while it starts.
        ranks.wait_for(dead, if kill.is_multiple_of(4) { "begins\n" } else { "started\n" });
        std::thread::sleep(Duration::from_micros(chance >> 20 & 0xffff));
        let theirs = traces::shared_memory_of(ranks.ids());
        ranks.kill(dead);
        let said = ranks.end(Duration::from_secs(60));
        assert_eq!(said.len(), RANKS as usize - 1);
        let ended = |how: &str| said.values().filter(|said| said.contains(how)).count();
        let all = ended("went on without it");
        assert!(all == said.len() || ended("not started") > 0, "kill {kill} of rank {dead}, seed {seed}: {said:?}");
        went_on += u64::from(all == said.len());
        assert_eq!(before.left(&theirs), BTreeSet::new(), "kill {kill} of rank {dead}, seed {seed}");
    }
    assert!(went_on * 2 > kills, "{went_on} groups of {kills} went on");
}
