//! Rounds in which ranks are uneven: in tokens, one of them without any, in what these select, and in when each comes.
use std::time::Duration;

use epoxide::{Comm, IndexType, Mode, Result, WireFormat};

use super::Device;
use super::reference::World;
use super::routing::{Case, Choice, Random};

/// What all rounds of a seed have: small on the simulated machine.
pub fn case(device: Device, seed: u64, mode: Mode) -> Case {
    let small = Case {
        ranks: 3,
        experts: 10,
        top_k: 4,
        hidden: 64,
        format: if seed.is_multiple_of(2) { WireFormat::Bf16 } else { WireFormat::Fp8 },
        num_sms: 1 + seed as u32 % 3,
        tokens: vec![12; 3],
        index: IndexType::I64,
        choice: Choice::Uniform,
        holes: 0,
        data: seed,
        mode,
    };
    match device {
        Device::Simulated => small,
        Device::Cuda => {
            Case { ranks: 8, experts: 64, top_k: 8, hidden: 1024, tokens: vec![128; 8], num_sms: 4, ..small }
        }
    }
}

/// What is sent in each round.
pub fn worlds(case: &Case, seed: u64, rounds: u32) -> Vec<World> {
    let mut random = Random::new(seed);
    let most = case.max_tokens();
    (0..rounds)
        .map(|number| {
            // The rank without a token takes turns.
            let tokens = |rank| if rank == number % case.ranks { 0 } else { 1 + random.below(most) };
            let tokens = (0..case.ranks).map(tokens).collect();
            let choice = [Choice::Uniform, Choice::Skewed, Choice::Same][random.below(3) as usize];
            Case { tokens, choice, holes: random.below(6), data: random.draw(), ..case.clone() }.world()
        })
        .collect()
}

/// A rank is often on time, sometimes a little late, seldom very.
pub fn be_late(comm: &Comm, random: &mut Random) -> Result<()> {
    let longest = match random.below(8) {
        0..4 => return Ok(()),
        4..7 => 20_000,
        _ => 1_000_000,
    };
    comm.delay(Duration::from_nanos(2_000 + u64::from(random.below(longest))))
}
