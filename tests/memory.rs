//! Memory of tensors: when it is lent again, when it goes back, and that a peer which waits never holds that up.
mod support;

use std::time::{Duration, Instant};

use epoxide::{
    Comm, Config, DispatchInput, ElasticBuffer, Error, LocalGroup, Machine, MachineConfig, Mode, Result, bf16,
};
use support::gpu::Gpu;
use support::{Device, gpus};

const MIB: u64 = 1 << 20;

fn round_trip(comm: &Comm) -> Result<ElasticBuffer> {
    let mut buffer = ElasticBuffer::new(comm, Config::new(8, 1, 64, 4).with_num_sms(1))?;
    let x = comm.tensor(&[bf16::ONE; 64])?;
    let (idx, weights) = (comm.tensor(&[3i64])?, comm.tensor(&[1.0f32])?);
    comm.barrier()?;
    buffer.dispatch(&DispatchInput::new(1, &x, &idx, &weights))?;
    Ok(buffer)
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
        // Three free ranges of 2 MiB, two of them the pool's, and the stream is idle: nothing of 4 MiB but by giving back.
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

/// Longer than most machines' memory: nothing of it is touched on the device.
#[test]
fn a_copy_beyond_the_hosts_memory_is_an_error() {
    if std::fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|text| text.trim() == "1") {
        return eprintln!("skipped: this host promises memory that it has not got");
    }
    const TIB: u64 = 1 << 40;
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    let total =
        memory.lines().filter(|line| line.starts_with("MemTotal") || line.starts_with("SwapTotal")).filter_map(kib);
    if total.sum::<u64>() * 1024 >= TIB {
        return eprintln!("skipped: this host has a tebibyte");
    }
    let config = MachineConfig::new(1, Mode::Seeded { seed: 1 }).with_arena_bytes(2 * TIB);
    let comm = LocalGroup::on_machine(&Machine::new(config).unwrap()).unwrap().into_comms().remove(0);
    let tensor = comm.empty::<u64>(TIB / 8).unwrap();
    let error = tensor.to_vec().unwrap_err();
    assert_error!(error, Error::HostMemory { bytes, .. } if *bytes == TIB, "out of host memory", "1099511627776 bytes");
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
