//! Dispatch and combine are bitwise what the plain reference says, for every shape, routing and schedule.
use crate::support;

use std::sync::{Barrier, RwLock};

use epoxide::{Config, ElasticBuffer, IndexType, Mode, WireFormat};
use support::exchange::{Tensors, check_round};
use support::reference::{Wire, World};
use support::routing::{Bounds, Case, Choice};
use support::{Device, replay};

/// Runs a case on a group of its own.
fn check(device: Device, case: &Case) -> Result<(), String> {
    check_with(device, case, case.config())
}

/// [`check`] of a buffer of this configuration.
fn check_with(device: Device, case: &Case, config: Config) -> Result<(), String> {
    let world = case.world();
    let wires: Vec<Wire> = world.wires();
    device.check(case.ranks, case.mode, |comm| {
        let mut buffer = ElasticBuffer::new(&comm, config.clone())?;
        let tokens = case.tokens[comm.rank() as usize];
        let mut tensors = Tensors::empty(&comm, tokens, case.hidden, case.top_k, case.index)?;
        tensors.fill(&world, comm.rank())?;
        comm.barrier()?;
        let checked = check_round(&comm, &mut buffer, &mut tensors, &world, &wires)?;
        buffer.close()?;
        Ok(checked)
    })
}

#[test]
fn random_routings_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=8, experts: 1..=64, top_k: 32, hidden: 640, tokens: 40 };
    replay::law(module_path!(), "random_routings_are_bitwise_the_reference", 16, bounds.cases(device), |case| {
        check(device, &case)
    });
}

#[test]
fn many_experts_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=8, experts: 1..=2048, top_k: 16, hidden: 64, tokens: 100 };
    replay::law(module_path!(), "many_experts_are_bitwise_the_reference", 6, bounds.cases(device), |case| {
        check(device, &case)
    });
}

#[test]
fn many_ranks_are_bitwise_the_reference() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 9..=64, experts: 1..=300, top_k: 16, hidden: 64, tokens: 12 };
    let bounds = if device == Device::Cuda { Bounds { ranks: 7..=8, ..bounds } } else { bounds };
    replay::law(module_path!(), "many_ranks_are_bitwise_the_reference", 2, bounds.cases(device), |case| {
        check(device, &Case { num_sms: 1, ..case })
    });
}

/// The largest of everything that the simulator is asked for: 64 ranks, 2048 experts, top-32.
#[test]
fn the_extremes_work_together() {
    for (format, mode) in [(WireFormat::Bf16, Mode::Fast { workers: 0 }), (WireFormat::Fp8, Mode::Seeded { seed: 64 })]
    {
        let case = Case {
            ranks: 64,
            experts: 2048,
            top_k: 32,
            hidden: 144,
            format,
            num_sms: 1,
            tokens: (0..64).map(|rank| rank % 5).collect(),
            index: IndexType::I32,
            choice: Choice::Uniform,
            holes: 1,
            data: 2048,
            mode,
        };
        check(Device::Simulated, &case).unwrap();
    }
}

/// So many tokens that each block counts its own, and blocks tell each other: with one block and several, with tokens for all of them and with fewer than the last one needs to have
/// any, and where somebody observes the counts.
#[test]
fn many_tokens_are_bitwise_the_reference() {
    let device = Device::from_env();
    for mode in device.schedules([5]) {
        // Of 65 tokens 12 blocks have 6 each, and the last none.
        for (num_sms, (top_k, tokens)) in [1, 2, 3, 5, 12].into_iter().flat_map(|num_sms| {
            [(3, [700, 0, 530]), (12, [140, 200, 300]), (20, [65, 250, 90])].map(|of| (num_sms, of))
        }) {
            let case = Case {
                ranks: 3,
                experts: 26,
                top_k,
                hidden: 64,
                format: if num_sms % 2 == 0 { WireFormat::Fp8 } else { WireFormat::Bf16 },
                num_sms,
                tokens: tokens.to_vec(),
                index: [IndexType::I64, IndexType::I32, IndexType::U32][num_sms as usize % 3],
                choice: Choice::Skewed,
                holes: 2,
                data: u64::from(top_k),
                mode,
            };
            let observed = case.config().with_counts_mirror();
            for config in [case.config(), observed] {
                check_with(device, &case, config).unwrap_or_else(|e| panic!("{case:?}: {e}"));
            }
        }
    }
}

