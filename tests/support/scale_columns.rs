//! The scales of received rows by column: those by row, bit for bit, and nothing else written.
use epoxide::quantize::Quantizer;
use epoxide::{
    Comm, DType, DeviceTensor, Dispatched, ElasticBuffer, Layout, Received, RecvArrays, Result, WireFormat, WireRows,
};

use super::Checked;
use super::reference::same;

/// The words of a view of scales by column, in memory's order, once its shape is what the layout says.
fn columns(comm: &Comm, buffer: &ElasticBuffer, handle: &Dispatched, words: u64) -> Result<(Vec<u32>, usize, Checked)> {
    let (arrays, view): (RecvArrays<'_>, _) = (buffer.recv_arrays(handle)?, buffer.recv_view(handle)?);
    let scales = arrays.scales.expect("the format has scales");
    let (shape, strides): (Vec<u64>, Vec<u64>) = match buffer.config().layout {
        Layout::Slab { capacity } => {
            let (experts, rows) = (u64::from(buffer.local_experts().1), u64::from(capacity));
            let stride = rows.next_multiple_of(4);
            (vec![experts, rows, words], vec![words * stride, 1, stride])
        }
        _ => (vec![view.max_rows, words], vec![1, view.max_rows.next_multiple_of(4)]),
    };
    let dtype = if buffer.config().format == WireFormat::Fp8 { DType::F32 } else { DType::U32 };
    let stride = strides[strides.len() - 1];
    let is = (scales.shape(), scales.strides(), scales.dtype(), scales.address(), view.scale_column_stride);
    let right = if is == (&shape[..], &strides[..], dtype, view.scale_columns, stride) && scales.address() % 16 == 0 {
        Ok(())
    } else {
        Err(format!("the array is {scales:?}, expected {shape:?} by {strides:?}"))
    };
    let all = if shape.len() == 3 { shape[0] * strides[0] } else { words * stride };
    let to: DeviceTensor<u32> = comm.empty(all)?;
    // SAFETY: a region of the buffer's, of so many words, which nobody writes before its next dispatch.
    unsafe { Quantizer::new(comm)?.copy_raw(scales.address(), to.address(), all * 4)? };
    Ok((to.to_vec()?, stride as usize, right))
}

/// Compares a dispatch's scales by column with those by row, which were `received`, and so are there. Where nothing lay there before, what no row has
/// must be zero. They are copied on the stream of `comm`, which this waits for.
pub fn check(
    comm: &Comm,
    buffer: &ElasticBuffer,
    handle: &Dispatched,
    received: &Received,
    fresh: bool,
) -> Result<Checked> {
    let (by_row, row_stride): (Vec<u32>, usize) = match &received.x {
        WireRows::Fp8 { scales, scale_stride, .. } => {
            (scales.iter().map(|scale| scale.to_bits()).collect(), *scale_stride as usize)
        }
        WireRows::Fp8Packed { scales, scale_stride, .. } | WireRows::Opaque { scales, scale_stride, .. } => {
            (scales.clone(), *scale_stride as usize)
        }
        WireRows::Bf16(_) => return Ok(Err("BF16 has no scales".to_owned())),
    };
    let config = buffer.config();
    let words = config.format.scale_words(config.hidden) as usize;
    let (got, stride, right) = columns(comm, buffer, handle, words as u64)?;
    let (layout, zeroed) = (config.layout, config.zero_padding);
    let rows_of_matrix = match layout {
        Layout::Slab { capacity } => capacity as usize,
        _ => stride,
    };
    Ok(right.and_then(|()| {
        let mut want = if fresh { vec![0; got.len()] } else { got.clone() };
        for row in 0..received.counts.rows as usize {
            let pads = received.sources[row] == (u32::MAX, u32::MAX);
            if pads && !zeroed {
                continue;
            }
            let (matrix, at) = (row / rows_of_matrix, row % rows_of_matrix);
            for word in 0..words {
                let of_row = if pads { 0 } else { by_row[row * row_stride + word] };
                want[(matrix * words + word) * stride + at] = of_row;
            }
        }
        same("scales by column", &got, &want, stride)
    }))
}
