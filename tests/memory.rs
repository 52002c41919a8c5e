//! What memory things take, and that it comes back: of tensors that are dropped, and of whole groups.
mod support;

use std::time::{Duration, Instant};

use cudarc::driver::sys;
use epoxide::{
    Comm, Config, DispatchInput, ElasticBuffer, Error, LocalGroup, Machine, MachineConfig, Mode, Result, bf16,
};
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

/// The process's resident memory.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}

/// A GPU's memory as the driver sees it, and whether its primary context is there.
struct Gpu(sys::CUdevice);

impl Gpu {
    fn new(ordinal: u32) -> Self {
        // The library initialises the driver.
        LocalGroup::gpus().expect("a driver");
        let mut device = 0;
        // SAFETY: a valid place for the answer.
        assert_eq!(unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) }, sys::CUresult::CUDA_SUCCESS);
        Self(device)
    }

    fn free_bytes(&self) -> u64 {
        let (mut context, mut free, mut total) = (std::ptr::null_mut(), 0, 0);
        // SAFETY: valid places for the answers; the context is retained while it is current and asked.
        unsafe {
            assert_eq!(sys::cuDevicePrimaryCtxRetain(&mut context, self.0), sys::CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuCtxSetCurrent(context), sys::CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuMemGetInfo_v2(&mut free, &mut total), sys::CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuDevicePrimaryCtxRelease_v2(self.0), sys::CUresult::CUDA_SUCCESS);
        }
        free as u64
    }

    fn has_context(&self) -> bool {
        let (mut flags, mut active) = (0, 0);
        // SAFETY: valid places for the answers.
        let asked = unsafe { sys::cuDevicePrimaryCtxGetState(self.0, &mut flags, &mut active) };
        assert_eq!(asked, sys::CUresult::CUDA_SUCCESS);
        active != 0
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

/// 60 groups, one after another, of two ranks a GPU: with nothing but public calls, so that any version runs it. It prints what it
/// saw (`--nocapture`).
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
    assert!(after.2.iter().all(|there| !there), "a context that nobody uses is there");
}

