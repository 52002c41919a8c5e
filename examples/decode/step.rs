//! A rank's part: the loop of steps in a graph, and the same by calls.
use std::time::Instant;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Comm, Config, DeviceTensor, DispatchInput, ElasticBuffer, ExpertOutputs, Graph, Result, WireFormat,
    bf16,
};

use crate::Case;
use crate::times::Times;

/// Steps before those that are timed.
const WARM_UP: u32 = 3;
/// Routings that steps take in turn.
const ROUTINGS: u64 = 4;
/// Call pairs of which the host's time is taken at once: they fit in the stream's queue.
const CALLS: u32 = 16;

/// What a step works on.
struct Model {
    copier: Quantizer,
    x: DeviceTensor<bf16>,
    /// The selections of this step.
    idx: DeviceTensor<i32>,
    /// Those that steps take in turn.
    routings: Vec<DeviceTensor<i32>>,
    weights: DeviceTensor<f32>,
    y: DeviceTensor<bf16>,
}

/// A token's experts in a routing: `top_k` that follow each other, so that they are distinct.
fn expert(case: &Case, rank: u32, routing: u64, selection: u32) -> i32 {
    let (token, step) = (selection / case.top_k, selection % case.top_k);
    let first = 37 * token + 101 * rank + 59 * routing as u32;
    ((first + step * (case.experts / case.top_k)) % case.experts) as i32
}

fn element(rank: u32, at: u32) -> bf16 {
    bf16::from_f32((31 * rank + 7 * at) as f32 % 61.0 - 30.0)
}

impl Model {
    fn new(comm: &Comm, case: &Case) -> Result<Self> {
        let (elements, selections) = (case.tokens * case.hidden, case.tokens * case.top_k);
        let routing = |number| {
            let all: Vec<i32> = (0..selections).map(|s| expert(case, comm.rank(), number, s)).collect();
            // Whole pieces of 16 bytes, as the copy takes them.
            let mut tensor = comm.empty::<i32>(u64::from(selections.next_multiple_of(4)))?;
            tensor.copy_from_host(&all)?;
            Ok(tensor)
        };
        let x: Vec<bf16> = (0..elements).map(|at| element(comm.rank(), at)).collect();
        Ok(Self {
            copier: Quantizer::new(comm)?,
            x: comm.tensor(&x)?,
            idx: comm.empty(u64::from(selections.next_multiple_of(4)))?,
            routings: (0..ROUTINGS).map(routing).collect::<Result<_>>()?,
            weights: comm.tensor(&vec![1.0; selections as usize])?,
            y: comm.empty(elements.into())?,
        })
    }

    /// Changes the routing in place.
    fn route(&mut self, step: u64) -> Result<()> {
        self.copier.copy(&self.routings[(step % ROUTINGS) as usize], &mut self.idx)
    }

    /// A layer: its dispatch, its experts, if it `works`, and its combine.
    fn layer(&mut self, buffer: &mut ElasticBuffer, case: &Case, works: bool) -> Result<()> {
        let handle = buffer.dispatch(&DispatchInput::new(case.tokens, &self.x, &self.idx, &self.weights))?;
        if works {
            let view = buffer.recv_view(&handle)?;
            let bytes = view.max_rows * u64::from(case.hidden) * 2;
            // SAFETY: rows as they came, to where expert outputs go, of the same size: both there from the dispatch to the combine, between
            // which this is on their stream.
            unsafe { self.copier.copy_raw(view.x, view.expert_outputs, bytes)? };
        }
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut self.y))
    }

    fn layers(&mut self, buffer: &mut ElasticBuffer, case: &Case, works: bool) -> Result<()> {
        (0..case.layers).try_for_each(|_| self.layer(buffer, case, works))
    }
}

