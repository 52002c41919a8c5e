//! Runs a cell: every rank dispatches, hands over expert outputs in the cell's way, and combines, and all of it is compared with the
//! references.
use std::cell::{Cell as Mut, OnceCell};
use std::time::Duration;

use epoxide::quantize::Quantizer;
use epoxide::{
    CombineInput, Comm, DeviceTensor, Dispatched, ElasticBuffer, Error, ExpertOutputs, Layout, ReplayInput, Result,
    ReturnedWeights, Rows, bf16,
};

use super::arrived::{self, Came};
use super::dimensions::{Cell, Form, Lie, Outputs, Stream, Y};
use super::order::{self, Do};
use super::support::brought::{self, Brought};
use super::support::by_expert::{self, Padding};
use super::support::combine_options::{Agreed, Options, Own};
use super::support::exchange::{self, Tensors};
use super::support::gradient::back_at_tokens;
use super::support::overflow::{Over, told};
use super::support::reference::same;
use super::support::{Checked, Device, fixed_places, scale_columns};
use super::worlds::{self, Plan, Step};

/// Longer than any cell.
const LONG: Duration = Duration::from_secs(3600);

/// Runs a cell on a group of its own.
pub fn check(cell: &Cell, device: Device) -> Checked {
    let plan = worlds::plan(cell);
    device.check(cell.ranks, worlds::mode(cell), |comm| rank(cell, &plan, &Streams::of(&comm)))
}

/// A rank's streams: its own, and another one from when a cell first needs it, since what a rank has made stays as long as the rank.
pub struct Streams {
    own: Comm,
    second: OnceCell<Comm>,
    /// Buffers that cells have made.
    buffers: Mut<u64>,
}

impl Streams {
    pub fn of(comm: &Comm) -> Self {
        Self { own: comm.clone(), second: OnceCell::new(), buffers: Mut::new(0) }
    }

    /// The rank on its own stream.
    pub fn own(&self) -> &Comm {
        &self.own
    }

    /// Makes a cell's buffer.
    pub fn buffer(&self, plan: &Plan) -> Result<ElasticBuffer> {
        self.buffers.set(self.buffers.get() + 1);
        ElasticBuffer::new(&self.own, plan.config.clone())
    }

    /// Those on which a cell's operations are, in turn; none where they are on the rank's own.
    fn in_turn(&self, cell: &Cell) -> Result<Vec<Comm>> {
        if cell.stream == Stream::Own {
            return Ok(Vec::new());
        }
        if self.second.get().is_none() {
            // SAFETY: tensors are written on the rank's stream by calls that wait for it, or with events on both sides (`Run::beside`), and
            // read where the host has waited for the operations.
            let _ = self.second.set(unsafe { self.own.on_new_stream()? });
        }
        let second = self.second.get().cloned().into_iter();
        Ok(second.chain((cell.stream == Stream::Switched).then(|| self.own.clone())).collect())
    }
}

/// What a rank has of a step before it begins: nothing is allocated on the way.
struct Mine {
    tensors: Tensors,
    brought: Brought,
    /// What its experts will write.
    outputs: DeviceTensor<bf16>,
    options: Options,
    back: Option<Back>,
}

/// Tensors of a gradient.
struct Back {
    dy: DeviceTensor<bf16>,
    dx: DeviceTensor<bf16>,
    dw: DeviceTensor<f32>,
}

/// Runs a cell on one rank. What is refused is a complaint, since all ranks are refused it, and can go on with another cell.
pub fn rank(cell: &Cell, plan: &Plan, streams: &Streams) -> Result<Checked> {
    let refused = |error| match error {
        Error::InvalidArgument { .. } | Error::WrongOrder { .. } => Ok(Err(error.to_string())),
        other => Err(other),
    };
    let mut buffer = match streams.buffer(plan) {
        Ok(buffer) => buffer,
        Err(error) => return refused(error),
    };
    let checked = steps(cell, plan, streams, &mut buffer, &|| streams.own.barrier()).or_else(|error| {
        // Of what was enqueued before, something may not have fitted, and a combine have gone by it: each is told once.
        let _ = (0..3).find(|_| buffer.synchronize().is_ok());
        refused(error)
    })?;
    buffer.close()?;
    Ok(checked)
}

