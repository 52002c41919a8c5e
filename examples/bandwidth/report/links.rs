//! What the links and the launches of this machine can do at best: nothing of ours is in the way.
use std::time::Duration;

use epoxide::kernels::Global;
use epoxide::{Comm, DeviceTensor, Event, Result};
use epoxide_kernels::measure::latencies::{FlagArgs, empty, empty_together, flag_to_and_fro};
use epoxide_kernels::measure::links::{COPIES_SHARED, LinkArgs, PIECE, link_copies, link_loads, link_stores};

use crate::measuring::family;
use crate::options::{Device, Options};

/// Bytes that a rank moves to or from all peers in one launch, on a GPU.
const BYTES: u64 = 128 << 20;
/// Launches that are timed, after one that is not.
const LAUNCHES: usize = 9;
/// Empty launches that are timed.
const EMPTY: usize = 200;
/// Launches behind each other, for what one of many takes.
const TRAIN: u32 = 16;
/// Blocks of a cooperative launch: those of an operation.
const TOGETHER: u32 = 16;
/// Times that a flag goes there and back: of two launches the difference counts, so that no launch is in it.
const ROUNDS: [u32; 2] = [100, 1100];
/// Measurements of that.
const FLAGS: usize = 25;

/// Ways to move bytes over links: between all, and between the others and rank 0.
pub const WAYS: [&str; 6] = [
    "stores",
    "loads",
    "bulk copies",
    "stores to rank 0 alone",
    "loads from rank 0 alone",
    "bulk copies to rank 0 alone",
];
/// What is told of latencies.
pub const LATENCIES: [&str; 6] = [
    "nothing, between two events",
    "an empty launch, between two events",
    "an empty cooperative launch of 16 blocks, between two events",
    "an empty launch behind another",
    "an empty cooperative launch of 16 blocks behind another",
    "a flag to a peer, one way",
];

/// Of every number of SMs, for each of [`WAYS`], milliseconds of each launch.
type Moved = Vec<[Vec<f64>; 6]>;

/// What one rank found.
pub struct Found {
    pub moved_ms: Moved,
    /// Bytes that each launch moved to or from other ranks, or that came to rank 0 or went from it.
    pub bytes: u64,
    /// Of each of [`LATENCIES`], microseconds of each time.
    pub latencies_us: [Vec<f64>; 6],
}

/// The kernels of this file.
const KERNELS: [&str; 6] = ["link_stores", "link_loads", "link_copies", "empty", "empty_together", "flag_to_and_fro"];

/// Measures all of it, with so many SMs; collective.
///
/// # Errors
///
/// The library's.
pub fn measure(options: &Options, comm: &Comm, sms: &[u32]) -> Result<Found> {
    comm.load(&[family("ceilings", &KERNELS)])?;
    let mut latencies_us: [Vec<f64>; 6] = Default::default();
    launches(comm, &mut latencies_us)?;
    latencies_us[5] = flags(comm)?;
    let (moved_ms, bytes) = moves(options, comm, sms)?;
    Ok(Found { moved_ms, bytes, latencies_us })
}

/// What all ranks say of an address of theirs, in rank order; collective.
fn addresses(comm: &Comm, own: u64) -> Result<Vec<u64>> {
    let all = comm.all_gather(&own.to_le_bytes())?;
    Ok(all.iter().map(|bytes| u64::from_le_bytes(bytes.as_slice().try_into().unwrap_or_default())).collect())
}

/// Every rank moves bytes to and from all others at once, or alone, through its own memory; and then all others to and from rank 0.
fn moves(options: &Options, comm: &Comm, sms: &[u32]) -> Result<(Moved, u64)> {
    let simulated = options.device == Device::Sim;
    let (rank, ranks) = (u64::from(comm.rank()), u64::from(comm.size()));
    let others = ranks.saturating_sub(1).max(1);
    let pieces = if simulated { 1 } else { BYTES / u64::from(PIECE) / others };
    let part = pieces * u64::from(PIECE);
    // A part for every rank: nobody stores where somebody else does.
    let memory: DeviceTensor<u8> = comm.empty(part * ranks)?;
    let all = addresses(comm, memory.address())?;
    // From the next rank on, so that not all begin with the same.
    let peers = (1..ranks).map(|next| (rank + next) % ranks);
    let mut table: Vec<u64> = peers.map(|peer| all[peer as usize] + rank * part).collect();
    if table.is_empty() {
        table.push(memory.address());
    }
    let peers = comm.tensor(&table)?;
    let most = sms.iter().copied().max().unwrap_or(1);
    let sums: DeviceTensor<u32> = comm.empty(u64::from(most) * u64::from(link_loads.threads()) * 4)?;
    // SAFETY: a table of addresses in memory of all ranks, each with `pieces` pieces for this rank alone, which lives until the barrier at
    // the end; sums for the largest grid.
    let args = |peers: &DeviceTensor<u64>, peer_count: usize| unsafe {
        LinkArgs {
            peers: Global::from_raw(peers.address()),
            sums: Global::from_raw(sums.address()),
            peer_count: peer_count as u32,
            pieces: pieces as u32,
        }
    };
    let first = comm.tensor(&[all[0] + rank * part])?;
    let args = [args(&peers, table.len()), args(&first, 1)];
    let mut moved = Vec::new();
    for &sms in sms {
        let mut ms: [Vec<f64>; 6] = Default::default();
        let ways = if ranks > 1 { WAYS.len() } else { WAYS.len() / 2 };
        for (way, ms) in ms.iter_mut().enumerate().take(ways) {
            let (args, is_idle) = (&args[way / 3], way >= 3 && rank == 0);
            // SAFETY: as above; stores and loads are apart by barriers.
            let launch = || unsafe {
                match way % 3 {
                    _ if is_idle => Ok(()),
                    0 => comm.launch(&link_stores, sms, 0, args),
                    1 => comm.launch(&link_loads, sms, 0, args),
                    _ => comm.launch(&link_copies, sms, COPIES_SHARED, args),
                }
            };
            *ms = trains(comm, if simulated { 2 } else { LAUNCHES + 1 }, 1, launch)?.split_off(1);
        }
        moved.push(ms);
    }
    comm.barrier()?;
    Ok((moved, if ranks > 1 { part * others } else { 0 }))
}

