//! Many operations on one buffer with uneven ranks: nothing is overwritten before it was read, nothing read before it is there.
//!
//! Rounds are enqueued in batches, with nothing on the host between them that would let the ranks wait for each other: the
//! experts' outputs are known before (the reference predicts them), lie in tensors of their own, and are copied into the
//! lent region by the stream.
mod support;

use std::time::Duration;

use epoxide::{
    Comm, DeviceTensor, ElasticBuffer, ExpertOutputs, IndexType, LocalGroup, Machine, MachineConfig, Mode, Result,
    WireFormat, bf16,
};
use support::exchange::{Tensors, check_received, expert_outputs};
use support::reference::{Wire, World, same};
use support::routing::{Case, Choice, Random};
use support::{Checked, Device, complaints, replay};

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
    planted: Planted,
}

/// What is wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// A part of the protocol is left out: a `SKIP_*` word of the kernels.
    Skip(u32),
    /// A rank writes its experts' next outputs as soon as its own combine is over, not after the next dispatch.
    EarlyOutputs,
}

/// One round, the same for all ranks.
struct Round {
    world: World,
    wires: Vec<Wire>,
    /// What each rank's experts write.
    outputs: Vec<Vec<bf16>>,
    /// The sums of each rank.
    sums: Vec<Vec<bf16>>,
    /// Whether the host waits in this round, to look at what arrived.
    looks: bool,
}

impl Skew {
    fn rounds(&self) -> Vec<Round> {
        (0..self.rounds).map(|number| self.round(number)).collect()
    }

    fn round(&self, number: u32) -> Round {
        let mut random = Random::new(self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ u64::from(number) << 32);
        // The rank without a token takes turns.
        let tokens = |rank| if rank == number % self.ranks { 0 } else { 1 + random.below(self.max_tokens) };
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
        let wires: Vec<Wire> = (0..self.ranks).map(|rank| world.wire(rank)).collect();
        let outputs = (0..self.ranks).map(|rank| world.expert_outputs(rank, &wires)).collect();
        let sums = (0..self.ranks).map(|rank| world.combined(rank, &wires[rank as usize])).collect();
        // Batches of 1 to 20 rounds or so.
        Round { world, wires, outputs, sums, looks: random.below(8) == 0 }
    }

    /// The random delays of a rank: it is often on time, sometimes a little late, seldom very.
    fn delay(&self, random: &mut Random, comm: &Comm) -> Result<()> {
        let longest = match random.below(8) {
            0..4 => return Ok(()),
            4..7 => 20_000,
            _ => 1_000_000,
        };
        comm.delay(Duration::from_nanos(2_000 + u64::from(random.below(longest))))
    }

    /// Runs it on the device that the environment names.
    fn run(&self) -> Checked {
        let rounds = self.rounds();
        Device::from_env().check(self.ranks, self.mode, |comm| self.run_rank(&comm, &rounds, None))
    }

    /// Runs it on the simulated GPU, where a fault can be planted.
    fn run_simulated(&self) -> Checked {
        let rounds = self.rounds();
        let machine = Machine::new(MachineConfig::new(self.ranks, self.mode)).map_err(|e| e.to_string())?;
        let group = LocalGroup::on_machine(&machine).map_err(|e| e.to_string())?;
        complaints(group.run_all(|comm| self.run_rank(&comm, &rounds, Some(&machine))))
    }

