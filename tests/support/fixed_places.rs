//! Rows in fixed places, and the index by expert that a dispatch makes of them.
use epoxide::quantize::Quantizer;
use epoxide::{Comm, DeviceTensor, Dispatched, ElasticBuffer, Received, Result, bf16};

use super::Checked;
use super::reference::{Wire, World, same};

/// What a rank has for each row that it receives, `width` elements in their order, in the rows' places; `other` where a place has none.
pub fn spread<T: Copy>(world: &World, rank: u32, max_tokens: u32, of_rows: &[T], width: usize, other: T) -> Vec<T> {
    let mut places = vec![other; (world.ranks * max_tokens) as usize * width];
    for (row, (source, token)) in of_rows.chunks(width).zip(world.arrivals(rank).sources) {
        let place = (source * max_tokens + token) as usize * width;
        places[place..place + width].copy_from_slice(row);
    }
    places
}

/// What a rank's experts will write in every place, known before anything runs; NaN where there is no row.
pub fn predicted_outputs(world: &World, rank: u32, wires: &[Wire], max_tokens: u32) -> Vec<bf16> {
    let rows = world.expert_outputs(rank, wires);
    spread(world, rank, max_tokens, &rows, world.hidden as usize, bf16::NAN)
}

/// The index that a dispatch makes is that of the rows that came, in their places.
pub fn check_index(
    comm: &Comm,
    quantizer: &Quantizer,
    buffer: &ElasticBuffer,
    handle: &Dispatched,
    received: &Received,
    alignment: u32,
) -> Result<Checked> {
    let (max_tokens, top_k) = (buffer.config().max_tokens_per_rank, buffer.config().top_k as usize);
    let (mut want, mut offsets) = (Vec::new(), vec![0]);
    for expert in 0..received.counts.by_expert.len() as i32 {
        let of_row = received.topk_idx.chunks(top_k).zip(&received.sources);
        let selecting = of_row.filter(|(experts, _)| experts.contains(&expert));
        want.extend(selecting.map(|(_, (rank, token))| rank * max_tokens + token));
        want.resize(want.len().next_multiple_of(alignment as usize), u32::MAX);
        offsets.push(want.len() as u32);
    }
    let view = buffer.recv_arrays(handle)?.index.expect("rows in fixed places have one");
    let bytes = (want.len() as u64 * 4).next_multiple_of(16);
    let to: DeviceTensor<u32> = comm.empty(bytes / 4)?;
    // SAFETY: regions of the buffer are multiples of 256 bytes long; nothing writes this one before the next dispatch.
    unsafe { quantizer.copy_raw(view.address(), to.address(), bytes)? };
    let words = to.to_vec()?;
    Ok(same("index offsets", &received.counts.index_offsets, &offsets, 1)
        .and_then(|()| same("index", &words[..want.len()], &want, 1)))
}