/// Milliseconds of each of `count` times that something is enqueued `each` times, all of it while streams are held; collective.
fn trains(comm: &Comm, count: usize, each: u32, launch: impl Fn() -> Result<()>) -> Result<Vec<f64>> {
    let mut ms = Vec::with_capacity(count);
    while ms.len() < count {
        // No more than what is enqueued ahead without waiting.
        let batch = (count - ms.len()).min(1.max(48 / each.max(1) as usize));
        comm.barrier()?;
        comm.delay(Duration::from_millis(2))?;
        let mut events: Vec<[Event; 2]> = Vec::new();
        for _ in 0..batch {
            let start = comm.record()?;
            for _ in 0..each {
                launch()?;
            }
            events.push([start, comm.record()?]);
        }
        comm.synchronize()?;
        for [start, end] in &events {
            ms.push(comm.elapsed_ms(start, end)?);
        }
    }
    comm.barrier()?;
    Ok(ms)
}

/// What launches that do nothing take.
fn launches(comm: &Comm, us: &mut [Vec<f64>; 6]) -> Result<()> {
    let count = if comm.cuda_stream().is_some() { EMPTY } else { 2 };
    // SAFETY: the kernel touches no memory.
    let alone = || unsafe { comm.launch(&empty, 1, 0, &0) };
    // SAFETY: the kernel touches no memory.
    let together = || unsafe { comm.launch(&empty_together, TOGETHER, 0, &0) };
    let of = |ms: Vec<f64>, each: u32| ms.into_iter().map(|ms| ms * 1e3 / f64::from(each)).collect();
    us[0] = of(trains(comm, count, 1, || Ok(()))?, 1);
    us[1] = of(trains(comm, count, 1, alone)?, 1);
    us[2] = of(trains(comm, count, 1, together)?, 1);
    us[3] = of(trains(comm, count.div_ceil(8), TRAIN, alone)?, TRAIN);
    us[4] = of(trains(comm, count.div_ceil(8), TRAIN, together)?, TRAIN);
    Ok(())
}

/// Microseconds that a flag takes to a peer: ranks 0 and 1, 2 and 3 and so on in pairs, all at once. None where there is no peer.
fn flags(comm: &Comm) -> Result<Vec<f64>> {
    let simulated = comm.cuda_stream().is_none();
    let words = comm.tensor(&[0u64])?;
    let mut failed = comm.tensor(&[0u32])?;
    let all = addresses(comm, words.address())?;
    let peer = all.get((comm.rank() ^ 1) as usize).copied();
    let (rounds, times) = if simulated { ([1, 3], 1) } else { (ROUNDS, FLAGS) };
    let mut us = Vec::new();
    let mut after = 0;
    for _ in 0..times {
        let mut ms = [0.0; 2];
        for (ms, rounds) in ms.iter_mut().zip(rounds) {
            comm.barrier()?;
            let Some(peer) = peer else { continue };
            let start = comm.record()?;
            // SAFETY: words of two ranks, which live until the barrier at the end, and a word of this rank's.
            unsafe {
                let args = FlagArgs {
                    own: Global::from_raw(words.address()),
                    peer: Global::from_raw(peer),
                    failed: Global::from_raw(failed.address()),
                    is_first: u32::from(comm.rank().is_multiple_of(2)),
                    rounds,
                    after,
                    timeout_ns: 2_000_000_000,
                    pause_ns: if simulated { 1000 } else { 0 },
                };
                comm.launch(&flag_to_and_fro, 1, 0, &args)?;
            }
            let end = comm.record()?;
            comm.synchronize()?;
            *ms = comm.elapsed_ms(&start, &end)?;
            after += u64::from(rounds);
        }
        let ways = 2.0 * f64::from(rounds[1] - rounds[0]);
        // The simulated host's times say nothing, not even this.
        us.extend(peer.map(|_| ((ms[1] - ms[0]) * 1e3 / ways).max(0.0)));
    }
    comm.barrier()?;
    if failed.to_vec()? != [0] {
        failed.copy_from_host(&[0])?;
        us.clear();
    }
    Ok(us)
}
