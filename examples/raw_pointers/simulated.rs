//! The round on the simulated GPU: with addresses of Epoxide's tensors, and a copy as the experts.
use anyhow::Result;
use epoxide::quantize::Quantizer;
use epoxide::{Comm, LocalGroup, Mode, bf16};

use crate::problem::{HIDDEN, Problem};
use crate::round::{self, Addresses, Outcome};

/// Runs all ranks.
///
/// # Errors
///
/// What the library returns.
pub fn run(problem: &Problem) -> Result<Vec<Outcome>> {
    let group = LocalGroup::simulated(problem.ranks, Mode::Fast { workers: 0 })?;
    crate::first_failure(group.try_run(|comm| rank(problem, &comm)))
}

fn rank(problem: &Problem, comm: &Comm) -> Result<Outcome> {
    let x = comm.tensor(&problem.rows(comm.rank()))?;
    let topk_idx = comm.tensor(&problem.topk_idx(comm.rank()))?;
    let topk_weights = comm.tensor(&problem.topk_weights(comm.rank()))?;
    let y = comm.empty::<bf16>(x.len())?;
    let at = Addresses {
        x: x.address(),
        topk_idx: topk_idx.address(),
        topk_weights: topk_weights.address(),
        y: y.address(),
    };
    let quantizer = Quantizer::new(comm)?;
    // SAFETY: the tensors live until the end of this function; the copy is on the rank's stream, from the received rows to the place of
    // their outputs.
    unsafe {
        round::run(comm, problem.tokens, &at, |buffer, handle| {
            let rows = buffer.recv_counts(handle)?.rows;
            let view = buffer.recv_view(handle)?;
            let bytes = u64::from(rows) * u64::from(HIDDEN) * size_of::<bf16>() as u64;
            Ok(quantizer.copy_raw(view.x, view.expert_outputs, bytes)?)
        })?;
    }
    Ok(Outcome { device: comm.device(), y: y.to_vec()? })
}
