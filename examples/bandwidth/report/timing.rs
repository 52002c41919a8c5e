//! Times of many repetitions of an exchange, and of the host's calls.
use std::time::Instant;

use epoxide::{Comm, DeviceTensor, Result, bf16};

use super::align::Align;
use super::exchange::Exchange;
use crate::batches::{self, Repeated, Timed};

/// Times that the host's calls are timed, after some that are not, and pairs each time: they fit in the stream's queue.
const CALLS: [usize; 2] = [100, 16];
const WARM_CALLS: usize = 3;

/// An exchange, whose sums go to a tensor.
struct Repetition<'a> {
    exchange: &'a mut dyn Exchange,
    y: &'a mut DeviceTensor<bf16>,
}

impl Repeated for Repetition<'_> {
    fn repeat(&mut self, mark: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.exchange.repeat(self.y, mark)
    }

    fn entries(&self) -> usize {
        self.exchange.entries()
    }

    fn pairs(&self) -> usize {
        self.exchange.pairs()
    }

    fn synchronize(&mut self) -> Result<()> {
        self.exchange.synchronize()
    }
}

/// [`batches::parts`] of an exchange; behind an `align` ranks begin each part together.
///
/// # Errors
///
/// The library's.
pub fn parts(
    comm: &Comm,
    exchange: &mut dyn Exchange,
    align: Option<&mut Align<'_>>,
    y: &mut DeviceTensor<bf16>,
    repetitions: usize,
) -> Result<Timed> {
    let mut repetition = Repetition { exchange, y };
    match align {
        None => batches::parts(comm, &mut repetition, None, repetitions),
        Some(align) => batches::parts(comm, &mut repetition, Some(&mut || align.meet()), repetitions),
    }
}

/// Microseconds of this rank's thread for the calls of a pair, or of one launch of many, while its stream is idle at first; collective.
///
/// # Errors
///
/// The library's.
pub fn calls(comm: &Comm, exchange: &mut dyn Exchange, y: &mut DeviceTensor<bf16>) -> Result<Vec<f64>> {
    let [times, pairs] = if comm.cuda_stream().is_some() { CALLS } else { [2, 1] };
    let each = if exchange.pairs() > 1 { 1 } else { pairs };
    let mut us = Vec::with_capacity(WARM_CALLS + times);
    for _ in 0..WARM_CALLS + times {
        comm.barrier()?;
        let began = Instant::now();
        for _ in 0..each {
            exchange.send()?;
            exchange.bring_back(y)?;
        }
        us.push(began.elapsed().as_secs_f64() * 1e6 / each as f64);
        exchange.synchronize()?;
    }
    Ok(us.split_off(WARM_CALLS))
}