/// Each is dropped before the next is made, and the stream is never waited for: room for three of the largest is enough for all.
#[test]
fn tensors_of_many_sizes_take_a_few_times_the_largest() {
    for seed in seeds(2) {
        println!("replay: {}", line("memory", "tensors_of_many_sizes_take_a_few_times_the_largest", seed));
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

/// A tensor that is dropped while its stream is busy leaves its memory to the next at once, whose writes come after.
#[test]
fn a_dropped_tensor_is_not_overwritten_before_its_last_use() {
    for mode in Device::from_env().schedules([1, 2, 3]) {
        let results = Device::from_env().run_all(1, mode, |comm| {
            let quantizer = epoxide::quantize::Quantizer::new(&comm)?;
            let (x, mut y) = (comm.tensor(&[7u32; 4096])?, comm.empty::<u32>(4096)?);
            comm.delay(Duration::from_millis(20))?;
            quantizer.copy(&x, &mut y)?;
            let address = x.address();
            drop(x);
            let next = comm.tensor(&[9u32; 4096])?;
            Ok((next.address() == address, y.to_vec()?, next.to_vec()?))
        });
        for result in results {
            let (reused, y, next) = result.unwrap();
            assert!(reused && y.iter().all(|w| *w == 7) && next.iter().all(|w| *w == 9), "{mode:?}, reused: {reused}");
        }
    }
}

/// What a pool holds and nobody uses is there for a buffer, and for a tensor of another size, before memory is said to be out.
#[test]
fn unused_memory_of_tensors_is_given_back_before_there_is_none() {
    let config = MachineConfig::new(2, Mode::Fast { workers: 1 }).with_arena_bytes(16 << 20);
    let results = LocalGroup::on_machine(&Machine::new(config).unwrap()).unwrap().run_all(|comm| {
        let tensors = [(); 3].map(|()| comm.empty::<u8>(2 * MIB));
        let [first, second, third] = tensors.map(|tensor| tensor.unwrap());
        drop((first, third));
        // Three free ranges of 2 MiB, and the stream is idle: nothing of 3 MiB but by giving back.
        let large = comm.empty::<u8>(4 * MIB)?;
        drop((large, second));
        // The stream is not waited for here either.
        ElasticBuffer::new(&comm, Config::new(8, 2, 1024, 900))?.close()
    });
    for result in results {
        result.unwrap();
    }
}

/// While its kernel may still write there, memory of a dropped tensor goes back to nobody: out of memory is said instead.
#[test]
fn memory_that_a_kernel_uses_is_not_given_back() {
    let config = MachineConfig::new(1, Mode::Seeded { seed: 1 }).with_arena_bytes(16 << 20);
    let results = LocalGroup::on_machine(&Machine::new(config).unwrap()).unwrap().run_all(|comm| {
        let (tensor, rest) = (comm.empty::<u8>(6 * MIB)?, comm.empty::<u8>(6 * MIB)?);
        comm.delay(Duration::from_millis(5))?;
        drop((tensor, rest));
        // Neither is long enough, and on a seeded machine the delay is not over before somebody waits.
        let refused = comm.empty::<u8>(12 * MIB + 1).map(|_| ());
        comm.synchronize()?;
        Ok((refused, comm.empty::<u8>(12 * MIB + 1).map(|_| ())))
    });
    for result in results {
        let (refused, made) = result.unwrap();
        assert!(matches!(refused, Err(Error::OutOfMemory { .. })), "{refused:?}");
        made.unwrap();
    }
}

/// As long as any machine's memory: nothing of it is touched on the device.
#[test]
fn a_copy_beyond_the_hosts_memory_is_an_error() {
    if std::fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|text| text.trim() == "1") {
        return eprintln!("skipped: this host promises memory that it has not got");
    }
    let config = MachineConfig::new(1, Mode::Seeded { seed: 1 }).with_arena_bytes(32 << 40);
    let comm = LocalGroup::on_machine(&Machine::new(config).unwrap()).unwrap().into_comms().remove(0);
    let tensor = comm.empty::<u64>(2 << 40).unwrap();
    let error = tensor.to_vec().unwrap_err();
    assert_error!(error, Error::HostMemory { bytes, .. } if *bytes == 16 << 40, "out of host memory", "17592186044416 bytes");
}

/// Two ranks on one GPU, or on two, one of which spins: the other gets memory that its pool has not got, at once.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_pool_grows_while_a_peer_spins() {
    let _turn = Device::Cuda.turn();
    let first = gpus()[0];
    grows_beside_a_spinning_peer(&[first, first]);
    if let Some(other) = gpus().into_iter().find(|gpu| *gpu != first) {
        grows_beside_a_spinning_peer(&[first, other]);
    }
}

fn grows_beside_a_spinning_peer(gpus: &[u32]) {
    let gib = 1 << 30;
    let results = LocalGroup::on_gpus(gpus).unwrap().run_all(|comm| {
        let config = Config::new(8, 1, 64, 4).with_num_sms(1).with_timeout(Duration::from_secs(20));
        let mut buffer = ElasticBuffer::new(&comm, config)?;
        let x = comm.tensor(&[bf16::ONE; 64])?;
        let (idx, weights) = (comm.tensor(&[3i64])?, comm.tensor(&[1.0f32])?);
        let input = DispatchInput::new(1, &x, &idx, &weights);
        let mut took = Vec::new();
        // First a kernel that ends by itself, then one that waits for this very rank.
        comm.barrier()?;
        let start = Instant::now();
        if comm.rank() == 0 {
            comm.delay(Duration::from_secs(5))?;
            comm.barrier()?;
        } else {
            comm.barrier()?;
            let mut tensors = Vec::new();
            for bytes in [1, 17 * MIB, gib, 3 * gib] {
                tensors.push(comm.empty::<u8>(bytes)?);
            }
            let words = comm.tensor(&[5u32; 1000])?;
            assert_eq!(words.to_vec()?, [5; 1000]);
            drop(tensors);
            comm.empty::<u8>(4 * gib)?;
            took.push(start.elapsed());
        }
        comm.barrier()?;
        comm.synchronize()?;
        let delayed = start.elapsed();
        comm.barrier()?;
        if comm.rank() == 0 {
            buffer.dispatch(&input)?;
            comm.barrier()?;
        } else {
            comm.barrier()?;
            let start = Instant::now();
            let tensor = comm.empty::<u8>(6 * gib)?;
            took.push(start.elapsed());
            drop(tensor);
            buffer.dispatch(&input)?;
        }
        buffer.synchronize()?;
        buffer.close()?;
        Ok((took, delayed))
    });
    let [first, second] = <[_; 2]>::try_from(results).unwrap().map(|result| result.unwrap());
    println!("GPUs {gpus:?}, beside a spinning peer: {:?}; the peer's delay ended after {:?}", second.0, first.1);
    assert!(first.1 >= Duration::from_secs(5));
    assert!(second.0.iter().all(|took| *took < Duration::from_secs(2)), "held up: {:?}", second.0);
}

