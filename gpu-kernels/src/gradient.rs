//! The gradient of a gate-weighted combine, beside the rows: what [`dispatch::again`](crate::dispatch::again) has brought of `dy` becomes the gradient of
//! each expert output, and its product with that output the gradient of each gate weight.
//!
//! There is no protocol: a rank works on its own rows, behind the dispatch that brought them and before the combine that its peers read
//! anything by. After a dispatch that failed there are no rows. Where fewer outputs were handed over than rows were received, that is filed, and
//! nothing is weighed.
use epoxide_dsl::fault::{Fault, Told};
use epoxide_dsl::prelude::*;

use crate::grid_warps;
use crate::quantize::widen;
use crate::words::{Code, Operation, Phase};

/// Arguments of [`weigh_gradients`](crate::entries::weigh_gradients).
///
/// Launch contract: `op` describes windows laid out by `WindowLayout`; `rows` and `gates` are what a dispatch brought of BF16 rows that lie by expert, behind it on the stream; `outputs` has
/// `outputs_rows` rows, and nothing writes it; nobody else touches `rows` and `gradients` meanwhile.
#[derive(Clone, Copy, Debug, KernelArg)]
#[repr(C)]
pub struct WeighGradientsArgs {
    /// Faults, and the epoch of the dispatch.
    pub op: Operation,
    /// BF16 `[rows][hidden]`: gradients of sums; each is multiplied by its gate weight.
    pub rows: Global<u8>,
    /// BF16 `[rows][hidden]`: the expert outputs that were combined.
    pub outputs: Global<u8>,
    /// f32 `[rows]`: gate weights.
    pub gates: Global<f32>,
    /// u64 `[rows]`: whose a row is; all ones where it pads.
    pub sources: Global<u64>,
    /// f32 `[rows]`: written, the gradients of gate weights; 0 where a row pads.
    pub gradients: Global<f32>,
    /// `[1]`: how many rows there are.
    pub received: Global<u32>,
    /// Elements of a row, a multiple of 8.
    pub hidden: u32,
    /// Rows of `outputs`.
    pub outputs_rows: u32,
}

/// Vectors of a row that a lane has in flight.
const VECTORS: usize = 4;

/// Weighs the rows, a warp for each.
#[inline(always)]
pub(crate) fn run(a: &WeighGradientsArgs) {
    let (watch, received) = (wait::Watch::begin(a.op.fault, a.op.epoch.load_weak(0)), a.received.load_weak(0));
    let mut fault = watch.found(watch.look(), Phase::End as u32);
    if !fault.is_some() && a.outputs_rows < received {
        let (code, phase, peer) = (Code::OutputsTooFew as u32, Phase::End as u32, a.op.window().me.0);
        let (expected, seen) = (u64::from(received), u64::from(a.outputs_rows));
        fault = Fault { code, phase, peer, told: Told::All, expected, seen };
    }
    match fault.settle() {
        Ok(()) => weigh_all(a, received),
        Err(stopped) => watch.file(stopped),
    }
}

/// Weighs this block's share of the rows.
#[inline(always)]
fn weigh_all(a: &WeighGradientsArgs, received: u32) {
    for row in thread::strided(grid_warps::index(), received, grid_warps::count()) {
        let mut gradient = 0.0;
        // What pads is of nobody, and nobody wrote an output for it.
        if a.sources.load_weak(row) != u64::MAX {
            gradient = weigh(a, row);
        }
        if warp::lane() == 0 {
            a.gradients.store_weak(row, gradient);
        }
    }
}

/// Weighs a row; returns its product with its output. Warp-collective.
#[inline(always)]
fn weigh(a: &WeighGradientsArgs, row: u32) -> f32 {
    let (bytes, weight) = (a.hidden * 2, a.gates.load_weak(row));
    let dy = a.rows.rows(bytes).row(row).cast::<U32x4>();
    let outputs = a.outputs.rows(bytes).row(row).cast::<U32x4>();
    let (mut first, vectors) = (warp::lane(), a.hidden / 8);
    let mut sum = 0.0;
    while first < vectors {
        let mut loaded = [[[0; 4]; 2]; VECTORS];
        unroll!(V in 4 if first + V as u32 * warp::LANES < vectors => {
            let vector = first + V as u32 * warp::LANES;
            loaded[V] = [dy.load_weak(vector), outputs.load_weak_streaming(vector)];
        });
        unroll!(V in 4 if first + V as u32 * warp::LANES < vectors => {
            let (dy_of, outputs) = (widen(loaded[V][0]), widen(loaded[V][1]));
            // One after another: the order is part of the contract.
            unroll!(I in 8 => { sum += dy_of[I] * outputs[I]; });
            let mut weighed = [0; 4];
            unroll!(I in 4 => {
                weighed[I] = Bf16::pair_from_f32(dy_of[2 * I] * weight, dy_of[2 * I + 1] * weight);
            });
            dy.store_weak(first + V as u32 * warp::LANES, weighed);
        });
        first += VECTORS as u32 * warp::LANES;
    }
    warp::sum_f32(sum)
}
