//! A rank that is killed in the middle of a seeded schedule: it stops where it is, its memory stays, and the others find out by what
//! they wait for.

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use epoxide_sim::{Death, Machine, MachineConfig, Mode, SimError, device};
use rig::*;

const RANKS: u32 = 3;
const ROUNDS: u64 = 4;
const DEADLINE: u64 = 1_000_000;

/// What a run came to: of each rank the rounds that it completed, and how its host thread ended.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    hash: u64,
    turns: u64,
    rounds: Vec<u64>,
    ends: Vec<Result<(), SimError>>,
}

/// Every rank raises a flag at all ranks and waits for theirs, several times in one kernel, and then again in another. It counts its
/// rounds in its own memory, and gives up at a deadline.
fn run(seed: u64, death: Option<Death>) -> Run {
    let config = MachineConfig::new(RANKS, Mode::Seeded { seed });
    let config = death.into_iter().fold(config, MachineConfig::with_death);
    let machine = Machine::new(config).expect("a machine");
    let flags: Vec<u64> = (0..RANKS).map(|rank| machine.allocate(rank, 64, 256).expect("fits")).collect();
    let ends = std::thread::scope(|scope| {
        let body = |rank: u32| {
            let (actor, stream) = actor(&machine, rank);
            for kernel in 0..2 {
                let flags = flags.clone();
                let mine = flags[rank as usize];
                let entry = move || {
                    let thread = device::thread_index();
                    let deadline = device::clock_ns() + DEADLINE;
                    for round in 1..=ROUNDS {
                        let mut came = true;
                        if thread < RANKS {
                            let number = kernel * ROUNDS + round;
                            device::store(word(flags[thread as usize], u64::from(rank)), number, RELEASE);
                            came = wait_for(word(mine, u64::from(thread)), number, thread, Some(deadline));
                        }
                        if device::barrier_or(0, !came) {
                            return;
                        }
                        if thread == 0 {
                            add(word(mine, 7), 1);
                        }
                    }
                };
                actor.start(stream, launch("rounds", 1, 64, entry))?;
                actor.synchronize(stream)?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..RANKS).map(|rank| scope.spawn(move || body(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let rounds = flags.iter().map(|flags| machine.read(flags + 56, 1).expect("in bounds")[0]).collect();
    Run { hash: machine.trace_hash(), turns: machine.turns(), rounds, ends }
}

#[test]
fn a_death_at_any_step_ends_the_others_at_their_deadline_and_is_the_same_every_time() {
    within(Duration::from_secs(120), || {
        let mut stopped_early = 0;
        for seed in 0..6 {
            let whole = run(seed, None);
            assert_eq!(whole.rounds, [2 * ROUNDS; 3]);
            for step in 0..25 {
                let death = Death { rank: (seed as u32 + step) % RANKS, turn: whole.turns * u64::from(step) / 25 };
                let got = run(seed, Some(death));
                assert_eq!(got, run(seed, Some(death)), "seed {seed}, {death:?}");
                for (rank, end) in (0..).zip(&got.ends) {
                    let killed = matches!(end, Err(SimError::Killed { rank: dead, .. }) if *dead == rank);
                    // It may have been at its end.
                    let ended = *end == Ok(()) && (rank != death.rank || got.rounds[rank as usize] == 2 * ROUNDS);
                    assert!(ended || killed && rank == death.rank, "seed {seed}, {death:?}, rank {rank}: {end:?}");
                }
                let dead = got.rounds[death.rank as usize];
                // Nobody is further than the dead one's flags let it be: one may be raised before the round before it is counted.
                assert!(
                    got.rounds.iter().all(|rounds| *rounds <= dead + 2),
                    "seed {seed}, {death:?}: {:?}",
                    got.rounds
                );
                stopped_early += u32::from(dead < 2 * ROUNDS);
            }
        }
        assert!(stopped_early > 100, "{stopped_early} of 150 deaths were in the middle of something");
    });
}

#[test]
fn what_is_queued_of_a_killed_rank_never_runs_and_its_memory_stays() {
    let machine = machine(2, Mode::Seeded { seed: 3 });
    let at = machine.allocate(1, 16, 256).expect("fits");
    let ran = Arc::new(AtomicU32::new(0));
    let (first, _) = actor(&machine, 0);
    let (second, stream) = actor(&machine, 1);
    second.start(stream, launch("writes", 1, 32, move || device::store(word(at, 0), 9u64, WEAK))).expect("a launch");
    let (exchanged, first) = std::thread::scope(|scope| {
        let waits = scope.spawn(move || (first.exchange(b"x"), first));
        second.synchronize(stream).expect("it runs");
        let counts = Arc::clone(&ran);
        let count = Box::new(move || assert_eq!(counts.fetch_add(1, Ordering::Relaxed), 0));
        second.host_call(stream, count).expect("it is queued");
        machine.kill(1).expect("a seeded machine");
        waits.join().expect("no panic")
    });
    assert!(matches!(exchanged, Err(SimError::PeerGone { rank: 0, .. })), "{exchanged:?}");
    let killed = "rank 1 was killed";
    assert_eq!(second.synchronize(stream).expect_err("dead").to_string(), killed);
    assert_eq!(second.exchange(b"x").expect_err("dead").to_string(), killed);
    second.leave();
    assert_eq!(second.record_event(stream).expect_err("dead").to_string(), killed);
    drop(second);
    machine.actor(1).expect_err("dead for good");
    let stream = first.create_stream();
    first
        .start(stream, launch("reads", 1, 32, move || assert_eq!(device::load::<u64>(word(at, 0), WEAK), 9)))
        .expect("a launch");
    first.synchronize(stream).expect("its memory is there");
    assert_eq!(ran.load(Ordering::Relaxed), 0);
    assert_eq!(machine.read(at, 1).expect("at rest"), [9]);
}

#[test]
fn only_a_rank_of_a_seeded_machine_is_killed() {
    let fast = machine(2, Mode::Fast { workers: 1 });
    assert!(matches!(fast.kill(0), Err(SimError::InvalidArgument { argument: "mode", .. })));
    let seeded = machine(2, Mode::Seeded { seed: 1 });
    assert!(matches!(seeded.kill(2), Err(SimError::InvalidArgument { argument: "rank", .. })));
    for (mode, rank) in [(Mode::Fast { workers: 1 }, 0), (Mode::Seeded { seed: 1 }, 2)] {
        let config = MachineConfig::new(2, mode).with_death(Death { rank, turn: 5 });
        assert!(matches!(Machine::new(config), Err(SimError::InvalidArgument { argument: "death", .. })));
    }
}

/// Who names one that is there beside one that is gone goes on with both.
#[test]
fn a_mask_that_is_refused_masks_nobody() {
    let machine = Machine::new(MachineConfig::new(3, Mode::Fast { workers: 1 })).expect("a machine");
    let [one, two, three] = [0, 1, 2].map(|rank| machine.actor(rank).expect("first asked"));
    two.leave();
    let refused = one.mask(&[1, 2]).expect_err("rank 2 is there").to_string();
    assert!(refused.contains("ranks is 2"), "{refused}");
    assert!(matches!(one.exchange(b""), Err(SimError::PeerGone { ranks, .. }) if ranks == [1]));
    drop(three);
}
