//! A rank that is killed at any step, as if it were a process: every other one ends with an error that says who is gone, long before its
//! deadline, and goes on without it. In one process, by seeded schedules, so that each death can be had again.
mod support;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use epoxide::{
    Death, ElasticBuffer, Error, Gone, IndexType, LocalGroup, Machine, MachineConfig, Mode, Result, WireFormat,
};
use support::exchange::{Tensors, check_round};
use support::masked::without;
use support::reference::{Wire, World};
use support::replay;
use support::routing::{Case, Choice};

const RANKS: u32 = 3;
/// Virtual time.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A buffer's whole life on three ranks, of which one is killed at some step; what each rank came to, and how many steps there were. No
/// deadline comes.
fn life(seed: u64, death: Option<Death>) -> (Vec<Result<()>>, u64) {
    let case = Case {
        ranks: RANKS,
        experts: 5,
        top_k: 2,
        hidden: 16,
        format: if seed.is_multiple_of(2) { WireFormat::Bf16 } else { WireFormat::Fp8 },
        num_sms: 1 + (seed % 2) as u32,
        tokens: vec![3, 1, 2],
        index: IndexType::I32,
        choice: Choice::Uniform,
        holes: 2,
        data: seed,
        mode: Mode::Seeded { seed },
    };
    let world = case.world();
    let wires: Vec<Wire> = world.wires();
    let config = death.into_iter().fold(MachineConfig::new(RANKS, case.mode), MachineConfig::with_death);
    let machine = Machine::new(config).expect("a machine");
    let group = LocalGroup::on_machine(&machine).expect("a group");
    let went_on = AtomicU32::new(0);
    let results = group.run_all(|comm| {
        let tokens = case.tokens[comm.rank() as usize];
        let filled = || -> Result<Tensors> {
            let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
            tensors.fill(&world, comm.rank())?;
            Ok(tensors)
        };
        let round = |buffer: &mut ElasticBuffer, tensors: &mut Tensors, world: &World, wires: &[Wire]| -> Result<()> {
            let checked = check_round(&comm, buffer, tensors, world, wires)?;
            checked.unwrap_or_else(|complaint| panic!("{case:?}, {death:?}: {complaint}"));
            Ok(())
        };
        let mut kept = None;
        let ended = (|| -> Result<()> {
            let buffer = kept.insert(ElasticBuffer::new(&comm, case.config().with_timeout(TIMEOUT))?);
            let mut tensors = filled()?;
            (0..2).try_for_each(|_| round(buffer, &mut tensors, &world, &wires))?;
            kept.take().expect("it was made").close()
        })();
        // Who is left goes on, whatever it was at, in a buffer that is as new, if all have one, or in another.
        if let Some(Death { rank: dead, .. }) = death.filter(|death| death.rank != comm.rank() && ended.is_err()) {
            let (world, _) = without(&world, &[dead]);
            let wires: Vec<Wire> = world.wires();
            comm.mask(&[dead])?;
            let all = comm.all_gather(&[kept.is_some().into()])?;
            let all_have_one = (0..).zip(&all).all(|(rank, has)| rank == dead || has[..] == [1]);
            let mut buffer = match kept.take() {
                Some(mut buffer) if all_have_one => {
                    buffer.reset()?;
                    buffer
                }
                _ => ElasticBuffer::new(&comm, case.config().with_timeout(TIMEOUT))?,
            };
            let mut tensors = filled()?;
            (0..2).try_for_each(|_| round(&mut buffer, &mut tensors, &world, &wires))?;
            buffer.close()?;
            went_on.fetch_add(1, Ordering::Relaxed);
        }
        ended
    });
    let went_on = went_on.into_inner();
    assert!(death.is_none_or(|_| went_on == RANKS - 1), "{went_on} went on: {results:?}, {death:?}, seed {seed}");
    let took = Duration::from_nanos(machine.virtual_ns());
    assert!(took < Duration::from_secs(1), "{took:?} of virtual time, {death:?}, seed {seed}");
    (results, machine.turns())
}

/// Whether a rank's error says that one is gone.
fn says_who(error: &Error, dead: u32) -> bool {
    match error {
        Error::PeerGone { rank, how: Gone::Ended, .. } => *rank == dead,
        Error::Bootstrap { message, .. } => message.contains("are gone"),
        _ => false,
    }
}

/// Kills a rank of this seed's schedule at 25 steps, each of another run; how many survivors heard of it on the device.
fn deaths(seed: u64) -> u32 {
    let mut on_device = 0;
    let (whole, turns) = life(seed, None);
    whole.into_iter().for_each(|result| result.expect("nobody is killed"));
    for point in 0..POINTS {
        let death = Death { rank: (seed % 3) as u32, turn: turns * u64::from(point) / u64::from(POINTS) };
        let (results, _) = life(seed, Some(death));
        let replay =
            || replay::line("killed_ranks", "every_other_rank_ends_with_an_error_wherever_one_is_killed", seed);
        for (rank, result) in (0..).zip(&results) {
            match result {
                Err(error) if rank == death.rank => {
                    assert!(error.to_string().contains("was killed"), "{error}, {death:?}\n{}", replay());
                }
                Err(error) => {
                    assert!(says_who(error, death.rank), "rank {rank}: {error}, {death:?}\n{}", replay());
                    on_device += u32::from(!matches!(error, Error::Bootstrap { .. }));
                }
                Ok(()) => panic!("rank {rank} came to its end, {death:?}\n{}", replay()),
            }
        }
    }
    on_device
}

/// Steps of a schedule at which a rank is killed.
const POINTS: u32 = 25;

/// 300 deaths, unless `EPOXIDE_TEST_CASES` says otherwise.
#[test]
fn every_other_rank_ends_with_an_error_wherever_one_is_killed() {
    let seeds = replay::seeds(12);
    // A seeded machine takes one core.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let on_device: u32 = std::thread::scope(|scope| {
        let parts = seeds.chunks(seeds.len().div_ceil(cores).max(1));
        let parts: Vec<_> =
            parts.map(|part| scope.spawn(|| part.iter().map(|seed| deaths(*seed)).sum::<u32>())).collect();
        parts.into_iter().map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).sum()
    });
    let deaths = POINTS * seeds.len() as u32;
    assert!(on_device * 2 > deaths, "{on_device} ranks of {deaths} groups waited on the device");
}