/// All that a cell does with its buffer. `begins` is called in front of the first operation, when nothing is allocated any more.
pub fn steps(
    cell: &Cell,
    plan: &Plan,
    streams: &Streams,
    buffer: &mut ElasticBuffer,
    begins: &dyn Fn() -> Result<()>,
) -> Result<Checked> {
    let (comm, copier) = (&streams.own, Quantizer::new(&streams.own)?);
    let number = streams.buffers.get();
    let mut run = Run { cell, plan, comm, streams: streams.in_turn(cell)?, number, operations: 0, copier };
    let mine = plan.steps.iter().enumerate().map(|(number, step)| run.mine(number, step));
    let mut mine = mine.collect::<Result<Vec<_>>>()?;
    begins()?;
    let mut handles: Vec<Dispatched> = Vec::new();
    let mut checked = Ok(());
    for what in &plan.order {
        let (number, right) = match *what {
            Do::Dispatch(number) => {
                let (handle, right) = run.dispatch(buffer, number, &handles, &mut mine[number])?;
                handles.push(handle);
                (number, right)
            }
            Do::Combine(number) => {
                (number, run.combine(buffer, &handles[number], &plan.steps[number], &mut mine[number])?)
            }
            Do::Release(number) => (number, run.release(buffer, &handles[number], &plan.steps[number])?),
        };
        checked = checked.and(right.map_err(|why| format!("step {number}: {why}")));
    }
    // Of all that did not fit the first is told, unless each was.
    let over = plan.steps.iter().find_map(|step| run.over(step)).filter(|_| !cell.waits);
    checked = checked.and(synchronized(buffer, over)?);
    if !cell.waits {
        for (number, (step, mine)) in plan.steps.iter().zip(&mine).enumerate() {
            checked = checked.and(run.sums(step, mine)?).and(run.gradient(step, mine)?);
            checked = checked.map_err(|why| format!("step {number}: {why}"));
        }
    }
    if cell.statistics {
        checked = checked.and(arrived::statistics(plan, buffer)?);
    }
    if let Some(masked) = &plan.masked {
        let (got, want) = (buffer.masked_selections()?, masked[comm.rank() as usize]);
        let right = got == want;
        let complaint = || format!("{got} selections of masked ranks' experts, expected {want}");
        checked = checked.and(if right { Ok(()) } else { Err(complaint()) });
    }
    Ok(checked)
}

/// Waits for a buffer's operations, of which one did not fit, or none.
fn synchronized(buffer: &mut ElasticBuffer, over: Option<Over>) -> Result<Checked> {
    let checked = match over {
        Some(over) => told("synchronize", buffer.synchronize(), over),
        None => Ok(()),
    };
    buffer.synchronize()?;
    Ok(checked)
}

/// Compares the row slot that a dispatch has taken.
fn in_slot(handle: &Dispatched, slot: u32) -> Checked {
    let got = handle.row_slot();
    if got == slot { Ok(()) } else { Err(format!("its rows are in slot {got}, expected {slot}")) }
}

/// A rank's run of a cell.
struct Run<'a> {
    cell: &'a Cell,
    plan: &'a Plan,
    /// Of the stream on which the rank's tensors and experts are.
    comm: &'a Comm,
    streams: Vec<Comm>,
    /// Which buffer of the group's it has.
    number: u64,
    operations: usize,
    copier: Quantizer,
}