/// A tensor is memory like any other of its GPU: the kernels of a peer read and write it, also in what the pool added later.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_peer_reaches_a_tensor() {
    let _turn = Device::Cuda.turn();
    let ranks: Vec<u32> = gpus().into_iter().cycle().take(2).collect();
    let results = LocalGroup::on_gpus(&ranks).unwrap().run_all(|comm| {
        let quantizer = epoxide::quantize::Quantizer::new(&comm)?;
        let small = comm.tensor(&[comm.rank() + 1; 1024])?;
        let large = comm.empty::<u8>(100 * MIB)?;
        let (mut written, got) = (comm.tensor(&[0u32; 1024])?, comm.tensor(&[0u32; 1024])?);
        written.copy_from_host(&[0; 1024])?;
        let all = comm.all_gather(&[small.address(), written.address()].map(u64::to_le_bytes).concat())?;
        let peer: Vec<u64> = all[1 - comm.rank() as usize]
            .chunks_exact(8)
            .map(|address| u64::from_le_bytes(address.try_into().expect("8 bytes")))
            .collect();
        // SAFETY: tensors of 4 KiB that live until the last barrier; each is the source of copies, or the target of one.
        unsafe {
            quantizer.copy_raw(peer[0], got.address(), 4096)?;
            quantizer.copy_raw(small.address(), peer[1], 4096)?;
        }
        comm.synchronize()?;
        comm.barrier()?;
        drop(large);
        Ok((got.to_vec()?, written.to_vec()?))
    });
    for (rank, result) in (0..).zip(results) {
        let peer = 2 - rank;
        assert_eq!(result.unwrap(), (vec![peer; 1024], vec![peer; 1024]), "rank {rank}");
    }
}

/// What tensors left goes back when a buffer is closed, when the ranks' streams are known to be idle.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn closing_a_buffer_gives_the_memory_of_dropped_tensors_back() {
    let _turn = Device::Cuda.turn();
    let gpu = Gpu::new(gpus()[0]);
    let results = LocalGroup::on_gpu(2, gpus()[0]).unwrap().run_all(|comm| {
        let kept = comm.tensor(&[3u32; 100])?;
        let buffer = round_trip(&comm)?;
        comm.barrier()?;
        let before = gpu.free_bytes();
        comm.barrier()?;
        drop([(); 5].map(|()| comm.empty::<u8>(1 << 30)));
        comm.barrier()?;
        let dropped = gpu.free_bytes();
        comm.barrier()?;
        buffer.close()?;
        comm.barrier()?;
        Ok((before, dropped, gpu.free_bytes(), kept.to_vec()?))
    });
    for result in results {
        let (before, dropped, closed, kept) = result.unwrap();
        println!("{} MiB free, {} with dropped tensors, {} once closed", before / MIB, dropped / MIB, closed / MIB);
        assert!(dropped + 2 * 5 * (1 << 30) <= before + 64 * MIB, "a pool keeps what was dropped");
        assert!(closed + 64 * MIB >= before, "it goes back when the buffer is closed");
        assert_eq!(kept, [3; 100]);
    }
}
