//! The plain reference where rows lie by expert, and one dispatch and combine checked against it.
use std::collections::BTreeMap;

use epoxide::{
    CombineInput, Comm, DeviceTensor, Dispatched, ElasticBuffer, ExpertOutputs, Layout, Received, Result, WireRows,
    bf16,
};

use super::exchange::Tensors;
use super::packed;
use super::reference::{Wire, World, dequantize_row, opaque_elements, owned, round, same, scale_stride};

/// A row: whose, and for which of its selections; `None` where it pads.
pub type Slot = Option<(u32, u32, usize)>;

/// What pads the rows of an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Up to a multiple.
    Multiple(u32),
    /// What is left of a slab of so many rows.
    Slab(u32),
}

impl Padding {
    /// That of a layout by expert.
    pub fn of(layout: Layout) -> Self {
        match layout {
            Layout::ExpertContiguous { alignment } => Self::Multiple(alignment),
            Layout::Slab { capacity } => Self::Slab(capacity),
            other => unreachable!("{other:?} pads nothing"),
        }
    }
}

impl From<u32> for Padding {
    fn from(alignment: u32) -> Self {
        Self::Multiple(alignment)
    }
}

/// The world in which what does not fit into slabs of `capacity` rows was never selected, and how many selections of each expert that are.
pub fn dropped(world: &World, capacity: u32) -> (World, Vec<u32>) {
    let (mut kept, mut dropped) = (world.clone(), Vec::new());
    for expert in 0..world.experts {
        let mut selections = 0;
        for selection in kept.inputs.iter_mut().flat_map(|input| &mut input.topk_idx) {
            if *selection == i64::from(expert) {
                selections += 1;
                if selections > capacity {
                    *selection = -1;
                }
            }
        }
        dropped.push(selections.saturating_sub(capacity));
    }
    (kept, dropped)
}

/// What a rank receives: its rows, and where each of its experts' begin, and the end.
pub fn slots(world: &World, rank: u32, padding: impl Into<Padding>) -> (Vec<Slot>, Vec<u32>) {
    let padding = padding.into();
    let (mut slots, mut offsets) = (Vec::new(), vec![0]);
    for expert in owned(world.experts, world.ranks)[rank as usize].clone() {
        for source in 0..world.ranks {
            for token in 0..world.inputs[source as usize].tokens {
                let selections = world.selections(source, token);
                let position = selections.iter().position(|&selected| selected == i64::from(expert));
                slots.extend(position.map(|k| Some((source, token, k))));
            }
        }
        let end = match padding {
            Padding::Multiple(alignment) => slots.len().next_multiple_of(alignment as usize),
            Padding::Slab(capacity) => offsets.len() * capacity as usize,
        };
        assert!(slots.len() <= end, "an expert's rows fit");
        slots.resize(end, None);
        offsets.push(slots.len() as u32);
    }
    (slots, offsets)
}

/// What an expert makes of an element: something that no other expert makes of it, and whose sums depend on their order and on where
/// they are rounded.
pub fn expert(expert: u32, x: bf16) -> bf16 {
    let large = 4096.0 * (1.0 + (expert / 4 % 8) as f32 * 0.0625);
    let (factor, offset) = match expert % 4 {
        0 => (large, 0.0),
        2 => (-large, 0.0),
        _ => (0.5, (expert % 16 + 1) as f32 * 0.125),
    };
    bf16::from_f32(f32::from(x) * factor + offset)
}

/// The sums of `source`'s tokens when every expert makes [`expert`] of what `wire` brought it.
pub fn combined(world: &World, source: u32, wire: &Wire) -> Vec<bf16> {
    let (owners, hidden) = (world.owners(), world.hidden as usize);
    let mut y = Vec::new();
    let mut seen = vec![bf16::ZERO; hidden];
    for token in 0..world.inputs[source as usize].tokens {
        wire.dequantized(token, world.hidden, &mut seen);
        // By owner, in the order of their first selections.
        let (mut order, mut sums) = (Vec::new(), BTreeMap::new());
        for selected in world.selections(source, token).iter().filter_map(|&e| u32::try_from(e).ok()) {
            let owner = owners[selected as usize];
            let sum = sums.entry(owner).or_insert_with(|| {
                order.push(owner);
                vec![0.0f32; hidden]
            });
            sum.iter_mut().zip(&seen).for_each(|(sum, x)| *sum += f32::from(expert(selected, *x)));
        }
        let mut total = vec![0.0f32; hidden];
        for owner in order {
            total.iter_mut().zip(&sums[&owner]).for_each(|(total, sum)| *total += f32::from(round(*sum)));
        }
        y.extend(total.into_iter().map(round));
    }
    y
}

