//! Many operations on one buffer with uneven ranks: nothing is overwritten before it was read, nothing read before it is there.
//!
//! Rounds are enqueued in batches, with nothing on the host between them that would let the ranks wait for each other: the
//! experts' outputs are known before (the reference predicts them), lie in tensors of their own, and are copied into the
//! lent region by the stream: after the dispatch, or as soon as the region is lent back after the combine before.
use crate::support;

use std::time::Duration;

use epoxide::{CombineInput, Comm, ElasticBuffer, ExpertOutputs, IndexType, Mode, Result, WireFormat, bf16};
use epoxide_sim::Mutation;
use support::exchange::{Tensors, check_received, expert_outputs};
use support::processes::{Rank, Ranks};
use support::reference::{Wire, World, same};
use support::routing::{Case, Choice, Random};
use support::uneven::be_late;
use support::{Checked, Device, replay};

/// A skew test.
#[derive(Clone, Copy, Debug)]
struct Skew {
    ranks: u32,
    experts: u32,
    top_k: u32,
    hidden: u32,
    max_tokens: u32,
    rounds: u32,
    format: WireFormat,
    num_sms: u32,
    seed: u64,
    mode: Mode,
    /// What the kernels leave out on purpose.
    mutation: Option<Mutation>,
    /// Whether rounds have many tokens and few in turn.
    swings: bool,
}

/// How a round's expert outputs come to the region that is lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outputs {
    /// The host waits, looks at what arrived, and writes what follows from it.
    FromHost,
    /// From a tensor, after the dispatch.
    Staged,
    /// From a tensor, before the dispatch: as soon as the combine before has lent the region back.
    Early,
}

/// One round, the same for all ranks.
struct Round {
    world: World,
    wires: Vec<Wire>,
    /// What each rank's experts write.
    outputs: Vec<Vec<bf16>>,
    /// The sums of each rank.
    sums: Vec<Vec<bf16>>,
    /// How they come there.
    way: Outputs,
}

impl Skew {
    fn rounds(&self) -> Vec<Round> {
        (0..self.rounds).map(|number| self.round(number)).collect()
    }

    fn round(&self, number: u32) -> Round {
        let mut random = Random::new(self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ u64::from(number) << 32);
        // The rank without a token takes turns.
        let (least, most) = match (self.swings, number % 2) {
            (false, _) => (1, self.max_tokens),
            (true, 0) => (self.max_tokens - 50, self.max_tokens),
            (true, _) => (1, 40),
        };
        let tokens = |rank| if rank == number % self.ranks { 0 } else { least + random.below(most + 1 - least) };
        let tokens = (0..self.ranks).map(tokens).collect();
        let case = Case {
            ranks: self.ranks,
            experts: self.experts,
            top_k: self.top_k,
            hidden: self.hidden,
            format: self.format,
            num_sms: self.num_sms,
            tokens,
            index: IndexType::I64,
            choice: [Choice::Uniform, Choice::Skewed, Choice::Same][random.below(3) as usize],
            holes: random.below(6),
            data: random.draw(),
            mode: self.mode,
        };
        let world = case.world();
        let wires: Vec<Wire> = world.wires();
        let outputs = (0..self.ranks).map(|rank| world.expert_outputs(rank, &wires)).collect();
        let sums = (0..self.ranks).map(|rank| world.combined(rank, &wires[rank as usize])).collect();
        // The host waits in one round of eight: the others are enqueued in batches.
        let way = match random.below(8) {
            0 => Outputs::FromHost,
            1..4 => Outputs::Staged,
            _ => Outputs::Early,
        };
        Round { world, wires, outputs, sums, way }
    }

    /// Runs it: the first thing that was not as it must be.
    fn run(&self, device: Device) -> Checked {
        let rounds = self.rounds();
        device.check_without(self.ranks, self.mode, self.mutation, |comm| self.run_rank(&comm, &rounds))
    }

