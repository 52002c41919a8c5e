//! Dispatch and combine as a report runs them.
//!
//! What of it is timed, and what it is called, is in [`modes`](super::modes).
use std::time::Duration;

use epoxide::{
    CombineInput, Comm, Config, DeviceTensor, DispatchInput, Dispatched, ElasticBuffer, ExpertOutputs, Graph, Packing,
    Result, Rows, bf16,
};

use super::bench::Bench;
use super::cells::Cell;
use crate::identity;

/// When an operation gives up: no machine that is worth a report takes so long.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Pairs of a graph, on a GPU and on the simulated one: a model's layers.
const GRAPH: [usize; 2] = [75, 2];

/// One way to dispatch and combine a cell's tokens on a rank. Everything is enqueued.
pub trait Exchange {
    /// Sends the rows to their experts.
    fn send(&mut self) -> Result<()>;
    /// Lets every expert give back what was sent last. If it is to be `wrong`, all but one row.
    fn write_outputs(&mut self, wrong: bool) -> Result<()>;
    /// Sums what the experts gave back into `y`.
    fn bring_back(&mut self, y: &mut DeviceTensor<bf16>) -> Result<()>;
    /// Sends and brings back, with a `mark` behind each part that is timed.
    fn repeat(&mut self, y: &mut DeviceTensor<bf16>, mark: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.send()?;
        mark()?;
        self.bring_back(y)?;
        mark()
    }
    /// Makes ready what is timed, where no operation waits for this rank. From here on sums go to `y`.
    fn ready(&mut self, _y: &mut DeviceTensor<bf16>) -> Result<()> {
        Ok(())
    }
    /// Pairs that a `send` is, of which `bring_back` is no part; 1 where they are apart.
    fn pairs(&self) -> usize {
        1
    }
    /// Entries of the stream's queue that one [`repeat`](Self::repeat) is, with an event before it and one behind each part.
    fn entries(&self) -> usize;
    /// Waits until all is done.
    fn synchronize(&mut self) -> Result<()>;
    /// Gives everything back; collective.
    fn close(self: Box<Self>) -> Result<()>;
}

/// Whole operations.
pub struct Whole<'a> {
    comm: &'a Comm,
    buffer: ElasticBuffer,
    input: DispatchInput<'a, i32>,
    handle: Option<Dispatched>,
    /// Launches of a dispatch, at most.
    dispatch_launches: usize,
}

impl<'a> Whole<'a> {
    pub fn open(bench: &'a Bench<'_>, cell: Cell) -> Result<Self> {
        Self::with(bench, cell, |config| config)
    }

    /// With what its buffer has besides.
    fn with(bench: &'a Bench<'_>, cell: Cell, besides: impl Fn(Config) -> Config) -> Result<Self> {
        let config = besides(bench.options.config(cell.case()).with_timeout(TIMEOUT));
        let picks = bench.selections(cell);
        let input = DispatchInput::new(
            cell.tokens,
            bench.rows(cell)?,
            bench.picks.prefix(picks)?,
            bench.weights.prefix(picks)?,
        );
        // Where rows are packed, a launch behind it may do that.
        let dispatch_launches = if config.packing == Packing::None { 1 } else { 2 };
        let buffer = ElasticBuffer::new(bench.comm, config)?;
        Ok(Self { comm: bench.comm, buffer, input, handle: None, dispatch_launches })
    }
}

impl Exchange for Whole<'_> {
    fn send(&mut self) -> Result<()> {
        self.handle = Some(self.buffer.dispatch(&self.input)?);
        Ok(())
    }

    fn write_outputs(&mut self, wrong: bool) -> Result<()> {
        match &self.handle {
            Some(handle) => identity::write_outputs(self.comm, &mut self.buffer, handle, wrong),
            None => Ok(()),
        }
    }

    fn bring_back(&mut self, y: &mut DeviceTensor<bf16>) -> Result<()> {
        match &self.handle {
            Some(handle) => self.buffer.combine(handle, CombineInput::new(ExpertOutputs::InPlace, y)),
            None => Ok(()),
        }
    }

    fn entries(&self) -> usize {
        self.dispatch_launches + 1 + 3
    }

    fn synchronize(&mut self) -> Result<()> {
        self.buffer.synchronize()
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.buffer.close()
    }
}

/// Dispatches that replay a first one's routing.
pub struct Replayed<'a> {
    whole: Whole<'a>,
    first: Option<Dispatched>,
    rows: Rows<'a>,
}

impl<'a> Replayed<'a> {
    pub fn open(bench: &'a Bench<'_>, cell: Cell) -> Result<Self> {
        let rows = bench.rows(cell)?;
        Ok(Self { whole: Whole::open(bench, cell)?, first: None, rows })
    }
}

