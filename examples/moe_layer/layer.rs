//! What one rank does: dispatch, its experts, combine.
//!
//! Ranks meet on the host before every operation and after every step. The first because nothing may be allocated while a
//! peer waits on the same GPU, the second so that the time of a step is the same on all of them.
use std::time::{Duration, Instant};

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, Event, ExpertOutputs, Received, WireRows, bf16,
};

use crate::check;
use crate::experts::{self, Experts};
use crate::input::Input;
use crate::options::{Device, Options};
use crate::plan::{NOBODY, Plan};
use crate::progress::Progress;
use crate::router::Routing;

/// Bytes of the device copy that bandwidths are compared with: far more than any cache.
const COPY_BYTES: u64 = 1 << 30;
/// How often it is made, after as many for warm-up: a GPU's clocks need some milliseconds to rise.
const COPIES: u32 = 20;

/// What all ranks share.
pub struct Layer<'a> {
    pub options: &'a Options,
    pub config: &'a Config,
    pub input: &'a Input,
    pub routing: &'a Routing,
    pub plan: &'a Plan,
    pub experts: &'a Experts,
    pub progress: &'a Progress,
}

/// What one rank has to tell.
pub struct Outcome {
    /// Its device, in words.
    pub device: String,
    /// SMs of an operation.
    pub num_sms: u32,
    /// Bytes of its buffer.
    pub buffer_bytes: u64,
    /// The first thing that was communicated wrongly.
    pub mismatch: Option<String>,
    /// The rows that its experts made, BF16 `[received rows, hidden]`.
    pub outputs: Vec<bf16>,
    /// The layer's output, BF16 `[tokens, hidden]`.
    pub y: Vec<bf16>,
    /// Times of the steps.
    pub clock: Clock,
    /// Milliseconds of dispatch and combine, of each timed pass.
    pub passes: Vec<(f64, f64)>,
    /// Bytes a second, read and written, of a device copy, on the one rank that made it.
    pub copy: Option<f64>,
}

/// How long each step took.
pub struct Clock {
    last: Instant,
    /// Steps in the order in which they first ended.
    pub steps: Vec<(&'static str, Duration)>,
}

impl Clock {
    /// Starts the first step.
    pub fn new() -> Self {
        Self { last: Instant::now(), steps: Vec::new() }
    }