    fn run_rank(&self, comm: &Comm, rounds: &[Round], machine: Option<&Machine>) -> Result<Checked> {
        let rank = comm.rank() as usize;
        let mut random = Random::new(self.seed ^ (rank as u64 + 1) << 48);
        let config = epoxide::Config::new(self.experts, self.top_k, self.hidden, self.max_tokens);
        let config = config.with_format(self.format).with_num_sms(self.num_sms);
        let mut buffer = ElasticBuffer::new(comm, config)?;
        if let Planted::Skip(skip) = self.planted {
            buffer.test_skip(skip);
        }
        let mut tensors: Vec<(Tensors, DeviceTensor<bf16>)> = Vec::new();
        for round in rounds {
            let tokens = round.world.inputs[rank].tokens;
            let mine = Tensors::empty(comm, tokens, self.hidden, self.top_k, IndexType::I64)?;
            mine.fill(&round.world, comm.rank())?;
            tensors.push((mine, comm.tensor(&round.outputs[rank])?));
        }
        comm.barrier()?;

        let mut checked = Ok(());
        for (number, (round, (tensors, outputs))) in rounds.iter().zip(&mut tensors).enumerate() {
            self.delay(&mut random, comm)?;
            let handle = tensors.dispatch(&mut buffer, round.world.inputs[rank].tokens)?;
            let lent = buffer.recv_view(&handle)?.expert_outputs;
            if round.looks {
                let received = buffer.received(&handle)?;
                let want = round.world.arrivals(comm.rank());
                let right = check_received(&round.world, &round.wires, &want, &received);
                checked = checked.and(right.map_err(|e| format!("round {number}: {e}")));
                self.delay(&mut random, comm)?;
                buffer.write_expert_outputs(&handle, &expert_outputs(comm.rank(), self.hidden, &received))?;
                self.delay(&mut random, comm)?;
                buffer.combine(&handle, ExpertOutputs::InPlace, &mut tensors.y)?;
            } else {
                self.delay(&mut random, comm)?;
                buffer.combine(&handle, ExpertOutputs::Tensor(outputs), &mut tensors.y)?;
            }
            if let (Planted::EarlyOutputs, Some(machine), Some(next)) = (self.planted, machine, rounds.get(number + 1))
            {
                // Over for this rank, not for its peers.
                comm.synchronize()?;
                let words = next.outputs[rank]
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|x| x.iter().rev().fold(0, |word, x| word << 16 | u64::from(x.to_bits())));
                machine.write(lent, &words.collect::<Vec<u64>>()).expect("the region is inside the machine's memory");
            }
        }
        let first_to_leave = (self.seed % u64::from(self.ranks)) as usize;
        if rank == first_to_leave {
            // Without a wait and without a word to the others, whose last combine reads this rank's window.
            drop(buffer);
        } else {
            self.delay(&mut random, comm)?;
            buffer.synchronize()?;
        }
        for (number, (round, (tensors, _))) in rounds.iter().zip(&tensors).enumerate() {
            let tokens = round.world.inputs[rank].tokens;
            let y = tensors.sums(tokens, self.hidden)?;
            let right = same("combined rows", &y, &round.sums[rank], self.hidden as usize);
            checked = checked.and(right.map_err(|e| format!("round {number}: {e}")));
        }
        comm.barrier()?;
        Ok(checked)
    }
}

/// The skew test of the issue at a size that `device` runs in seconds.
fn two_hundred(seed: u64, format: WireFormat, mode: Mode) -> Skew {
    let planted = Planted::Nothing;
    let (ranks, experts, top_k, rounds) = (4, 10, 4, 200);
    let small =
        Skew { ranks, experts, top_k, hidden: 64, max_tokens: 12, rounds, format, num_sms: 1, seed, mode, planted };
    match Device::from_env() {
        Device::Simulated => small,
        Device::Cuda => Skew { ranks: 8, experts: 64, top_k: 8, hidden: 1024, max_tokens: 192, num_sms: 4, ..small },
    }
}

#[test]
fn two_hundred_uneven_rounds() {
    let device = Device::from_env();
    for (number, seed) in replay::seeds(2).into_iter().enumerate() {
        for mode in device.schedules([seed]) {
            // The replay of a seed must choose the same format.
            let _ = number;
            let format = if seed % 2 == 0 { WireFormat::Bf16 } else { WireFormat::Fp8 };
            let skew = two_hundred(seed, format, mode);
            if let Err(why) = skew.run() {
                panic!("{skew:?}\n{why}\nreplay: {}", replay::line(module_path!(), "two_hundred_uneven_rounds", seed));
            }
        }
    }
}

/// A small skew test for many seeds.
fn few(seed: u64, planted: Planted) -> Skew {
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
        planted,
    }
}

/// How many of `seeds` give a wrong result.
fn wrong(seeds: std::ops::Range<u64>, planted: Planted) -> usize {
    seeds.filter(|&seed| few(seed, planted).run_simulated().is_err()).count()
}

#[test]
fn a_few_uneven_rounds_on_many_schedules() {
    for seed in replay::seeds(12) {
        let skew = few(seed, Planted::Nothing);
        if let Err(why) = skew.run_simulated() {
            let line = replay::line(module_path!(), "a_few_uneven_rounds_on_many_schedules", seed);
            panic!("{skew:?}\n{why}\nreplay: {line}");
        }
    }
}

#[test]
fn without_the_done_word_the_skew_test_fails() {
    let skip = Planted::Skip(epoxide_kernels::protocol::SKIP_DONE);
    let n = wrong(0..100, skip);
    println!("{n} of 100");
    assert!(n > 0);
}

#[test]
fn writing_outputs_before_the_peers_have_read_is_noticed() {
    let n = wrong(0..20, Planted::EarlyOutputs);
    println!("{n} of 20");
    assert!(n > 0);
}

#[test]
fn tmp_probe() {
    for mode in [Mode::Fast { workers: 0 }, Mode::Seeded { seed: 1 }] {
        for rounds in [1, 2, 4, 8] {
            let skew = Skew { rounds, mode, ..few(1, Planted::Nothing) };
            let t = std::time::Instant::now();
            let r = skew.run_simulated();
            println!("{rounds} {mode:?} {r:?} {:?}", t.elapsed());
        }
    }
}