impl Exchange for Replayed<'_> {
    fn send(&mut self) -> Result<()> {
        let again = match &self.first {
            Some(first) => self.whole.buffer.dispatch_again(first, self.rows)?,
            None => {
                self.whole.send()?;
                // Its combine frees the slot of its rows.
                let first = self.whole.handle.take();
                let again = first.as_ref().map(|first| {
                    self.whole.buffer.release(first)?;
                    self.whole.buffer.dispatch_again(first, self.rows)
                });
                self.first = first;
                match again {
                    Some(again) => again?,
                    None => return Ok(()),
                }
            }
        };
        self.whole.handle = Some(again);
        Ok(())
    }

    fn write_outputs(&mut self, wrong: bool) -> Result<()> {
        self.whole.write_outputs(wrong)
    }

    fn bring_back(&mut self, y: &mut DeviceTensor<bf16>) -> Result<()> {
        self.whole.bring_back(y)
    }

    fn entries(&self) -> usize {
        self.whole.entries()
    }

    fn synchronize(&mut self) -> Result<()> {
        self.whole.synchronize()
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.whole.buffer.close()
    }
}

/// Operations by halves, each half behind the other: what of an operation holds how many SMs, and how long.
pub struct Halved<'a> {
    whole: Whole<'a>,
}

impl<'a> Halved<'a> {
    pub fn open(bench: &'a Bench<'_>, cell: Cell) -> Result<Self> {
        Ok(Self { whole: Whole::with(bench, cell, Config::with_halves)? })
    }

    fn send_halves(&mut self, mark: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let ticket = self.whole.buffer.dispatch_send(&self.whole.input)?;
        mark()?;
        self.whole.handle = Some(self.whole.buffer.dispatch_receive(ticket)?);
        mark()
    }

    fn bring_back_halves(&mut self, y: &mut DeviceTensor<bf16>, mark: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let Some(handle) = &self.whole.handle else { return Ok(()) };
        let ticket = self.whole.buffer.combine_send(handle, ExpertOutputs::InPlace)?;
        mark()?;
        self.whole.buffer.combine_receive(ticket, y)?;
        mark()
    }
}

impl Exchange for Halved<'_> {
    fn send(&mut self) -> Result<()> {
        self.send_halves(&mut || Ok(()))
    }

    fn write_outputs(&mut self, wrong: bool) -> Result<()> {
        self.whole.write_outputs(wrong)
    }

    fn bring_back(&mut self, y: &mut DeviceTensor<bf16>) -> Result<()> {
        self.bring_back_halves(y, &mut || Ok(()))
    }

    fn repeat(&mut self, y: &mut DeviceTensor<bf16>, mark: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.send_halves(mark)?;
        self.bring_back_halves(y, mark)
    }

    fn entries(&self) -> usize {
        4 + 5
    }

    fn synchronize(&mut self) -> Result<()> {
        self.whole.synchronize()
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.whole.buffer.close()
    }
}

/// Pairs behind each other in a graph, without experts between: their outputs are those of the pair before it.
pub struct Graphed<'a> {
    whole: Whole<'a>,
    graph: Option<Graph>,
}

impl<'a> Graphed<'a> {
    pub fn open(bench: &'a Bench<'_>, cell: Cell) -> Result<Self> {
        Ok(Self { whole: Whole::open(bench, cell)?, graph: None })
    }
}

impl Exchange for Graphed<'_> {
    fn send(&mut self) -> Result<()> {
        match &self.graph {
            // SAFETY: the rows are borrowed, and `y` lives as long as the rank's part, which touches it when all is done.
            Some(graph) => unsafe { graph.launch(self.whole.comm) },
            None => self.whole.send(),
        }
    }

    fn write_outputs(&mut self, wrong: bool) -> Result<()> {
        self.whole.write_outputs(wrong)
    }

    fn bring_back(&mut self, y: &mut DeviceTensor<bf16>) -> Result<()> {
        if self.graph.is_some() { Ok(()) } else { self.whole.bring_back(y) }
    }

    fn ready(&mut self, y: &mut DeviceTensor<bf16>) -> Result<()> {
        let (comm, pairs, whole) = (self.whole.comm, self.pairs(), &mut self.whole);
        whole.handle = None;
        let pair = |_| whole.send().and_then(|()| whole.bring_back(y));
        self.graph = Some(comm.capture(|_| (0..pairs).try_for_each(pair))?);
        Ok(())
    }

    fn pairs(&self) -> usize {
        GRAPH[usize::from(self.whole.comm.cuda_stream().is_none())]
    }

    /// A graph is an entry for each eight of its kernels.
    fn entries(&self) -> usize {
        (2 * self.pairs()).div_ceil(8) + 3
    }

    fn synchronize(&mut self) -> Result<()> {
        self.whole.synchronize()
    }

    fn close(self: Box<Self>) -> Result<()> {
        let Self { whole, graph } = *self;
        drop(graph);
        whole.buffer.close()
    }
}