/// Rows as long as they may be for what a block can stage, and as short.
#[test]
fn long_and_short_rows_work() {
    let device = Device::from_env();
    for (hidden, format) in [
        (8, WireFormat::Bf16),
        (16, WireFormat::Fp8),
        (7168, WireFormat::Fp8),
        (2880, WireFormat::Bf16),
        // Pieces of eight vectors, of four, and a part of one; groups that are whole and not.
        (2064, WireFormat::Fp8),
        (2880, WireFormat::Fp8),
        (3088, WireFormat::Fp8),
        (2056, WireFormat::Bf16),
        (65_536, WireFormat::Bf16),
        (65_536, WireFormat::Fp8),
        (112_000, WireFormat::Fp8),
        (113_000, WireFormat::Bf16),
    ] {
        let case = Case {
            ranks: 2,
            experts: 5,
            top_k: 3,
            hidden,
            format,
            num_sms: 1,
            tokens: vec![2, 3],
            index: IndexType::I64,
            choice: Choice::Uniform,
            holes: 0,
            data: u64::from(hidden),
            mode: Mode::Fast { workers: 0 },
        };
        check(device, &case).unwrap_or_else(|e| panic!("hidden {hidden} {format:?}: {e}"));
    }
}

#[test]
fn no_token_anywhere_and_no_selection_at_all() {
    let device = Device::from_env();
    for mode in device.schedules([1, 2, 3]) {
        for (tokens, holes) in [(vec![0, 0, 0], 0), (vec![5, 0, 2], 16)] {
            let case = Case {
                ranks: 3,
                experts: 2,
                top_k: 2,
                hidden: 16,
                format: WireFormat::Fp8,
                num_sms: 3,
                tokens,
                index: IndexType::U32,
                choice: Choice::Same,
                holes,
                data: 1,
                mode,
            };
            check(device, &case).unwrap();
        }
    }
}

/// The sums are the same whatever the number of SMs and the schedule: this is checked above against one reference, and
/// here for one larger routing with every small number of blocks.
#[test]
fn the_number_of_sms_changes_nothing() {
    let device = Device::from_env();
    for num_sms in 1..=5 {
        let case = Case {
            ranks: 4,
            experts: 13,
            top_k: 6,
            hidden: 304,
            format: WireFormat::Fp8,
            num_sms,
            tokens: vec![33, 64, 1, 17],
            index: IndexType::I64,
            choice: Choice::Skewed,
            holes: 2,
            data: 99,
            mode: Mode::Seeded { seed: u64::from(num_sms) },
        };
        check(device, &case).unwrap();
    }
}

/// Tokens of a rank in one operation of the matrix: `tokens` on most ranks, fewer on some.
fn uneven(tokens: u32, ranks: u32, turn: u32) -> Vec<u32> {
    let of = |rank: u32| match (rank + turn) % 4 {
        1 => tokens - tokens / 3,
        2 if tokens > 1 => tokens / 7,
        _ => tokens,
    };
    (0..ranks).map(of).collect()
}

