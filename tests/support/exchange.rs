//! One dispatch and combine of a rank, checked bit for bit.
use epoxide::{
    CombineInput, Comm, DeviceTensor, DispatchInput, Dispatched, ElasticBuffer, ExpertOutputs, Index, IndexType,
    Received, Result, Rows, WireFormat, WireRows, bf16,
};

use super::packed;
use super::reference::{Arrivals, Wire, World, dequantize_row, expert, opaque_elements, same};

/// `topk_idx` in any of its types.
pub enum Indices {
    I32(DeviceTensor<i32>),
    I64(DeviceTensor<i64>),
    U32(DeviceTensor<u32>),
}

/// A rank's tensors of one dispatch and combine.
pub struct Tensors {
    pub x: DeviceTensor<bf16>,
    pub topk_idx: Indices,
    pub topk_weights: DeviceTensor<f32>,
    pub y: DeviceTensor<bf16>,
    /// Whether dispatches keep their rows behind the combine.
    pub keep_rows: bool,
}

impl Tensors {
    /// Room for `tokens` tokens.
    pub fn empty(comm: &Comm, tokens: u32, hidden: u32, top_k: u32, index: IndexType) -> Result<Self> {
        let (elements, selections) = (u64::from(tokens) * u64::from(hidden), u64::from(tokens) * u64::from(top_k));
        let topk_idx = match index {
            IndexType::I32 => Indices::I32(comm.empty(selections)?),
            IndexType::I64 => Indices::I64(comm.empty(selections)?),
            IndexType::U32 => Indices::U32(comm.empty(selections)?),
            _ => unreachable!("the tests know no other type of selections"),
        };
        let y = comm.empty(elements)?;
        Ok(Self { x: comm.empty(elements)?, topk_idx, topk_weights: comm.empty(selections)?, y, keep_rows: false })
    }

    /// Copies a rank's inputs in, and nonsense where the sums go.
    pub fn fill(&mut self, world: &World, rank: u32) -> Result<()> {
        let input = &world.inputs[rank as usize];
        self.x.copy_from_host(&input.x)?;
        match &mut self.topk_idx {
            Indices::I32(idx) => idx.copy_from_host(&input.topk_idx.iter().map(|&e| e as i32).collect::<Vec<_>>())?,
            Indices::I64(idx) => idx.copy_from_host(&input.topk_idx)?,
            Indices::U32(idx) => idx.copy_from_host(&input.topk_idx.iter().map(|&e| e as u32).collect::<Vec<_>>())?,
        }
        self.y.copy_from_host(&vec![bf16::from_bits(0x5a5a); input.x.len()])?;
        self.topk_weights.copy_from_host(&input.topk_weights)
    }

    /// Enqueues the dispatch.
    pub fn dispatch(&self, buffer: &mut ElasticBuffer, tokens: u32) -> Result<Dispatched> {
        self.dispatch_rows(buffer, tokens, (&self.x).into())
    }

    /// Enqueues the dispatch of rows that are brought.
    pub fn dispatch_rows(&self, buffer: &mut ElasticBuffer, tokens: u32, rows: Rows<'_>) -> Result<Dispatched> {
        self.dispatch_into(buffer, tokens, rows, None)
    }

    /// [`Self::dispatch_rows`] into a routing slot, the next in turn if none is named.
    pub fn dispatch_into(
        &self,
        buffer: &mut ElasticBuffer,
        tokens: u32,
        rows: Rows<'_>,
        slot: Option<u32>,
    ) -> Result<Dispatched> {
        match &self.topk_idx {
            Indices::I32(idx) => self.dispatch_as(buffer, tokens, rows, idx, slot),
            Indices::I64(idx) => self.dispatch_as(buffer, tokens, rows, idx, slot),
            Indices::U32(idx) => self.dispatch_as(buffer, tokens, rows, idx, slot),
        }
    }

