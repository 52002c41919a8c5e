//! The loop of an engine: what to copy from.
//!
//! Every layer is three launches on the rank's stream: a dispatch, the experts, which are a kernel of another crate's, and a combine, whose
//! sums the next layer dispatches. Rows lie by expert, each with one expert and one gate weight, as a grouped GEMM reads them. The experts
//! read the received rows and write their outputs in place, and how many rows there are they read on the device: the host enqueues all
//! layers and waits once.
use anyhow::Result;
use custom_kernel_device::gated_experts::{GatedExpertsArgs, gated_experts};
use epoxide::kernels::{Family, Global};
use epoxide::{CombineInput, Comm, Config, DispatchInput, Dispatched, ElasticBuffer, ExpertOutputs, Layout, bf16};

use crate::model::{EXPERTS, HIDDEN, Model, TOP_K, factor};

/// The other crate's kernels. It commits its PTX, so no toolchain is needed here; with cargo it is a dependency like any other.
const KERNELS: &[Family] = &[Family::new(
    "custom-kernel",
    &["cross_entropy", "gated_experts", "rms_norm"],
    include_str!("../custom-kernel/kernels/ptx/kernels_sm_90.ptx"),
)];
/// Blocks of the experts' kernel; any number will do.
const GRID: u32 = 32;

/// Runs all layers for a rank's tokens; what the last one makes of them, BF16 `[tokens, hidden]`.
///
/// # Errors
///
/// What the library returns.
pub fn run(comm: &Comm, model: &Model) -> Result<Vec<bf16>> {
    comm.load(KERNELS)?;
    let config = Config::new(EXPERTS, TOP_K, HIDDEN, model.tokens);
    let mut buffer = ElasticBuffer::new(comm, config.with_layout(Layout::ExpertContiguous { alignment: 16 }))?;
    let (first, experts) = buffer.local_experts();
    let factors = comm.tensor(&(first..first + experts).map(factor).collect::<Vec<_>>())?;
    let mut x = comm.tensor(&model.rows(comm.rank()))?;
    let mut y = comm.empty::<bf16>(x.len())?;
    let routings = (0..model.layers).map(|layer| {
        let (topk_idx, topk_weights) = model.routing(comm.rank(), layer);
        Ok((comm.tensor(&topk_idx)?, comm.tensor(&topk_weights)?))
    });
    for (topk_idx, topk_weights) in &routings.collect::<Result<Vec<_>>>()? {
        let handle = buffer.dispatch(&DispatchInput::new(model.tokens, &x, topk_idx, topk_weights))?;
        // SAFETY: a factor for each local expert, in a tensor that outlives the kernel.
        unsafe { enqueue_experts(&buffer, &handle, Global::from_raw(factors.address()))? };
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
        std::mem::swap(&mut x, &mut y);
    }
    buffer.synchronize()?;
    buffer.close()?;
    Ok(x.to_vec()?)
}

/// Enqueues the experts between a dispatch and its combine.
///
/// # Safety
///
/// There is a factor for each local expert until the stream has passed this.
unsafe fn enqueue_experts(buffer: &ElasticBuffer, handle: &Dispatched, factors: Global<f32>) -> epoxide::Result<()> {
    let arrays = buffer.recv_arrays(handle)?;
    let args = GatedExpertsArgs {
        x: arrays.x.global()?,
        topk_idx: arrays.topk_idx.global()?,
        topk_weights: arrays.topk_weights.global()?,
        row_count: arrays.row_count.global()?,
        factors,
        y: arrays.expert_outputs.global()?,
        hidden: HIDDEN,
        selections: 1,
        stride: 1,
    };
    // SAFETY: the arrays of one dispatch, in the layout of one selection a row, behind it and before its combine; the factors are the
    // caller's promise; the family has the text of this kernel.
    unsafe { buffer.comm().launch(&gated_experts, GRID, 0, &args) }
}