/// {BF16, FP8} x {1, 2, 4, 8 ranks} x {0, 1, 7, 128, 4096 tokens, different per rank} x hidden {256, 2880, 7168} x top-k
/// {1, 6, 8} of 256 experts. Each shape keeps its buffer for all numbers of tokens, the large ones between the small.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn the_matrix_on_the_gpu() {
    let started = std::time::Instant::now();
    for format in [WireFormat::Bf16, WireFormat::Fp8] {
        for ranks in [1, 2, 4, 8] {
            for hidden in [256, 2880, 7168] {
                for top_k in [1, 6, 8] {
                    let patterns = [7, 4096, 0, 128, 1];
                    let shape = format!("{format:?}, {ranks} ranks, hidden {hidden}, top-{top_k}");
                    matrix_entry(Device::Cuda, format, ranks, hidden, top_k, &patterns)
                        .unwrap_or_else(|e| panic!("{shape}: {e}"));
                    println!("{:6.1} s  {shape}", started.elapsed().as_secs_f64());
                }
            }
        }
    }
}

/// A row of the matrix at a size for the simulator, so that its code is tested everywhere.
#[test]
fn the_matrix_in_small() {
    let device = Device::from_env();
    matrix_entry(device, WireFormat::Fp8, 4, 256, 6, &[7, 48, 0, 16, 1]).unwrap();
    matrix_entry(device, WireFormat::Bf16, 2, 256, 8, &[48, 0, 1]).unwrap();
}

fn matrix_entry(
    device: Device,
    format: WireFormat,
    ranks: u32,
    hidden: u32,
    top_k: u32,
    patterns: &[u32],
) -> Result<(), String> {
    let experts = 256;
    let max_tokens = patterns.iter().copied().max().unwrap_or(1).max(1);
    // Each rank's thread makes its own part of an operation's world; every one reads all of it.
    let shared: RwLock<(World, Vec<Wire>)> =
        RwLock::new((World { ranks, experts, top_k, hidden, format, inputs: Vec::new() }, Vec::new()));
    let parts = std::sync::Mutex::new(vec![None; ranks as usize]);
    // A barrier of the host's alone: no rank is inside an operation when it comes here.
    let all = Barrier::new(ranks as usize);
    device.check(ranks, Mode::Fast { workers: 0 }, |comm| {
        let config = Config::new(experts, top_k, hidden, max_tokens).with_format(format);
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        let mut tensors = Tensors::empty(&comm, max_tokens, hidden, top_k, IndexType::I64)?;
        comm.barrier()?;
        let mut checked = Ok(());
        for (turn, &tokens) in (0u32..).zip(patterns) {
            let mut mine = vec![0; ranks as usize];
            mine[comm.rank() as usize] = uneven(tokens, ranks, turn)[comm.rank() as usize];
            let case = Case {
                ranks,
                experts,
                top_k,
                hidden,
                format,
                num_sms: 0,
                tokens: mine,
                index: IndexType::I64,
                choice: if turn % 2 == 0 { Choice::Uniform } else { Choice::Skewed },
                holes: turn % 3,
                data: u64::from(turn) << 32 | u64::from(tokens),
                mode: Mode::Fast { workers: 0 },
            };
            let own = case.world();
            let part = (own.wire(comm.rank()), own.inputs.into_iter().nth(comm.rank() as usize));
            parts.lock().unwrap_or_else(|e| e.into_inner())[comm.rank() as usize] = Some(part);
            if all.wait().is_leader() {
                let mut shared = shared.write().unwrap_or_else(|e| e.into_inner());
                let mut parts = parts.lock().unwrap_or_else(|e| e.into_inner());
                let (wires, inputs): (Vec<_>, Vec<_>) = parts.iter_mut().filter_map(Option::take).unzip();
                shared.0.inputs = inputs.into_iter().flatten().collect();
                shared.1 = wires;
            }
            all.wait();
            let shared = shared.read().unwrap_or_else(|e| e.into_inner());
            tensors.fill(&shared.0, comm.rank())?;
            let round = check_round(&comm, &mut buffer, &mut tensors, &shared.0, &shared.1)?;
            checked = checked.and(round.map_err(|e| format!("{tokens} tokens: {e}")));
            drop(shared);
            comm.barrier()?;
        }
        buffer.close()?;
        Ok(checked)
    })
}
