//! Dispatch and combine as a report runs them.
use std::time::Duration;

use epoxide::{
    CombineInput, Comm, DeviceTensor, DispatchInput, Dispatched, ElasticBuffer, ExpertOutputs, Result, Rows, bf16,
};

use super::bench::Bench;
use super::cells::Cell;
use crate::identity;

/// When an operation gives up: no machine that is worth a report takes so long.
const TIMEOUT: Duration = Duration::from_secs(20);

/// One way to dispatch and combine a cell's tokens on a rank. Everything is enqueued.
pub trait Exchange {
    /// Sends the rows to their experts.
    fn send(&mut self) -> Result<()>;
    /// Lets every expert give back what was sent last. If it is to be `wrong`, all but one row.
    fn write_outputs(&mut self, wrong: bool) -> Result<()>;
    /// Sums what the experts gave back into `y`.
    fn bring_back(&mut self, y: &mut DeviceTensor<bf16>) -> Result<()>;
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
}

impl<'a> Whole<'a> {
    pub fn open(bench: &'a Bench<'_>, cell: Cell) -> Result<Self> {
        let config = bench.options.config(cell.case()).with_timeout(TIMEOUT);
        let picks = bench.selections(cell);
        let input = DispatchInput::new(
            cell.tokens,
            bench.rows(cell)?,
            bench.picks.prefix(picks)?,
            bench.weights.prefix(picks)?,
        );
        Ok(Self { comm: bench.comm, buffer: ElasticBuffer::new(bench.comm, config)?, input, handle: None })
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

    fn synchronize(&mut self) -> Result<()> {
        self.whole.synchronize()
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.whole.buffer.close()
    }
}
