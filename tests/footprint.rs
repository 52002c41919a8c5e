//! What groups and tensors that are gone have left, as figures of the process and of the GPU (`--nocapture` shows them).
mod support;

use epoxide::{Comm, Config, DispatchInput, ElasticBuffer, LocalGroup, Machine, MachineConfig, Mode, Result, bf16};
use support::gpu::{Gpu, address_space, resident_bytes};
use support::replay::{line, seeds};
use support::{Device, gpus};

const MIB: u64 = 1 << 20;

/// Numbers that look random, the same for the same seed.
struct Sizes(u64);

impl Sizes {
    /// 1 to 64 MiB, to the byte.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        MIB + (self.0 >> 33) % (63 * MIB + 1)
    }
}

fn round_trip(comm: &Comm) -> Result<ElasticBuffer> {
    let mut buffer = ElasticBuffer::new(comm, Config::new(8, 1, 64, 4).with_num_sms(1))?;
    let x = comm.tensor(&[bf16::ONE; 64])?;
    let (idx, weights) = (comm.tensor(&[3i64])?, comm.tensor(&[1.0f32])?);
    comm.barrier()?;
    buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
    Ok(buffer)
}

/// 60 groups, one after another, of two ranks a GPU. It prints what it saw (`--nocapture`).
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn groups_that_are_gone_leave_nothing() {
    let _turn = Device::Cuda.turn();
    let ordinals = gpus();
    let watched: Vec<Gpu> = ordinals.iter().map(|gpu| Gpu::new(*gpu)).collect();
    let ranks: Vec<u32> = ordinals.iter().flat_map(|gpu| [*gpu, *gpu]).collect();
    let groups = |count: u32| {
        for _ in 0..count {
            LocalGroup::on_gpus(&ranks).unwrap().run(|comm| round_trip(&comm)?.close()).unwrap();
        }
    };
    let figures = |when: &str| {
        let free: Vec<u64> = watched.iter().map(|gpu| gpu.free_bytes() / MIB).collect();
        let contexts: Vec<bool> = watched.iter().map(Gpu::has_context).collect();
        let resident = resident_bytes() / MIB;
        println!(
            "{when}: {resident} MiB resident, {free:?} MiB free on GPUs {ordinals:?}, contexts there: {contexts:?}"
        );
        (resident, free, contexts)
    };
    figures("at first");
    groups(3);
    let before = figures("after 3 groups");
    groups(60);
    let after = figures("after 63 groups");
    // A rank's pinned memory alone is 16 MiB.
    assert!(after.0 < before.0 + 60 * 2, "{} MiB resident, then {}", before.0, after.0);
    for (gpu, (before, after)) in before.1.iter().zip(&after.1).enumerate() {
        assert!(after + 30 > *before, "{before} MiB free on the test's GPU {gpu}, then {after}");
    }
    // Once made it stays: a driver that makes and destroys them all the time fails now and then.
    assert!(after.2.iter().all(|there| *there), "a context is gone");
}

/// Each is dropped before the next is made, and the stream is never waited for: room for three of the largest is enough for all.
#[test]
fn tensors_of_many_sizes_take_a_few_times_the_largest() {
    for seed in seeds(2) {
        println!("replay: {}", line("footprint", "tensors_of_many_sizes_take_a_few_times_the_largest", seed));
        let make = |comm: &Comm| -> Result<()> {
            let mut sizes = Sizes(seed);
            for number in 0..600 {
                let tensor = comm.empty::<u8>(sizes.next())?;
                assert_eq!(tensor.address() % 256, 0, "tensor {number}");
            }
            // Each longer than all before: nothing that was dropped is long enough by itself.
            (1..=600).try_for_each(|number| comm.empty::<u8>(MIB + number * (63 * MIB / 600)).map(drop))
        };
        match Device::from_env() {
            Device::Simulated => {
                let config = MachineConfig::new(1, Mode::Seeded { seed }).with_arena_bytes(3 * 64 * MIB);
                let comm = LocalGroup::on_machine(&Machine::new(config).unwrap()).unwrap().into_comms().remove(0);
                make(&comm).unwrap();
            }
            Device::Cuda => {
                let _turn = Device::Cuda.turn();
                let gpu = Gpu::new(gpus()[0]);
                let comm = LocalGroup::on_gpus(&gpus()[..1]).unwrap().into_comms().remove(0);
                let before = gpu.free_bytes();
                make(&comm).unwrap();
                let taken = before.saturating_sub(gpu.free_bytes()) / MIB;
                println!("1200 tensors of 1 to 64 MiB: {taken} MiB taken");
                assert!(taken <= 3 * 64, "{taken} MiB");
            }
        }
    }
}

/// A machine that halted answers nobody, and is gone with its ranks all the same.
#[test]
fn a_halted_machine_is_gone_with_its_group() {
    let before = address_space();
    for _ in 0..3 {
        let config = MachineConfig::new(1, Mode::Fast { workers: 1 }).with_arena_bytes(4 << 40);
        let comm = LocalGroup::on_machine(&Machine::new(config).unwrap()).unwrap().into_comms().remove(0);
        let quantizer = epoxide::quantize::Quantizer::new(&comm).unwrap();
        let tensor = comm.tensor(&[1u32; 64]).unwrap();
        // SAFETY: the simulated machine finds the address that is none, and halts.
        unsafe { quantizer.copy_raw(16, tensor.address(), 256) }.unwrap();
        comm.synchronize().unwrap_err();
    }
    let after = address_space();
    assert!(after < before + (4 << 40), "{} GiB of address space, then {}", before >> 30, after >> 30);
}