    fn dispatch_as<I: Index>(
        &self,
        buffer: &mut ElasticBuffer,
        tokens: u32,
        rows: Rows<'_>,
        idx: &DeviceTensor<I>,
        slot: Option<u32>,
    ) -> Result<Dispatched> {
        let mut input = DispatchInput::new(tokens, rows, idx, &self.topk_weights);
        (input.routing_slot, input.keep_rows) = (slot, self.keep_rows);
        buffer.dispatch(&input)
    }

    /// The sums of `tokens` tokens. Waits for the stream.
    pub fn sums(&self, tokens: u32, hidden: u32) -> Result<Vec<bf16>> {
        let mut y = self.y.to_vec()?;
        y.truncate(tokens as usize * hidden as usize);
        Ok(y)
    }
}

/// Compares what a rank received with the reference.
pub fn check_received(
    world: &World,
    wires: &[Wire],
    want: &Arrivals,
    got: &Received,
) -> std::result::Result<(), String> {
    let (hidden, top_k) = (world.hidden as usize, world.top_k as usize);
    if got.counts.rows as usize != want.sources.len() {
        return Err(format!("{} rows, expected {}", got.counts.rows, want.sources.len()));
    }
    same("rows by source", &got.counts.by_source, &want.by_source, 1)?;
    same("selections by expert", &got.counts.by_expert, &want.by_expert, 1)?;
    if let Some(row) = got.sources.iter().zip(&want.sources).position(|(got, want)| got != want) {
        return Err(format!("row {row} is of {:?}, expected {:?}", got.sources[row], want.sources[row]));
    }
    same("local experts", &got.topk_idx, &want.topk_idx, top_k)?;
    same("gate weights", &got.topk_weights, &want.topk_weights, top_k)?;
    for (row, &(source, token)) in want.sources.iter().enumerate() {
        let place = |what: &str| format!("received row {row}, token {token} of rank {source}: {what}");
        let token = token as usize;
        match (&got.x, &wires[source as usize]) {
            (WireRows::Bf16(got), Wire::Bf16(want)) => {
                let (got, want) = (&got[row * hidden..][..hidden], &want[token * hidden..][..hidden]);
                same("elements", got, want, hidden).map_err(|e| place(&e))?;
            }
            (WireRows::Fp8 { codes, scales, scale_stride }, Wire::Fp8 { codes: want_codes, scales: want_scales }) => {
                let stride = super::reference::scale_stride(world.hidden) as usize;
                if *scale_stride as usize != stride {
                    return Err(format!("scale_stride {scale_stride}, expected {stride}"));
                }
                let (got, want) = (&codes[row * hidden..][..hidden], &want_codes[token * hidden..][..hidden]);
                same("codes", got, want, hidden).map_err(|e| place(&e))?;
                let (got, want) = (&scales[row * stride..][..stride], &want_scales[token * stride..][..stride]);
                same("scales", got, want, stride).map_err(|e| place(&e))?;
            }
            (
                WireRows::Fp8Packed { codes, scales, scale_stride, group },
                Wire::Packed { codes: want_codes, scales: want_scales, group: want_group },
            ) => {
                let stride = packed::scale_stride(world.hidden, *want_group);
                if (*scale_stride as usize, *group as usize) != (stride, *want_group) {
                    return Err(format!("scale_stride {scale_stride} of {group}, expected {stride} of {want_group}"));
                }
                let (got, want) = (&codes[row * hidden..][..hidden], &want_codes[token * hidden..][..hidden]);
                same("codes", got, want, hidden).map_err(|e| place(&e))?;
                let (got, want) = (&scales[row * stride..][..stride], &want_scales[token * stride..][..stride]);
                same("scales", got, want, stride).map_err(|e| place(&e))?;
            }
            (
                WireRows::Opaque { rows, scales, scale_stride },
                Wire::Opaque { rows: want, row_bytes, scales: of_rows },
            ) => {
                let WireFormat::Opaque { scale_words, .. } = world.format else {
                    return Err("no opaque rows were sent".to_owned());
                };
                let (bytes, stride) = (*row_bytes as usize, scale_words.div_ceil(4) as usize * 4);
                if *scale_stride as usize != stride {
                    return Err(format!("scale_stride {scale_stride}, expected {stride}"));
                }
                let (got, want) = (&rows[row * bytes..][..bytes], &want[token * bytes..][..bytes]);
                same("bytes", got, want, bytes).map_err(|e| place(&e))?;
                let (got, want) = (&scales[row * stride..][..stride], &of_rows[token * stride..][..stride]);
                same("scales", got, want, stride).map_err(|e| place(&e))?;
            }
            _ => return Err("the wire format is another one".to_owned()),
        }
    }
    Ok(())
}

