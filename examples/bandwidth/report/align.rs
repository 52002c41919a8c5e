//! Lets ranks begin together.
//!
//! Where routing is uneven an operation takes ranks differently long, and the time of the next one is measured from when a rank has come to it: who was done
//! first would wait there for the others, and that wait count as the operation's. (With Zipf routing rank 0 of four is done with a combine 220 us before the
//! others, which read from it; that much longer its next dispatch seemed to take.) So ranks exchange one token before, which does not count.
use epoxide::{CombineInput, DeviceTensor, DispatchInput, ElasticBuffer, ExpertOutputs, Result, Rows, bf16};

use super::bench::Bench;
use super::cells::Cell;
use crate::buffer_layout::BufferLayout;
use crate::options::Format;

/// What one token is exchanged with.
pub struct Align<'a> {
    buffer: ElasticBuffer,
    input: DispatchInput<'a, i32>,
    y: DeviceTensor<bf16>,
}

impl<'a> Align<'a> {
    /// Collective.
    ///
    /// # Errors
    ///
    /// The library's.
    pub fn open(bench: &'a Bench<'_>, cell: Cell) -> Result<Self> {
        let one = Cell { tokens: 1, format: Format::Bf16, layout: BufferLayout::Compact, ..cell };
        let picks = bench.selections(one);
        let rows: Rows<'a> = bench.rows(one)?;
        let input = DispatchInput::new(1, rows, bench.picks.prefix(picks)?, bench.weights.prefix(picks)?);
        let config = bench.options.config(one.case());
        Ok(Self { buffer: ElasticBuffer::new(bench.comm, config)?, input, y: bench.comm.empty(bench.elements(one))? })
    }

    /// Enqueues what no rank is done with before all have come to it.
    ///
    /// # Errors
    ///
    /// The library's.
    pub fn meet(&mut self) -> Result<()> {
        let handle = self.buffer.dispatch(&self.input)?;
        // Of outputs that nobody has written; nobody reads the sum.
        self.buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut self.y))
    }

    /// Gives everything back; collective.
    ///
    /// # Errors
    ///
    /// The library's.
    pub fn close(self) -> Result<()> {
        self.buffer.close()
    }
}
