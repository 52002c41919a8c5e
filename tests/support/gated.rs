//! The experts of a third party's crate of kernels (`examples/custom-kernel/kernels`): launched between a dispatch and its combine, and in
//! plain code.
use std::collections::BTreeMap;
use std::f32::consts::LOG2_E;

use custom_kernel_device::gated_experts::{GatedExpertsArgs, gated_experts};
use epoxide::kernels::Family;
use epoxide::{Comm, DeviceTensor, Dispatched, ElasticBuffer, Result, bf16};
use epoxide_dsl::math;

use super::reference::{World, owned, round};

/// That crate's kernels, with the PTX that it commits.
pub const KERNELS: &[Family] = &[Family::new(
    "custom-kernel",
    &["cross_entropy", "gated_experts", "rms_norm"],
    include_str!("../../examples/custom-kernel/kernels/ptx/kernels_sm_90.ptx"),
)];

/// An expert's factor.
fn factor(expert: u32) -> f32 {
    0.5 + (expert % 7) as f32 * 0.25
}

/// The factors of a rank's experts; at least one number.
pub fn factors(comm: &Comm, experts: u32) -> Result<DeviceTensor<f32>> {
    let own = owned(experts, comm.size())[comm.rank() as usize].clone();
    comm.tensor(&own.map(factor).chain([0.0]).collect::<Vec<_>>())
}

/// Enqueues the experts on what `handle`'s dispatch brings.
pub fn enqueue(buffer: &ElasticBuffer, handle: &Dispatched, factors: &DeviceTensor<f32>, grid: u32) -> Result<()> {
    let arrays = buffer.recv_arrays(handle)?;
    // One selection for each row, or as many as a token's.
    let (selections, stride) = match (arrays.topk_idx.shape(), arrays.topk_idx.strides()) {
        (&[_, selections], &[stride, _]) => (selections as u32, stride as u32),
        _ => (1, 1),
    };
    // SAFETY: the tensor lives until the stream has passed the kernel.
    let factors = unsafe { epoxide::kernels::Global::from_raw(factors.address()) };
    let args = GatedExpertsArgs {
        x: arrays.x.global()?,
        topk_idx: arrays.topk_idx.global()?,
        topk_weights: arrays.topk_weights.global()?,
        row_count: arrays.row_count.global()?,
        factors,
        y: arrays.expert_outputs.global()?,
        hidden: buffer.config().hidden,
        selections,
        stride,
    };
    // SAFETY: the arrays of one dispatch, behind it and before its combine; a factor for each local expert; the family above has the text
    // of this kernel.
    unsafe { buffer.comm().launch(&gated_experts, grid, 0, &args) }
}

/// What is added to a row's sum for one of its selections.
fn add(sum: f32, weight: f32, expert: u32, x: bf16) -> f32 {
    let x = x.to_f32();
    let gate = factor(expert) * x;
    weight.mul_add(gate / (1.0 + math::exp2(-gate * LOG2_E)) * x, sum)
}

/// `Iterator::sum` begins with -0.
fn from_zero(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(0.0, |sum, value| sum + value)
}

/// The sums of `source`'s tokens, where rows lie by expert or not.
pub fn combined(world: &World, source: u32, by_expert: bool) -> Vec<bf16> {
    let owners = world.owners();
    let input = &world.inputs[source as usize];
    let mut y = Vec::new();
    for token in 0..input.tokens {
        let weights = &input.topk_weights[(token * world.top_k) as usize..];
        // By owner, in the order of their first selections.
        let (mut order, mut own) = (Vec::new(), BTreeMap::<u32, Vec<(u32, f32)>>::new());
        for (expert, &weight) in world.selections(source, token).iter().zip(weights) {
            let Ok(expert) = u32::try_from(*expert) else { continue };
            let owner = owners[expert as usize];
            let selected = own.entry(owner).or_insert_with(|| {
                order.push(owner);
                Vec::new()
            });
            selected.push((expert, weight));
        }
        for &x in world.row(source, token) {
            let of_owner = |owner: &u32| {
                let selected = own[owner].iter();
                f32::from(round(if by_expert {
                    // A row for each, which the rank then adds.
                    from_zero(selected.map(|&(expert, weight)| f32::from(round(add(0.0, weight, expert, x)))))
                } else {
                    selected.fold(0.0, |sum, &(expert, weight)| add(sum, weight, expert, x))
                }))
            };
            y.push(round(from_zero(order.iter().map(of_owner))));
        }
    }
    y
}