/// Compares what a rank received with the reference. Padding rows are zero if `zeroed`.
pub fn check_received(
    world: &World,
    wires: &[Wire],
    rank: u32,
    padding: impl Into<Padding>,
    zeroed: bool,
    got: &Received,
) -> std::result::Result<(), String> {
    let (slots, offsets) = slots(world, rank, padding);
    let mine = owned(world.experts, world.ranks)[rank as usize].clone();
    same("offsets", &got.counts.offsets, &offsets, 1)?;
    same("rows", &[got.counts.rows], &[slots.len() as u32], 1)?;
    let count = |of: &dyn Fn(&(u32, u32, usize)) -> bool| slots.iter().flatten().filter(|slot| of(slot)).count() as u32;
    let by_source: Vec<_> = (0..world.ranks).map(|rank| count(&|slot| slot.0 == rank)).collect();
    same("rows by source", &got.counts.by_source, &by_source, 1)?;
    let selected = |&(source, token, k): &(u32, u32, usize)| world.selections(source, token)[k] as u32;
    let by_expert: Vec<_> = mine.clone().map(|expert| count(&|slot| selected(slot) == expert)).collect();
    same("rows by expert", &got.counts.by_expert, &by_expert, 1)?;
    let experts: Vec<_> = slots.iter().map(|s| s.as_ref().map_or(-1, |s| (selected(s) - mine.start) as i32)).collect();
    same("experts", &got.topk_idx, &experts, 1)?;
    let weight = |&(source, token, k): &(u32, u32, usize)| {
        world.inputs[source as usize].topk_weights[token as usize * world.top_k as usize + k]
    };
    let weights: Vec<_> = slots.iter().map(|slot| slot.as_ref().map_or(0.0, weight)).collect();
    same("gate weights", &got.topk_weights, &weights, 1)?;
    for (row, slot) in slots.iter().enumerate() {
        let source = slot.map_or((u32::MAX, u32::MAX), |(source, token, _)| (source, token));
        if got.sources[row] != source {
            return Err(format!("row {row} is of {:?}, expected {source:?}", got.sources[row]));
        }
        let place = |what: String| format!("received row {row}, {slot:?}: {what}");
        check_row(world, wires, *slot, zeroed, row, got).map_err(place)?;
    }
    Ok(())
}

fn check_row(
    world: &World,
    wires: &[Wire],
    slot: Slot,
    zeroed: bool,
    row: usize,
    got: &Received,
) -> std::result::Result<(), String> {
    let (hidden, stride) = (world.hidden as usize, scale_stride(world.hidden) as usize);
    if slot.is_none() && !zeroed {
        return Ok(());
    }
    match &got.x {
        WireRows::Bf16(x) => {
            let want = match slot {
                Some((source, token, _)) => world.row(source, token).to_vec(),
                None => vec![bf16::ZERO; hidden],
            };
            same("elements", &x[row * hidden..][..hidden], &want, hidden)
        }
        WireRows::Fp8 { codes, scales, .. } => {
            let want = slot.map(|(source, token, _)| (&wires[source as usize], token as usize));
            let (want_codes, want_scales) = match want {
                Some((Wire::Fp8 { codes, scales }, token)) => {
                    (codes[token * hidden..][..hidden].to_vec(), scales[token * stride..][..stride].to_vec())
                }
                _ => (vec![0; hidden], vec![0.0; stride]),
            };
            same("codes", &codes[row * hidden..][..hidden], &want_codes, hidden)?;
            same("scales", &scales[row * stride..][..stride], &want_scales, stride)
        }
        WireRows::Fp8Packed { codes, scales, group, .. } => {
            let stride = packed::scale_stride(world.hidden, *group as usize);
            let want = slot.map(|(source, token, _)| (&wires[source as usize], token as usize));
            let (want_codes, want_scales) = match want {
                Some((Wire::Packed { codes, scales, .. }, token)) => {
                    (codes[token * hidden..][..hidden].to_vec(), scales[token * stride..][..stride].to_vec())
                }
                _ => (vec![0; hidden], vec![0; stride]),
            };
            same("codes", &codes[row * hidden..][..hidden], &want_codes, hidden)?;
            same("scales", &scales[row * stride..][..stride], &want_scales, stride)
        }
        WireRows::Opaque { rows, scales, .. } => {
            let (bytes, stride) = (world.wire_row_bytes() as usize, world.scale_words().div_ceil(4) as usize * 4);
            let want = slot.map(|(source, token, _)| (&wires[source as usize], token as usize));
            let (want_rows, want_scales) = match want {
                Some((Wire::Opaque { rows, scales, .. }, token)) => {
                    (rows[token * bytes..][..bytes].to_vec(), scales[token * stride..][..stride].to_vec())
                }
                _ => (vec![0; bytes], vec![0; stride]),
            };
            same("bytes", &rows[row * bytes..][..bytes], &want_rows, bytes)?;
            same("scales", &scales[row * stride..][..stride], &want_scales, stride)
        }
    }
}