/// Runs and times the steps; what is wrong with the sums of the last ones.
pub fn run(comm: &Comm, case: &Case) -> Result<(Times, Option<String>)> {
    let config = Config::new(case.experts, case.top_k, case.hidden, case.tokens).with_num_sms(case.sms);
    let mut buffer = ElasticBuffer::new(comm, config.with_format(case.format).with_layout(case.layout))?;
    let mut model = Model::new(comm, case)?;
    let graph = comm.capture(|_| model.layers(&mut buffer, case, case.copies))?;
    let pairs = comm.capture(|_| model.layers(&mut buffer, case, false))?;
    let (steps, last) = (WARM_UP + case.steps, WARM_UP + case.steps - 1);
    let mut times = Times::default();
    // SAFETY: the model's tensors are there, and nothing else uses them.
    let launch = |graph: &Graph| unsafe { graph.launch(comm) };
    times.pair_us = each_step(comm, case, steps, |step| model.route(step.into()), || launch(&pairs))?;
    let mut wrong = None;
    let mut route = |step: u32| {
        // What the first step has left.
        if step == 1 {
            buffer.check()?;
            wrong = check(comm, case, &model, 0)?;
        }
        model.route(step.into())
    };
    times.graph_us = each_step(comm, case, steps, &mut route, || launch(&graph))?;
    buffer.check()?;
    wrong = wrong.or(check(comm, case, &model, last.into())?);
    comm.barrier()?;
    for step in 0..steps {
        model.route(step.into())?;
        let us = timed(comm, || model.layers(&mut buffer, case, case.copies))?;
        times.calls_us.extend((step >= WARM_UP).then(|| us / f64::from(case.layers)));
    }
    buffer.synchronize()?;
    wrong = wrong.or(check(comm, case, &model, last.into())?);
    for _ in 0..WARM_UP + case.steps.min(50) {
        comm.synchronize()?;
        comm.barrier()?;
        let began = Instant::now();
        (0..CALLS).try_for_each(|_| model.layer(&mut buffer, case, case.copies))?;
        times.host_us.push(began.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS));
        comm.synchronize()?;
        comm.barrier()?;
        let began = Instant::now();
        launch(&graph)?;
        times.host_graph_us.push(began.elapsed().as_secs_f64() * 1e6);
    }
    buffer.close()?;
    Ok((times, wrong))
}

/// Microseconds of a layer in each step behind the first ones: `enqueue` behind `prepare`.
fn each_step(
    comm: &Comm,
    case: &Case,
    steps: u32,
    mut prepare: impl FnMut(u32) -> Result<()>,
    enqueue: impl Fn() -> Result<()>,
) -> Result<Vec<f64>> {
    comm.barrier()?;
    let mut us = Vec::new();
    for step in 0..steps {
        prepare(step)?;
        us.push(timed(comm, &enqueue)? / f64::from(case.layers));
    }
    Ok(us.split_off(WARM_UP as usize))
}

/// Microseconds that the stream takes for what is enqueued.
fn timed(comm: &Comm, enqueue: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = comm.record()?;
    enqueue()?;
    let ended = comm.record()?;
    comm.synchronize()?;
    Ok(comm.elapsed_ms(&began, &ended)? * 1e3)
}

/// Compares the sums with plain code: every row came back once from each rank that has an expert of it.
fn check(comm: &Comm, case: &Case, model: &Model, step: u64) -> Result<Option<String>> {
    if !case.copies || case.format != WireFormat::Bf16 {
        return Ok(None);
    }
    let y = model.y.to_vec()?;
    // Contiguous ranges, the first ranks one more.
    let (each, longer) = (case.experts / case.ranks, case.experts % case.ranks);
    let owner = |expert: u32| {
        let long = longer * (each + 1);
        if expert < long { expert / (each + 1) } else { longer + (expert - long) / each.max(1) }
    };
    for token in 0..case.tokens {
        let of = |s| owner(expert(case, comm.rank(), step % ROUTINGS, token * case.top_k + s) as u32);
        let mut owners: Vec<u32> = (0..case.top_k).map(of).collect();
        owners.sort_unstable();
        owners.dedup();
        for at in token * case.hidden..(token + 1) * case.hidden {
            let x = element(comm.rank(), at).to_f32();
            let want = bf16::from_f32(owners.iter().fold(0.0, |sum, _| sum + x));
            let got = y[at as usize];
            if got.to_bits() != want.to_bits() && !(got == want) {
                return Ok(Some(format!("rank {}, token {token}, element {at}: {got}, expected {want}", comm.rank())));
            }
        }
    }
    Ok(None)
}