    /// Ends a step, or a further part of it.
    pub fn lap(&mut self, step: &'static str) {
        let now = Instant::now();
        let time = now - std::mem::replace(&mut self.last, now);
        match self.steps.iter_mut().find(|(name, _)| *name == step) {
            Some((_, total)) => *total += time,
            None => self.steps.push((step, time)),
        }
    }
}

impl Layer<'_> {
    /// Runs a rank.
    ///
    /// # Errors
    ///
    /// What the library returns. A wrong result is no error here, but the outcome's `mismatch`.
    pub fn run(&self, comm: Comm) -> epoxide::Result<Outcome> {
        let rank = comm.rank() as usize;
        let tokens = self.plan.tokens[rank].clone();
        let top_k = self.routing.top_k;
        let mut clock = Clock::new();
        let mut end = |step: &'static str, next: &'static str| -> epoxide::Result<()> {
            comm.barrier()?;
            clock.lap(step);
            if rank == 0 {
                self.progress.step(next);
            }
            Ok(())
        };

        // Everything that lies on the device is allocated before the first operation.
        let x = comm.tensor(self.input.rows(tokens.clone()))?;
        let selections = tokens.start * top_k..tokens.end * top_k;
        let topk_idx = comm.tensor(&self.routing.experts[selections.clone()])?;
        let topk_weights = comm.tensor(&self.routing.weights[selections])?;
        let mut y = comm.empty::<bf16>((tokens.len() * self.input.hidden) as u64)?;
        let mut buffer = ElasticBuffer::new(&comm, self.config.clone())?;
        let sent = DispatchInput::new(tokens.len() as u32, &x, &topk_idx, &topk_weights);
        end("set up", "dispatch")?;

        let before = comm.record()?;
        let handle = buffer.dispatch(&sent)?;
        let after = comm.record()?;
        buffer.synchronize()?;
        let dispatch_ms = comm.elapsed_ms(&before, &after)?;
        end("dispatch", "read back")?;

        let mut got = buffer.received(&handle)?;
        if self.options.corrupt && self.plan.first_receiver() == Some(rank) {
            flip_a_bit(&mut got);
        }
        end("copy to and from the host", "check what was received")?;
        let mut mismatch = check::received(rank, &got, self.plan, self.input, self.progress);
        end("check, bit for bit", "experts")?;

        let plan = &self.plan.received[rank];
        let outputs = if got.x.holds(plan.rows(), self.input.hidden) && got.topk_idx.len() == plan.topk_idx.len() {
            let first = self.plan.experts[rank].start;
            let Received { x, topk_idx, topk_weights, .. } = got;
            experts::outputs(self.experts, first, x, &topk_idx, &topk_weights, plan, self.progress)
        } else {
            // Already a mismatch; other ranks wait for rows, so that some are sent.
            vec![bf16::ZERO; plan.rows() * self.input.hidden]
        };
        end("experts", "copy")?;
        buffer.write_expert_outputs(&handle, &outputs)?;
        end("copy to and from the host", "combine")?;

        let before = comm.record()?;
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
        let after = comm.record()?;
        buffer.synchronize()?;
        let mut passes = vec![(dispatch_ms, comm.elapsed_ms(&before, &after)?)];
        end("combine", "copy")?;
        let result = y.to_vec()?;
        end("copy to and from the host", "repeat")?;

        if self.options.passes() > 1 {
            // The first pass was the warm-up.
            passes.clear();
            let events: Vec<[Event; 3]> = (1..self.options.passes())
                .map(|_| {
                    let before = comm.record()?;
                    let handle = buffer.dispatch(&sent)?;
                    let between = comm.record()?;
                    // Its experts' rows are where the first pass left them.
                    buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
                    Ok([before, between, comm.record()?])
                })
                .collect::<epoxide::Result<_>>()?;
            buffer.synchronize()?;
            for [before, between, after] in &events {
                passes.push((comm.elapsed_ms(before, between)?, comm.elapsed_ms(between, after)?));
            }
            end("repeat dispatch and combine", "copy")?;
            let again = y.to_vec()?;
            if mismatch.is_none() && again.iter().zip(&result).any(|(a, b)| a.to_bits() != b.to_bits()) {
                mismatch = Some(format!("rank {rank}: the result of pass {} differs from the first", events.len() + 1));
            }
            end("copy to and from the host", "device copy")?;
        }

        let (num_sms, buffer_bytes) = (buffer.num_sms(), buffer.bytes()?.total());
        buffer.close()?;
        drop((x, topk_idx, topk_weights, y));
        comm.synchronize()?;
        // Freeing memory waits for the whole device: every rank is done with it before one measures.
        end("tear down", "device copy")?;
        let mut copy = None;
        if self.options.device == Device::Cuda {
            copy = if rank == 0 { Some(device_copy(&comm)?) } else { None };
            end("device copy", "reference")?;
        }
        Ok(Outcome { device: comm.device(), num_sms, buffer_bytes, mismatch, outputs, y: result, clock, passes, copy })
    }
}

/// Whether a rank's rows are as many as planned.
trait Holds {
    fn holds(&self, rows: usize, hidden: usize) -> bool;
}

impl Holds for WireRows {
    fn holds(&self, rows: usize, hidden: usize) -> bool {
        let elements = match self {
            Self::Bf16(rows) => rows.len(),
            Self::Fp8 { codes, .. } | Self::Fp8Packed { codes, .. } => codes.len(),
            Self::Opaque { .. } => return false,
        };
        elements == rows * hidden
    }
}

/// Spoils the first row that was received of a token, by its lowest bit.
fn flip_a_bit(got: &mut Received) {
    let rows = got.sources.len().max(1);
    let Some(row) = got.sources.iter().position(|source| *source != NOBODY) else { return };
    match &mut got.x {
        WireRows::Bf16(x) => {
            let first = row * (x.len() / rows);
            x[first] = bf16::from_bits(x[first].to_bits() ^ 1);
        }
        WireRows::Fp8 { codes, .. } | WireRows::Fp8Packed { codes, .. } => {
            let first = row * (codes.len() / rows);
            codes[first] ^= 1;
        }
        WireRows::Opaque { .. } => {}
    }
}

/// Copies on the device while the other ranks are idle: bytes a second, those read and those written together.
fn device_copy(comm: &Comm) -> epoxide::Result<f64> {
    let from = comm.empty::<u64>(COPY_BYTES / 8)?;
    let mut to = comm.empty::<u64>(COPY_BYTES / 8)?;
    let quantizer = Quantizer::new(comm)?;
    for _ in 0..COPIES {
        quantizer.copy(&from, &mut to)?;
    }
    let before = comm.record()?;
    for _ in 0..COPIES {
        quantizer.copy(&from, &mut to)?;
    }
    let after = comm.record()?;
    comm.synchronize()?;
    let seconds = comm.elapsed_ms(&before, &after)? / 1e3;
    drop((from, to));
    comm.synchronize()?;
    Ok(2.0 * f64::from(COPIES) * COPY_BYTES as f64 / seconds)
}
