//! One MoE layer of a prefill: what to copy from.
//!
//! Rows travel in FP8 and lie by expert, each expert's from a multiple of the alignment on, with zeros between: what a grouped GEMM reads.
//! On a GPU it takes its pointers from `ElasticBuffer::recv_arrays` (rows, scales, `offsets`, and where its outputs go), and the host sees
//! nothing; here [`grouped_gemm`] stands for it, in plain code.
use epoxide::quantize::{Quantizer, scale_stride};
use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, ExpertOutputs, Layout, Received, Result, Rows,
    WireFormat, bf16,
};

use crate::by_hand::{EXPERTS, HIDDEN, TOP_K};
use crate::{Prompt, Quantised, expert};

/// Runs the layer for a rank's tokens, BF16 `[tokens, hidden]`.
///
/// # Errors
///
/// What the library returns.
pub fn run(comm: &Comm, prompt: &Prompt) -> Result<Vec<bf16>> {
    let tokens = prompt.all.tokens;
    let config = Config::new(EXPERTS, TOP_K, HIDDEN, tokens).with_format(WireFormat::Fp8).with_zero_padding();
    let layout = Layout::ExpertContiguous { alignment: prompt.alignment };
    let mut buffer = ElasticBuffer::new(comm, config.with_layout(layout))?;
    let (topk_idx, topk_weights) = prompt.all.routing(comm.rank());
    let (topk_idx, topk_weights) = (comm.tensor(&topk_idx)?, comm.tensor(&topk_weights)?);
    let x = comm.tensor(&prompt.all.rows(comm.rank()))?;
    let mut y = comm.empty::<bf16>(x.len())?;
    // An engine's own kernels would quantise where they make the rows: any stride between the scales will do.
    let stride = scale_stride(HIDDEN);
    let (mut codes, mut scales) = (comm.empty::<u8>(x.len())?, comm.empty::<f32>((tokens * stride).into())?);
    let rows = match prompt.quantised {
        Quantised::Inside => Rows::from(&x),
        Quantised::Before => {
            Quantizer::new(comm)?.quantize(&x, tokens.into(), HIDDEN, &mut codes, &mut scales)?;
            Rows::fp8(&codes, &scales, stride)
        }
    };
    let handle = buffer.dispatch(&DispatchInput::new(tokens, rows, &topk_idx, &topk_weights))?;
    let received = buffer.received(&handle)?;
    let outputs = grouped_gemm(buffer.local_experts().0, &received)?;
    buffer.write_expert_outputs(&handle, &outputs)?;
    buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    buffer.synchronize()?;
    buffer.close()?;
    y.to_vec()
}

/// Multiplies every expert's rows with its matrix, and with the rows' gate weights, which are the experts' side to apply.
fn grouped_gemm(first: u32, received: &Received) -> Result<Vec<bf16>> {
    let mut y = Vec::new();
    let rows = received.x.to_f32(HIDDEN)?;
    for (number, rows_of) in (first..).zip(received.counts.offsets.windows(2)) {
        for row in rows_of[0] as usize..rows_of[1] as usize {
            let (x, weight) = (&rows[row * HIDDEN as usize..], received.topk_weights[row]);
            y.extend((0..HIDDEN).map(|column| expert(number, weight, column, |column| x[column as usize])));
        }
    }
    Ok(y)
}