/// What `rank`'s experts write for each row that it receives, known before anything runs; nonsense where a row pads.
pub fn predicted_outputs(world: &World, rank: u32, wires: &[Wire], padding: impl Into<Padding>) -> Vec<bf16> {
    let hidden = world.hidden as usize;
    let (slots, _) = slots(world, rank, padding);
    let mut outputs = vec![bf16::from_bits(0x7fff); slots.len() * hidden];
    for (slot, output) in slots.iter().zip(outputs.chunks_exact_mut(hidden)) {
        if let Some((source, token, k)) = *slot {
            let selected = world.selections(source, token)[k] as u32;
            wires[source as usize].dequantized(token, world.hidden, output);
            output.iter_mut().for_each(|x| *x = expert(selected, *x));
        }
    }
    outputs
}

/// What a rank's experts make of what it received; nonsense where a row pads.
pub fn expert_outputs(world: &World, rank: u32, received: &Received) -> Vec<bf16> {
    let first = owned(world.experts, world.ranks)[rank as usize].start;
    let hidden = world.hidden as usize;
    let mut outputs = vec![bf16::from_bits(0x7fff); received.sources.len() * hidden];
    for (row, output) in outputs.chunks_exact_mut(hidden).enumerate() {
        let local = received.topk_idx[row];
        if local < 0 {
            continue;
        }
        match &received.x {
            WireRows::Bf16(x) => output.copy_from_slice(&x[row * hidden..][..hidden]),
            WireRows::Fp8 { codes, scales, scale_stride } => {
                let stride = *scale_stride as usize;
                dequantize_row(&codes[row * hidden..][..hidden], &scales[row * stride..][..stride], output);
            }
            WireRows::Fp8Packed { codes, scales, scale_stride, group } => {
                let stride = *scale_stride as usize;
                let scales = &scales[row * stride..][..stride];
                packed::dequantize_row(&codes[row * hidden..][..hidden], scales, *group as usize, output);
            }
            WireRows::Opaque { rows, .. } => {
                let bytes = world.wire_row_bytes() as usize;
                opaque_elements(&rows[row * bytes..][..bytes], output);
            }
        }
        output.iter_mut().for_each(|x| *x = expert(first + local as u32, *x));
    }
    outputs
}

/// Dispatches, runs the experts on the host, combines, and checks both ways.
pub fn check_round(
    comm: &Comm,
    buffer: &mut ElasticBuffer,
    tensors: &mut Tensors,
    world: &World,
    wires: &[Wire],
    padding: impl Into<Padding>,
) -> Result<std::result::Result<(), String>> {
    let tokens = world.inputs[comm.rank() as usize].tokens;
    let handle = tensors.dispatch(buffer, tokens)?;
    check_round_of(comm, buffer, &handle, &mut tensors.y, world, wires, padding)
}

/// [`check_round`] from a handle on, whose rows are combined to `y`.
pub fn check_round_of(
    comm: &Comm,
    buffer: &mut ElasticBuffer,
    handle: &Dispatched,
    y: &mut DeviceTensor<bf16>,
    world: &World,
    wires: &[Wire],
    padding: impl Into<Padding>,
) -> Result<std::result::Result<(), String>> {
    let rank = comm.rank();
    let received = buffer.received(handle)?;
    buffer.write_expert_outputs(handle, &expert_outputs(world, rank, &received))?;
    buffer.combine(handle, CombineInput::new(ExpertOutputs::InPlace, &mut *y))?;
    buffer.synchronize()?;
    let mut y = y.to_vec()?;
    y.truncate(world.inputs[rank as usize].tokens as usize * world.hidden as usize);
    let zeroed = buffer.config().zero_padding;
    Ok(check_received(world, wires, rank, padding, zeroed, &received).and_then(|()| {
        let want = combined(world, rank, &wires[rank as usize]);
        same("combined rows", &y, &want, world.hidden as usize)
    }))
}