    fn run_rank(&self, comm: &Comm, rounds: &[Round]) -> Result<Checked> {
        let rank = comm.rank() as usize;
        let mut random = Random::new(self.seed ^ (rank as u64 + 1) << 48);
        let config = epoxide::Config::new(self.experts, self.top_k, self.hidden, self.max_tokens);
        let config = config.with_format(self.format).with_num_sms(self.num_sms);
        let mut buffer = ElasticBuffer::new(comm, config)?;
        let (mut tensors, mut outputs) = (Vec::new(), Vec::new());
        for round in rounds {
            let tokens = round.world.inputs[rank].tokens;
            let mut mine = Tensors::empty(comm, tokens, self.hidden, self.top_k, IndexType::I64)?;
            mine.fill(&round.world, comm.rank())?;
            tensors.push(mine);
            outputs.push(comm.tensor(&round.outputs[rank])?);
        }
        // From here on nobody allocates.
        comm.barrier()?;

        let mut checked = Ok(());
        for (number, (round, tensors)) in rounds.iter().zip(&mut tensors).enumerate() {
            if round.way == Outputs::Early {
                buffer.lend_expert_outputs()?;
                be_late(comm, &mut random)?;
                buffer.stage_lent_expert_outputs(&outputs[number])?;
            }
            be_late(comm, &mut random)?;
            let handle = tensors.dispatch(&mut buffer, round.world.inputs[rank].tokens)?;
            if round.way == Outputs::FromHost {
                let received = buffer.received(&handle)?;
                let want = round.world.arrivals(comm.rank());
                let right = check_received(&round.world, &round.wires, &want, &received);
                checked = checked.and(right.map_err(|e| format!("round {number}: {e}")));
                be_late(comm, &mut random)?;
                buffer.write_expert_outputs(&handle, &expert_outputs(comm.rank(), self.hidden, &received))?;
            }
            be_late(comm, &mut random)?;
            let from = match round.way {
                Outputs::Staged => (&outputs[number]).into(),
                _ => ExpertOutputs::InPlace,
            };
            buffer.combine(&handle, CombineInput::new(from, &mut tensors.y))?;
        }
        if rank as u64 == self.seed % u64::from(self.ranks) {
            // Without a wait and without a word to the others, whose last combine reads this rank's window.
            drop(buffer);
        } else {
            be_late(comm, &mut random)?;
            buffer.synchronize()?;
        }
        for (number, (round, tensors)) in rounds.iter().zip(&tensors).enumerate() {
            let y = tensors.sums(round.world.inputs[rank].tokens, self.hidden)?;
            let right = same("combined rows", &y, &round.sums[rank], self.hidden as usize);
            checked = checked.and(right.map_err(|e| format!("round {number}, {:?}: {e}", round.way)));
        }
        comm.barrier()?;
        Ok(checked)
    }
}

/// The skew test at a size that the device runs in seconds.
fn two_hundred(device: Device, seed: u64, mode: Mode) -> Skew {
    let format = if seed.is_multiple_of(2) { WireFormat::Bf16 } else { WireFormat::Fp8 };
    let small = Skew { ranks: 4, experts: 10, top_k: 4, max_tokens: 12, rounds: 200, format, mode, ..few(seed, None) };
    match device {
        Device::Simulated => small,
        Device::Cuda => Skew { ranks: 8, experts: 64, top_k: 8, hidden: 1024, max_tokens: 192, num_sms: 4, ..small },
    }
}

#[test]
fn two_hundred_uneven_rounds() {
    let device = Device::from_env();
    let on = |seed, mode| {
        let skew = two_hundred(device, seed, mode);
        if let Err(why) = skew.run(device) {
            panic!("{skew:?}\n{why}\nreplay: {}", replay::line(module_path!(), "two_hundred_uneven_rounds", seed));
        }
    };
    for seed in replay::seeds(1) {
        // Each schedule has a wire format; where there is one schedule alone, it has both.
        let modes = device.schedules([seed]);
        (0..2).for_each(|other| on(seed ^ other, modes[other as usize % modes.len()]));
    }
}

/// The skew test for ranks that are processes: each works out the whole world, so on a GPU, where that is large, in fewer rounds.
fn of_processes(device: Device, seed: u64) -> Skew {
    let skew = two_hundred(device, seed, Mode::Fast { workers: 1 });
    if device == Device::Cuda { Skew { rounds: 30, ranks: 4, ..skew } } else { skew }
}

