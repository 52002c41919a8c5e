//! The typed arrays of a dispatch are where its rows are, in the shape that they say.
use crate::support;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Comm, DType, DeviceTensor, ElasticBuffer, Element, ExpertOutputs, Layout, Received, RecvArrays,
    Result, View, WireRows, bf16,
};
use support::exchange::Tensors;
use support::routing::{Bounds, Case};
use support::{Checked, Device, replay};

/// A copy of the first `rows` rows of an array, without what lies between them, as a tensor made over it would read.
fn copied<T: Element>(comm: &Comm, quantizer: &Quantizer, view: View<'_>, rows: u64) -> Result<Vec<T>> {
    assert_eq!(view.dtype().bytes(), size_of::<T>() as u64, "{}", view.dtype());
    let view = view.rows(..rows)?;
    let (columns, stride) = match (view.shape(), view.strides()) {
        (&[_, columns], &[stride, 1]) => (columns as usize, stride as usize),
        (&[_], &[1]) => (1, 1),
        other => panic!("{other:?}"),
    };
    assert_eq!(view.is_contiguous(), columns == stride || view.shape()[0] <= 1);
    // The copy is of whole vectors of 16 bytes, from one on.
    let before = view.address() % 16;
    let bytes = (before + rows * stride as u64 * size_of::<T>() as u64).next_multiple_of(16);
    let to: DeviceTensor<T> = comm.empty(bytes / size_of::<T>() as u64)?;
    // SAFETY: regions of the buffer are multiples of 16 bytes long; nothing writes this one before the combine.
    unsafe { quantizer.copy_raw(view.address() - before, to.address(), bytes)? };
    let all = to.to_vec()?;
    let all = &all[before as usize / size_of::<T>()..];
    Ok((0..rows as usize).flat_map(|row| all[row * stride..row * stride + columns].iter().copied()).collect())
}

fn check(comm: &Comm, case: &Case, by_expert: Option<u32>) -> Result<Checked> {
    let config = case.config();
    let config =
        by_expert.map_or(config.clone(), |alignment| config.with_layout(Layout::ExpertContiguous { alignment }));
    let tokens = case.tokens[comm.rank() as usize];
    let quantizer = Quantizer::new(comm)?;
    let mut buffer = ElasticBuffer::new(comm, config)?;
    let mut tensors = Tensors::empty(comm, tokens, case.hidden, case.top_k, case.index)?;
    tensors.fill(&case.world(), comm.rank())?;
    comm.barrier()?;
    let handle = tensors.dispatch(&mut buffer, tokens)?;
    let received = buffer.received(&handle)?;
    let right =
        compare(comm, &quantizer, buffer.recv_view(&handle)?.expert_outputs, &buffer.recv_arrays(&handle)?, &received)?;
    buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut tensors.y))?;
    buffer.synchronize()?;
    buffer.close()?;
    Ok(right)
}

fn compare(
    comm: &Comm,
    quantizer: &Quantizer,
    outputs: u64,
    arrays: &RecvArrays<'_>,
    received: &Received,
) -> Result<Checked> {
    let (counts, rows) = (&received.counts, u64::from(received.counts.rows));
    let mut wrong = Vec::new();
    let mut check = |what: &'static str, right: bool| {
        if !right {
            wrong.push(what);
        }
    };
    match &received.x {
        WireRows::Bf16(x) => {
            check(
                "rows",
                copied::<bf16>(comm, quantizer, arrays.x, rows)?
                    .iter()
                    .map(|x| x.to_bits())
                    .eq(x.iter().map(|x| x.to_bits())),
            );
            check("no scales", arrays.scales.is_none() && arrays.x.dtype() == DType::Bf16);
        }
        WireRows::Fp8 { codes, scales, scale_stride } => {
            check("codes", arrays.x.dtype() == DType::E4m3 && copied::<u8>(comm, quantizer, arrays.x, rows)? == *codes);
            let array = arrays.scales.expect("FP8 has scales");
            let columns = array.shape()[1] as usize;
            let want: Vec<f32> =
                scales.chunks(*scale_stride as usize).flat_map(|row| row[..columns].to_vec()).collect();
            check("scales", copied::<f32>(comm, quantizer, array, rows)? == want);
        }
        WireRows::Fp8Packed { .. } | WireRows::Opaque { .. } => check("these cases have no such rows", false),
    }
    check("selections", copied::<i32>(comm, quantizer, arrays.topk_idx, rows)? == received.topk_idx);
    check("weights", copied::<f32>(comm, quantizer, arrays.topk_weights, rows)? == received.topk_weights);
    let sources = copied::<u64>(comm, quantizer, arrays.sources, rows)?;
    let sources = sources.iter().map(|word| ((word >> 32) as u32, *word as u32));
    check("sources", sources.eq(received.sources.iter().copied()));
    let mut words = |view: View<'_>| copied::<u32>(comm, quantizer, view, view.elements());
    check("row count", words(arrays.row_count)? == [counts.rows]);
    check("counts by source", words(arrays.counts_by_source)? == counts.by_source);
    check("counts by expert", words(arrays.counts_by_expert)? == counts.by_expert);
    let offsets = arrays.offsets.map(&mut words).transpose()?;
    check("offsets", offsets.unwrap_or_default() == counts.offsets);
    let view = arrays.expert_outputs;
    check("expert outputs", view.shape() == arrays.x.shape() && view.dtype() == DType::Bf16 && view.is_contiguous());
    check("their place", view.address() == outputs);
    Ok(if wrong.is_empty() { Ok(()) } else { Err(format!("not as received: {}", wrong.join(", "))) })
}

#[test]
fn typed_arrays_are_what_was_received() {
    let device = Device::from_env();
    let bounds = Bounds { ranks: 1..=4, experts: 1..=24, top_k: 8, hidden: 640, tokens: 20 };
    let cases = (bounds.cases(device), proptest::option::of(1..=16u32));
    replay::law(module_path!(), "typed_arrays_are_what_was_received", 24, cases, |(case, by_expert)| {
        device.check(case.ranks, case.mode, |comm| check(&comm, &case, by_expert))
    });
}