impl Run<'_> {
    /// That a step does not fit, as the rank's buffer tells it.
    fn over(&self, step: &Step) -> Option<Over> {
        step.over.map(|over| Over { buffer: self.number, ..over })
    }

    fn layout(&self) -> Layout {
        self.plan.config.layout
    }

    fn mine(&self, number: usize, step: &Step) -> Result<Mine> {
        let (cell, comm, rank, world) = (self.cell, self.comm, self.comm.rank(), &step.world);
        let tokens = world.inputs[rank as usize].tokens;
        let mut tensors = Tensors::empty(comm, tokens, world.hidden, world.top_k, worlds::index(cell))?;
        tensors.fill(&step.given, rank)?;
        tensors.keep_rows = order::keeps(cell);
        let gap = (cell.data % 3) as u32;
        let lie = brought::Lie { gap, before: gap * 2 };
        let brought = Brought::new(comm, &step.wires[rank as usize], world.scale_words(), lie)?;
        let outputs = comm.tensor(&match self.layout() {
            Layout::Compact => world.expert_outputs(rank, &step.wires),
            Layout::RankMajor { .. } => {
                fixed_places::predicted_outputs(world, rank, &step.wires, self.plan.config.max_tokens_per_rank)
            }
            layout => by_expert::predicted_outputs(world, rank, &step.wires, Padding::of(layout)),
        })?;
        let agreed = Agreed { gated: cell.gated, returned: cell.returned, fp8: cell.over_fp8 };
        let (biases, accumulate) = (cell.biases, cell.accumulate);
        let own = Own { biases, accumulate, wide: cell.y == Y::F32, cut: cell.data % 2 == 1 };
        let options = Options::new(comm, world, &self.plan.config, agreed, own, cell.data ^ (number as u64) << 32)?;
        let back = step.dy.as_ref().map(|dy| -> Result<Back> {
            let input = &dy.inputs[rank as usize];
            let dw = comm.tensor(&vec![-3.0f32; input.topk_idx.len()])?;
            Ok(Back { dy: comm.tensor(&input.x)?, dx: comm.empty(input.x.len() as u64)?, dw })
        });
        Ok(Mine { tensors, brought, outputs, options, back: back.transpose()? })
    }

    /// Moves the buffer to the stream of the next operation.
    fn next_operation(&mut self, buffer: &mut ElasticBuffer) -> Result<()> {
        if !self.streams.is_empty() {
            buffer.set_stream(&self.streams[self.operations % self.streams.len()])?;
        }
        self.operations += 1;
        Ok(())
    }

    /// Begins a step; its handle.
    fn dispatch(
        &mut self,
        buffer: &mut ElasticBuffer,
        number: usize,
        handles: &[Dispatched],
        mine: &mut Mine,
    ) -> Result<(Dispatched, Checked)> {
        let step = &self.plan.steps[number];
        let tokens = step.world.inputs[self.comm.rank() as usize].tokens;
        self.next_operation(buffer)?;
        if self.cell.outputs == Outputs::Lent {
            buffer.lend_expert_outputs()?;
            buffer.stage_lent_expert_outputs(&mine.outputs)?;
        }
        let rows = self.rows(number, mine)?;
        let handle = match step.of {
            None => mine.tensors.dispatch_rows(buffer, tokens, rows)?,
            Some(of) => {
                let mut input = ReplayInput::new(rows);
                input.keep_rows = order::keeps(self.cell);
                buffer.dispatch_again(&handles[of], input)?
            }
        };
        let checked = in_slot(&handle, step.row_slots[0]);
        Ok((handle, checked))
    }

    /// Ends a step, as far as it can be seen without waiting for its end unless the cell does.
    fn combine(
        &mut self,
        buffer: &mut ElasticBuffer,
        handle: &Dispatched,
        step: &Step,
        mine: &mut Mine,
    ) -> Result<Checked> {
        let (came, mut checked) = self.look(buffer, handle, step)?;
        checked = checked.and(arrived::check(self.cell, self.layout(), step, self.comm.rank(), &came));
        let from = self.hand_over(buffer, handle, step, mine, &came)?;
        self.next_operation(buffer)?;
        let from = if from { (&mine.outputs).into() } else { ExpertOutputs::InPlace };
        buffer.combine(handle, mine.options.input(from)?)?;
        if self.cell.waits {
            checked = checked.and(synchronized(buffer, self.over(step))?).and(self.sums(step, mine)?);
        }
        if mine.back.is_some() {
            checked = checked.and(self.back(buffer, handle, step, mine)?);
        }
        Ok(checked)
    }

    /// Looks at rows that were kept, behind their combine and whatever came after it, and gives them up.
    fn release(&mut self, buffer: &mut ElasticBuffer, handle: &Dispatched, step: &Step) -> Result<Checked> {
        let checked = match step.over {
            // That it did not fit was told.
            Some(_) => Ok(()),
            None => {
                let kept = Came::Rows(Box::new(buffer.received(handle)?));
                let right = arrived::check(self.cell, self.layout(), step, self.comm.rank(), &kept);
                let index = self.index(buffer, handle, &kept)?;
                right.and(self.columns(buffer, handle, &kept)?).and(index).map_err(|why| format!("kept: {why}"))
            }
        };
        buffer.release(handle)?;
        Ok(checked)
    }

    /// Compares scales by column with those by row, if there are any and the host has these.
    fn columns(&self, buffer: &ElasticBuffer, handle: &Dispatched, came: &Came) -> Result<Checked> {
        match came {
            Came::Rows(received) if self.cell.columns => {
                scale_columns::check(self.comm, buffer, handle, received, false)
            }
            _ => Ok(Ok(())),
        }
    }

    /// Compares the index by expert with the rows, if there is one.
    fn index(&self, buffer: &ElasticBuffer, handle: &Dispatched, came: &Came) -> Result<Checked> {
        let alignment = match self.layout() {
            Layout::RankMajor { alignment } => Some(alignment),
            _ => self.plan.config.expert_index,
        };
        match (came, alignment) {
            (Came::Rows(received), Some(alignment)) => {
                fixed_places::check_index(self.comm, &self.copier, buffer, handle, received, alignment)
            }
            _ => Ok(Ok(())),
        }
    }

    /// What the host sees of a dispatch's rows before their combine.
    fn look(&self, buffer: &mut ElasticBuffer, handle: &Dispatched, step: &Step) -> Result<(Came, Checked)> {
        let mut checked = Ok(());
        if self.cell.told {
            let counts = buffer.wait_counts(handle, LONG);
            checked = arrived::counts(&self.plan.config, step, self.over(step), self.comm.rank(), counts)?;
        }
        if matches!(self.cell.outputs, Outputs::Tensor | Outputs::Lent) {
            return Ok((Came::Unseen, checked));
        }
        let received = buffer.received(handle);
        Ok(match self.over(step) {
            Some(over) => (Came::Nothing, checked.and(told("received", received, over))),
            None => {
                let came = Came::Rows(Box::new(received?));
                let by_column = self.columns(buffer, handle, &came)?;
                let index = self.index(buffer, handle, &came)?;
                (came, checked.and(by_column).and(index))
            }
        })
    }

    /// The rows that a rank dispatches in a step.
    fn rows<'a>(&self, number: usize, mine: &'a Mine) -> Result<Rows<'a>> {
        match self.cell.rows {
            Form::Bf16 | Form::Fp8Inside => Ok((&mine.tensors.x).into()),
            Form::Fp8Both if (self.comm.rank() as usize + number).is_multiple_of(2) => Ok((&mine.tensors.x).into()),
            Form::Fp8Brought | Form::Fp8Both | Form::Opaque => mine.brought.rows(),
        }
    }

    /// Hands expert outputs over before the combine, or says that they are in a tensor for it.
    fn hand_over(
        &self,
        buffer: &mut ElasticBuffer,
        handle: &Dispatched,
        step: &Step,
        mine: &Mine,
        came: &Came,
    ) -> Result<bool> {
        match (self.cell.outputs, came) {
            (Outputs::Host, Came::Rows(received)) => {
                let (rank, world) = (self.comm.rank(), &step.world);
                let outputs = match self.cell.layout {
                    Lie::Compact | Lie::RankMajor => exchange::expert_outputs(rank, world.hidden, received),
                    Lie::ByExpert | Lie::Slab => by_expert::expert_outputs(world, rank, received),
                };
                buffer.write_expert_outputs(handle, &outputs)?;
            }
            (Outputs::Staged, _) => buffer.stage_expert_outputs(handle, &mine.outputs)?,
            (Outputs::Kernel, _) => {
                let to = buffer.recv_arrays(handle)?.expert_outputs.address();
                self.beside(buffer, |copier| {
                    // SAFETY: as many rows as this dispatch brings, from a tensor to the region that it has lent: behind the dispatch and
                    // before the combine, nobody else touches either.
                    unsafe { copier.copy_raw(mine.outputs.address(), to, 2 * mine.outputs.len()) }
                })?;
            }
            (Outputs::Tensor, _) => return Ok(true),
            (Outputs::Host | Outputs::Lent, _) => {}
        }
        Ok(false)
    }

    /// Enqueues work of the rank's own stream behind the buffer's operations and before what it enqueues next.
    fn beside(&self, buffer: &mut ElasticBuffer, work: impl FnOnce(&Quantizer) -> Result<()>) -> Result<()> {
        self.comm.wait(&buffer.record()?)?;
        work(&self.copier)?;
        buffer.wait(&self.comm.record()?)
    }

    /// The gradient of a step: its experts hand weighed rows on as they are.
    fn back(
        &mut self,
        buffer: &mut ElasticBuffer,
        handle: &Dispatched,
        step: &Step,
        mine: &mut Mine,
    ) -> Result<Checked> {
        let Some(back) = &mut mine.back else { return Ok(Ok(())) };
        self.next_operation(buffer)?;
        // Outputs that are kept are read where they lie.
        let kept = order::keeps(self.cell);
        let outputs = if kept { ExpertOutputs::InPlace } else { (&mine.outputs).into() };
        let again = buffer.dispatch_gradient(handle, &back.dy, outputs)?;
        let (came, mut checked) = self.look(buffer, &again, step)?;
        checked = checked.and(in_slot(&again, step.row_slots[1]));
        checked = checked.and(arrived::check_gradient(self.layout(), step, self.comm.rank(), &came));
        let view = buffer.recv_view(&again)?;
        self.beside(buffer, |copier| {
            let bytes = 2 * view.max_rows * u64::from(step.world.hidden);
            // SAFETY: BF16 rows, as they came, to where expert outputs go, of the same size: behind the dispatch and before the combine,
            // nobody else touches either.
            unsafe { copier.copy_raw(view.x, view.expert_outputs, bytes) }
        })?;
        self.next_operation(buffer)?;
        let input = CombineInput::new(ExpertOutputs::InPlace, &mut back.dx);
        buffer.combine(&again, input.with_returned_weights(ReturnedWeights::InPlace, &mut back.dw))?;
        if self.cell.waits {
            checked = checked.and(synchronized(buffer, self.over(step))?).and(self.gradient(step, mine)?);
        }
        Ok(checked.map_err(|why| format!("gradient: {why}")))
    }

    /// Checks a step's sums, which are done.
    fn sums(&self, step: &Step, mine: &Mine) -> Result<Checked> {
        mine.options.check(&step.world, &step.wires[self.comm.rank() as usize])
    }

    /// Checks a step's gradients at its tokens, which are done.
    fn gradient(&self, step: &Step, mine: &Mine) -> Result<Checked> {
        let (Some(back), Some(dy)) = (&mine.back, &step.dy) else { return Ok(Ok(())) };
        let (dx, dw) = back_at_tokens(&step.world, dy, self.comm.rank());
        let weights = same("gradients of gate weights", &back.dw.to_vec()?, &dw, step.world.top_k as usize);
        Ok(weights.and(same("gradients of tokens", &back.dx.to_vec()?, &dx, step.world.hidden as usize)))
    }
}
