//! Runs a cell: every rank dispatches, hands over expert outputs in the cell's way, and combines, and all of it is compared with the
//! references.
use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Comm, DeviceTensor, Dispatched, ElasticBuffer, ExpertOutputs, Received, Result, Rows, bf16,
};

use super::dimensions::{Cell, Form, Lie, Outputs};
use super::support::brought::{self, Brought};
use super::support::exchange::Tensors;
use super::support::reference::{World, same};
use super::support::{Checked, Device, by_expert, exchange};
use super::worlds::{self, Step};

/// Runs a cell on a group of its own.
pub fn check(cell: &Cell, device: Device) -> Checked {
    let steps = worlds::steps(cell);
    device.check(cell.ranks, worlds::mode(cell), |comm| rank(cell, &steps, &comm))
}

/// What a rank has of a step before it begins: nothing is allocated on the way.
struct Mine {
    tensors: Tensors,
    brought: Brought,
    /// What its experts will write.
    outputs: DeviceTensor<bf16>,
}

fn rank(cell: &Cell, steps: &[Step], comm: &Comm) -> Result<Checked> {
    let rank = comm.rank();
    let mut buffer = ElasticBuffer::new(comm, worlds::config(cell))?;
    let copier = Quantizer::new(comm)?;
    let mine = steps.iter().map(|step| mine(cell, step, comm)).collect::<Result<Vec<_>>>()?;
    comm.barrier()?;
    let mut handles: Vec<Dispatched> = Vec::new();
    let mut checked = Ok(());
    for (number, (step, mut mine)) in steps.iter().zip(mine).enumerate() {
        if cell.outputs == Outputs::Lent {
            buffer.lend_expert_outputs()?;
            buffer.stage_lent_expert_outputs(&mine.outputs)?;
        }
        let rows = rows(cell, number as u32, rank, &mine)?;
        let tokens = step.world.inputs[rank as usize].tokens;
        let handle = match step.of {
            None => mine.tensors.dispatch_rows(&mut buffer, tokens, rows)?,
            Some(of) => buffer.dispatch_again(&handles[of], rows)?,
        };
        let received = combine(cell, &step.world, &mut buffer, &copier, &handle, &mut mine)?;
        buffer.synchronize()?;
        let y = mine.tensors.sums(tokens, step.world.hidden)?;
        let arrived = received.map_or(Ok(()), |received| arrived(cell, step, rank, &received));
        let right =
            arrived.and_then(|()| same("combined rows", &y, &sums(cell, step, rank), step.world.hidden as usize));
        checked = checked.and(right.map_err(|why| format!("step {number}: {why}")));
        handles.push(handle);
    }
    buffer.close()?;
    Ok(checked)
}

fn mine(cell: &Cell, step: &Step, comm: &Comm) -> Result<Mine> {
    let (rank, world) = (comm.rank(), &step.world);
    let tokens = world.inputs[rank as usize].tokens;
    let mut tensors = Tensors::empty(comm, tokens, world.hidden, world.top_k, worlds::index(cell))?;
    tensors.fill(world, rank)?;
    let gap = (cell.data % 3) as u32;
    let lie = brought::Lie { gap, before: gap * 2 };
    let brought = Brought::new(comm, &step.wires[rank as usize], world.scale_words(), lie)?;
    let outputs = comm.tensor(&match cell.layout {
        Lie::Compact => world.expert_outputs(rank, &step.wires),
        Lie::ByExpert => by_expert::predicted_outputs(world, rank, &step.wires, cell.alignment),
    })?;
    Ok(Mine { tensors, brought, outputs })
}

/// The rows that a rank dispatches in a step.
fn rows<'a>(cell: &Cell, step: u32, rank: u32, mine: &'a Mine) -> Result<Rows<'a>> {
    match cell.rows {
        Form::Bf16 | Form::Fp8Inside => Ok((&mine.tensors.x).into()),
        Form::Fp8Both if (rank + step).is_multiple_of(2) => Ok((&mine.tensors.x).into()),
        Form::Fp8Brought | Form::Fp8Both | Form::Opaque => mine.brought.rows(),
    }
}

/// Enqueues the combine of a dispatch, with the outputs as the cell hands them over; what was received, if the host looked.
fn combine(
    cell: &Cell,
    world: &World,
    buffer: &mut ElasticBuffer,
    copier: &Quantizer,
    handle: &Dispatched,
    mine: &mut Mine,
) -> Result<Option<Received>> {
    let looks = !matches!(cell.outputs, Outputs::Tensor | Outputs::Lent);
    let received = looks.then(|| buffer.received(handle)).transpose()?;
    let from = match cell.outputs {
        Outputs::Host => {
            let (rank, received) = (buffer.comm().rank(), received.as_ref());
            let outputs = received.map(|received| match cell.layout {
                Lie::Compact => exchange::expert_outputs(rank, world.hidden, received),
                Lie::ByExpert => by_expert::expert_outputs(world, rank, received),
            });
            buffer.write_expert_outputs(handle, &outputs.unwrap_or_default())?;
            ExpertOutputs::InPlace
        }
        Outputs::Staged => {
            buffer.stage_expert_outputs(handle, &mine.outputs)?;
            ExpertOutputs::InPlace
        }
        Outputs::Kernel => {
            let to = buffer.recv_arrays(handle)?.expert_outputs.address();
            // SAFETY: as many rows as this dispatch brings, from a tensor to the region that it has lent: behind the dispatch on this rank's
            // stream and before the combine, nobody else touches either.
            unsafe { copier.copy_raw(mine.outputs.address(), to, 2 * mine.outputs.len())? };
            ExpertOutputs::InPlace
        }
        Outputs::Tensor => (&mine.outputs).into(),
        Outputs::Lent => ExpertOutputs::InPlace,
    };
    buffer.combine(handle, CombineInput::new(from, &mut mine.tensors.y))?;
    Ok(received)
}

/// Compares what a rank received.
fn arrived(cell: &Cell, step: &Step, rank: u32, received: &Received) -> Checked {
    let (world, wires) = (&step.world, &step.wires);
    match cell.layout {
        Lie::Compact => exchange::check_received(world, wires, &world.arrivals(rank), received),
        Lie::ByExpert => by_expert::check_received(world, wires, rank, cell.alignment, cell.padding, received),
    }
}

/// The sums of a rank's tokens.
fn sums(cell: &Cell, step: &Step, rank: u32) -> Vec<bf16> {
    let wire = &step.wires[rank as usize];
    match cell.layout {
        Lie::Compact => step.world.combined(rank, wire),
        Lie::ByExpert => by_expert::combined(&step.world, rank, wire),
    }
}