/// Ranks that are processes, each with a clock and a machine of its own.
#[test]
fn uneven_rounds_of_processes() {
    let test = "uneven_rounds_of_processes";
    let device = Device::from_env();
    if let Some(rank) = Rank::of_this_process() {
        let seed = rank.told.parse().expect("the test says which");
        let skew = of_processes(device, seed);
        let machine = rank.machine();
        let comm = rank.comm(machine).expect("all are there");
        let right = skew.run_rank(&comm, &skew.rounds()).expect("every rank comes to its end");
        return right.unwrap_or_else(|why| panic!("{skew:?}\n{why}"));
    }
    for seed in replay::seeds(1) {
        println!("replay: {}", replay::line(module_path!(), test, seed));
        // Each wire format.
        for seed in [seed, seed ^ 1] {
            let ranks = of_processes(device, seed).ranks;
            Ranks::start(ranks, test, &seed.to_string()).end(Duration::from_secs(120));
        }
    }
}

/// A small skew test, for many seeds.
fn few(seed: u64, mutation: Option<Mutation>) -> Skew {
    Skew {
        ranks: 3,
        experts: 5,
        top_k: 3,
        hidden: 64,
        max_tokens: 40,
        rounds: 12,
        format: WireFormat::Bf16,
        num_sms: 1,
        seed,
        mode: Mode::Seeded { seed },
        mutation,
        swings: false,
    }
}

#[test]
fn a_few_uneven_rounds_on_many_schedules() {
    for seed in replay::seeds(6) {
        let skew = few(seed, None);
        if let Err(why) = skew.run(Device::Simulated) {
            let line = replay::line(module_path!(), "a_few_uneven_rounds_on_many_schedules", seed);
            panic!("{skew:?}\n{why}\nreplay: {line}");
        }
    }
}

/// What the test above would miss if it could not fail: the same seeds are right with the whole protocol, and some of them
/// wrong without the words that say that a peer has read.
#[test]
fn without_the_done_word_the_skew_test_fails() {
    let wrong =
        |mutation| (0..8).filter_map(|seed| few(seed, mutation).run(Device::Simulated).err()).collect::<Vec<_>>();
    assert_eq!(wrong(None), Vec::<String>::new());
    let source = include_str!("../gpu-kernels/src/lend.rs");
    let wait = Mutation::of("gpu-kernels/src/lend.rs", source, "op.done.wait(").expect("lend waits for the done words");
    let wrong = wrong(Some(wait));
    assert!(!wrong.is_empty(), "no seed noticed");
    // What is wrong is what was to be protected: sums of outputs that were overwritten.
    for why in wrong {
        assert!(why.contains("combined rows") && !why.contains("failed"), "{why}");
        println!("{why}");
    }
}

/// Many tokens, of which each block counts its own and tells the others, and few, of which every block counts all (up to 64 of 20 selections), in turn: each rank has many at least twice, and
/// few between, so that words of before are there.
fn many(seed: u64, mutation: Option<Mutation>) -> Skew {
    Skew { experts: 24, top_k: 20, max_tokens: 300, rounds: 6, num_sms: 4, swings: true, ..few(seed, mutation) }
}

#[test]
fn a_few_uneven_rounds_of_many_tokens() {
    for seed in replay::seeds(3) {
        let skew = many(seed, None);
        if let Err(why) = skew.run(Device::from_env()) {
            let line = replay::line(module_path!(), "a_few_uneven_rounds_of_many_tokens", seed);
            panic!("{skew:?}\n{why}\nreplay: {line}");
        }
    }
}

/// Where blocks do not wait for what others have counted, and add nothing, places are wrong.
#[test]
fn without_what_blocks_tell_each_other_the_skew_test_fails() {
    let source = include_str!("../gpu-kernels/src/dispatch/count.rs");
    let wait =
        Mutation::of("gpu-kernels/src/dispatch/count.rs", source, "watch.wait_until_many(").expect("blocks wait");
    assert_eq!(many(0, None).run(Device::Simulated), Ok(()));
    let why = many(0, Some(wait)).run(Device::Simulated).expect_err("blocks have added nothing up");
    assert!(why.contains("round 0") && !why.contains("failed"), "{why}");
}