/// What a rank's experts make of what it received.
pub fn expert_outputs(rank: u32, hidden: u32, received: &Received) -> Vec<bf16> {
    match &received.x {
        WireRows::Bf16(x) => x.iter().map(|x| expert(rank, *x)).collect(),
        WireRows::Fp8 { codes, scales, scale_stride } => {
            let mut outputs = vec![bf16::ZERO; codes.len()];
            let rows = codes.chunks_exact(hidden as usize).zip(scales.chunks_exact(*scale_stride as usize));
            for ((codes, scales), row) in rows.zip(outputs.chunks_exact_mut(hidden as usize)) {
                dequantize_row(codes, scales, row);
                row.iter_mut().for_each(|x| *x = expert(rank, *x));
            }
            outputs
        }
        WireRows::Fp8Packed { codes, scales, scale_stride, group } => {
            let mut outputs = vec![bf16::ZERO; codes.len()];
            let rows = codes.chunks_exact(hidden as usize).zip(scales.chunks_exact(*scale_stride as usize));
            for ((codes, scales), row) in rows.zip(outputs.chunks_exact_mut(hidden as usize)) {
                packed::dequantize_row(codes, scales, *group as usize, row);
                row.iter_mut().for_each(|x| *x = expert(rank, *x));
            }
            outputs
        }
        WireRows::Opaque { rows, .. } => {
            let received = received.counts.rows as usize;
            let mut outputs = vec![bf16::ZERO; received * hidden as usize];
            let row_bytes = (rows.len() / received.max(1)).max(1);
            for (bytes, row) in rows.chunks_exact(row_bytes).zip(outputs.chunks_exact_mut(hidden as usize)) {
                opaque_elements(bytes, row);
                row.iter_mut().for_each(|x| *x = expert(rank, *x));
            }
            outputs
        }
    }
}

/// Dispatches, runs the experts on the host, combines, and checks both ways. The tensors are filled; nothing is allocated on
/// the device. A complaint does not stop the rank: its peers go on with it.
pub fn check_round(
    comm: &Comm,
    buffer: &mut ElasticBuffer,
    tensors: &mut Tensors,
    world: &World,
    wires: &[Wire],
) -> Result<std::result::Result<(), String>> {
    let handle = tensors.dispatch(buffer, world.inputs[comm.rank() as usize].tokens)?;
    check_round_of(comm, buffer, &handle, tensors, world, wires)
}

/// [`check_round`] from a dispatch on.
pub fn check_round_of(
    comm: &Comm,
    buffer: &mut ElasticBuffer,
    handle: &Dispatched,
    tensors: &mut Tensors,
    world: &World,
    wires: &[Wire],
) -> Result<std::result::Result<(), String>> {
    let rank = comm.rank();
    let tokens = world.inputs[rank as usize].tokens;
    let received = buffer.received(handle)?;
    buffer.write_expert_outputs(handle, &expert_outputs(rank, world.hidden, &received))?;
    buffer.combine(handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
    buffer.synchronize()?;
    let y = tensors.sums(tokens, world.hidden)?;
    Ok(check_received(world, wires, &world.arrivals(rank), &received).and_then(|()| {
        let want = world.combined(rank, &wires[rank as usize]);
        same("combined rows", &y, &want, world.hidden as usize)
    }))
}
