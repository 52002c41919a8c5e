//! What plain kernels reach: copies through one GPU's memory, and over the links between GPUs.
use epoxide::quantize::Quantizer;
use epoxide::{Comm, Result};

/// Bytes of a copy on a GPU, far more than any cache, and on the simulated one, whose times say nothing: more would take it longer than all else.
const GPU_BYTES: u64 = 1 << 30;
const SIMULATED_BYTES: u64 = 1 << 20;
/// Copies that are timed; the median counts.
const COPIES: usize = 9;

/// Bytes per second, on the ranks that measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ceilings {
    /// Through the memory of one GPU, read and written.
    pub copy: Option<f64>,
    /// Written to another GPU's memory, while every GPU does so.
    pub push: Option<f64>,
    /// Read from another GPU's memory, while every GPU does so.
    pub pull: Option<f64>,
}

/// Measures them; collective. `gpus` is the GPU of every rank: the first rank of each takes part. Ranks that are `apart` do not reach each
/// other's tensors, so that there is no ceiling of a link.
///
/// # Errors
///
/// The library's.
pub fn measure(comm: &Comm, gpus: &[u32], apart: bool) -> Result<Ceilings> {
    let rank = comm.rank() as usize;
    // The first rank of every GPU.
    let firsts: Vec<usize> = (0..gpus.len()).filter(|&r| !gpus[..r].contains(&gpus[r])).collect();
    let place = firsts.iter().position(|&r| r == rank);
    let bytes = if comm.cuda_stream().is_some() { GPU_BYTES } else { SIMULATED_BYTES };
    let tensors = match place {
        Some(_) => Some((comm.empty::<u64>(bytes / 8)?, comm.empty::<u64>(bytes / 8)?)),
        None => None,
    };
    let quantizer = Quantizer::new(comm)?;
    let own = tensors.as_ref().map_or([0; 2], |(from, to)| [from.address(), to.address()]);
    let all = comm.all_gather(&own.map(u64::to_le_bytes).concat())?;
    let address = |rank: usize, which: usize| {
        let bytes = all[rank].get(which * 8..which * 8 + 8).and_then(|b| b.try_into().ok());
        u64::from_le_bytes(bytes.unwrap_or_default())
    };
    let timed = |from: u64, to: u64, takes_part: bool| -> Result<Option<f64>> {
        comm.barrier()?;
        let mut times = Vec::new();
        for _ in 0..if takes_part { COPIES } else { 0 } {
            let start = comm.record()?;
            // SAFETY: both are allocations of `bytes`, `from` and `to` of this rank or of a peer, all alive until the last
            // barrier; every tensor is the source of all copies at once, or the target of one.
            unsafe { quantizer.copy_raw(from, to, bytes)? };
            let end = comm.record()?;
            comm.synchronize()?;
            times.push(comm.elapsed_ms(&start, &end)? / 1e3);
        }
        comm.barrier()?;
        times.sort_by(f64::total_cmp);
        Ok(times.get(COPIES / 2).map(|seconds| bytes as f64 / seconds))
    };
    let copy = timed(own[0], own[1], rank == 0)?.map(|rate| 2.0 * rate);
    let (mut push, mut pull) = (None, None);
    if comm.cuda_stream().is_some() && firsts.len() > 1 && !apart {
        // A ring: everyone sends to the next, or takes from it.
        let next = place.map_or(rank, |place| firsts[(place + 1) % firsts.len()]);
        push = timed(own[0], address(next, 1), place.is_some())?;
        pull = timed(address(next, 0), own[1], place.is_some())?;
    }
    drop(tensors);
    Ok(Ceilings { copy, push, pull })
}
