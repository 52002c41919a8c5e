//! Rows in fixed places, and the index by expert that a dispatch makes of them, or of compact ones.
use epoxide::quantize::Quantizer;
use epoxide::{Comm, DeviceTensor, Dispatched, ElasticBuffer, Received, Result, View, bf16};

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

/// The index that a dispatch makes, and its offsets, are those of the rows that came: in their places, or one after another.
pub fn check_index(
    comm: &Comm,
    quantizer: &Quantizer,
    buffer: &ElasticBuffer,
    handle: &Dispatched,
    received: &Received,
    alignment: u32,
) -> Result<Checked> {
    let (max_tokens, top_k) = (buffer.config().max_tokens_per_rank, buffer.config().top_k as usize);
    let in_places = buffer.config().layout.is_rank_major();
    let (mut want, mut offsets) = (Vec::new(), vec![0]);
    for expert in 0..received.counts.by_expert.len() as i32 {
        let rows = (0..).zip(received.topk_idx.chunks(top_k).zip(&received.sources));
        let selecting = rows.filter(|(_, (experts, _))| experts.contains(&expert));
        want.extend(selecting.map(|(row, (_, (rank, token)))| if in_places { rank * max_tokens + token } else { row }));
        want.resize(want.len().next_multiple_of(alignment as usize), u32::MAX);
        offsets.push(want.len() as u32);
    }
    let arrays = buffer.recv_arrays(handle)?;
    let words = read(comm, quantizer, arrays.index.expect("there is an index"), want.len())?;
    let mut checked = same("index offsets", &received.counts.index_offsets, &offsets, 1);
    checked = checked.and_then(|()| same("index", &words, &want, 1));
    if !in_places {
        let words = read(comm, quantizer, arrays.offsets.expect("an index has offsets"), offsets.len())?;
        checked = checked.and_then(|()| same("index offsets on the device", &words, &offsets, 1));
    }
    Ok(checked)
}

/// The first words of an array that begins where a region does.
fn read(comm: &Comm, quantizer: &Quantizer, view: View<'_>, words: usize) -> Result<Vec<u32>> {
    let bytes = (words as u64 * 4).next_multiple_of(16);
    let to: DeviceTensor<u32> = comm.empty(bytes / 4)?;
    // SAFETY: regions of the buffer are multiples of 256 bytes long; nothing writes this one before the next dispatch.
    unsafe { quantizer.copy_raw(view.address(), to.address(), bytes)? };
    let mut read = to.to_vec()?;
    read.truncate(words);
    Ok(read)
}
