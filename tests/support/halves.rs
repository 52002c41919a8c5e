//! A dispatch and a combine by halves, beside the whole ones of [`super::exchange`].
use epoxide::{Comm, DeviceTensor, DispatchInput, DispatchTicket, ElasticBuffer, ExpertOutputs, Index, Result, Rows};

use super::Checked;
use super::exchange::{Indices, Tensors, check_received, expert_outputs};
use super::reference::{Wire, World, same};

/// Enqueues the send half of a dispatch.
pub fn send(buffer: &mut ElasticBuffer, tensors: &Tensors, tokens: u32, rows: Rows<'_>) -> Result<DispatchTicket> {
    fn of<I: Index>(
        buffer: &mut ElasticBuffer,
        tensors: &Tensors,
        (tokens, rows): (u32, Rows<'_>),
        idx: &DeviceTensor<I>,
    ) -> Result<DispatchTicket> {
        buffer.dispatch_send(&DispatchInput::new(tokens, rows, idx, &tensors.topk_weights))
    }
    match &tensors.topk_idx {
        Indices::I32(idx) => of(buffer, tensors, (tokens, rows), idx),
        Indices::I64(idx) => of(buffer, tensors, (tokens, rows), idx),
        Indices::U32(idx) => of(buffer, tensors, (tokens, rows), idx),
    }
}

/// The three halves behind the first, with the experts on the host; checks both ways.
pub fn check_rest(
    comm: &Comm,
    buffer: &mut ElasticBuffer,
    ticket: DispatchTicket,
    tensors: &mut Tensors,
    world: &World,
    wires: &[Wire],
) -> Result<Checked> {
    let (rank, hidden) = (comm.rank(), world.hidden);
    let handle = buffer.dispatch_receive(ticket)?;
    let received = buffer.received(&handle)?;
    buffer.write_expert_outputs(&handle, &expert_outputs(rank, hidden, &received))?;
    let sent = buffer.combine_send(&handle, ExpertOutputs::InPlace)?;
    buffer.combine_receive(sent, &mut tensors.y)?;
    let y = tensors.sums(world.inputs[rank as usize].tokens, hidden)?;
    let came = check_received(world, wires, &world.arrivals(rank), &received);
    Ok(came.and(same("combined rows", &y, &world.combined(rank, &wires[rank as usize]), hidden as usize)))
}
