//! One MoE layer of a training step, forward and backward: what to copy from.
//!
//! The backward pass of a dispatch is a combine, and that of a combine a dispatch by the same routing, `dispatch_again`: the gradient of
//! every token's sum comes to each row that was summed, in the row's place. The rows of the forward pass stay in a row slot of their own meanwhile. The
//! gradients of gate weights, which experts' ranks have, go back to the tokens with those of the rows. Experts
//! that run on the GPU do the same with `ElasticBuffer::recv_arrays` and kernels of their own.
use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, ExpertOutputs, Layout, Received, Result, bf16,
};

use crate::backward::{Outcome, parameter};
use crate::by_hand::{EXPERTS, HIDDEN, TOP_K, Tokens};

/// The local expert of a row and its gate weight; none where it pads.
fn selection(received: &Received, row: usize) -> Option<(u32, f32)> {
    u32::try_from(received.topk_idx[row]).ok().map(|local| (local, received.topk_weights[row]))
}

/// Runs the layer for a rank's tokens: expert `e` makes `gate * parameter_e * x` of a row, element by element.
///
/// # Errors
///
/// What the library returns.
pub fn run(comm: &Comm, all: &Tokens) -> Result<Outcome> {
    let config = Config::new(EXPERTS, TOP_K, HIDDEN, all.tokens);
    let config =
        config.with_layout(Layout::ExpertContiguous { alignment: 8 }).with_row_slots(2).with_returned_weights();
    let mut buffer = ElasticBuffer::new(comm, config)?;
    let (first, experts) = buffer.local_experts();
    let (topk_idx, topk_weights) = all.routing(comm.rank());
    let (topk_idx, topk_weights) = (comm.tensor(&topk_idx)?, comm.tensor(&topk_weights)?);
    let x = comm.tensor(&all.rows(comm.rank()))?;
    let dy = comm.tensor(&all.d_outputs(comm.rank()))?;
    let (mut y, mut dx) = (comm.empty::<bf16>(x.len())?, comm.empty::<bf16>(x.len())?);
    let mut d_gates = comm.empty::<f32>(topk_weights.len())?;

    // Forward. The received rows are kept: the gradients of the parameters need them.
    let input = DispatchInput::new(all.tokens, &x, &topk_idx, &topk_weights);
    let handle = buffer.dispatch(&input.keeping_rows())?;
    let received = buffer.received(&handle)?;
    let (rows, hidden) = (received.x.to_f32(HIDDEN)?, HIDDEN as usize);
    let mut outputs = vec![bf16::ZERO; rows.len()];
    for (at, (output, x)) in outputs.iter_mut().zip(&rows).enumerate() {
        if let Some((expert, gate)) = selection(&received, at / hidden) {
            *output = bf16::from_f32(gate * (parameter(first + expert, (at % hidden) as u32) * x));
        }
    }
    buffer.write_expert_outputs(&handle, &outputs)?;
    buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;

    // Backward: the gradients of the sums go where the rows went, in the other slot.
    let again = buffer.dispatch_again(&handle, &dy)?;
    let (saved, gradients) = (buffer.received(&handle)?, buffer.received(&again)?.x.to_f32(HIDDEN)?);
    let rows = saved.x.to_f32(HIDDEN)?;
    let mut d_parameters = vec![0.0; (experts * HIDDEN) as usize];
    let mut d_weights = vec![0.0; saved.sources.len()];
    let mut d_rows = vec![bf16::ZERO; rows.len()];
    for (at, (x, d)) in rows.iter().zip(&gradients).enumerate() {
        if let Some((expert, gate)) = selection(&saved, at / hidden) {
            let parameter = parameter(first + expert, (at % hidden) as u32);
            d_parameters[expert as usize * hidden + at % hidden] += gate * d * x;
            d_weights[at / hidden] += d * (parameter * x);
            d_rows[at] = bf16::from_f32(gate * (parameter * d));
        }
    }
    buffer.write_expert_outputs(&again, &d_rows)?;
    let d_weights = comm.tensor(&d_weights)?;
    let input = CombineInput::new(ExpertOutputs::InPlace, &mut dx).with_returned_weights(&d_weights, &mut d_gates);
    buffer.combine(&again, input)?;
    buffer.release(&handle)?;
    buffer.synchronize()?;
    buffer.close()?;
    Ok(Outcome { y: y.to_vec()?, dx: dx.to_vec()?, d_parameters, d_gates: d_gates.to_vec()? })
}
