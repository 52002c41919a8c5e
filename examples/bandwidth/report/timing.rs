//! Times of many repetitions, in batches that are enqueued while streams are held, and of the host's calls.
use std::time::{Duration, Instant};

use epoxide::{Comm, DeviceTensor, Event, Result, bf16};

use super::align::Align;
use super::exchange::Exchange;

/// Repetitions of a batch.
const BATCH: usize = 15;
/// Of a batch in which ranks meet before each part: that is three times as many operations.
const BATCH_ALIGNED: usize = 3;
/// Repetitions before them, in which ranks come into step.
const WARM: usize = 2;
/// Entries that the library enqueues on a stream without waiting for it (it paces itself): with more of them in a batch each is late, as the stream is held.
const QUEUE: usize = 96;
/// Of these, what a stream is held with.
const HELD: usize = 2;
/// How long a stream is held at first, and at most.
const HOLD: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(30)];
/// Batches that may be given up because a host thread was late.
const SECOND_TRIES: u32 = 12;
/// Of an exchange of many pairs at once, one is done for so many repetitions: more pairs than these all the same.
const PAIRS_FOR_ONE: usize = 25;
/// Times that the host's calls are timed, after some that are not, and pairs each time: they fit in the stream's queue.
const CALLS: [usize; 2] = [100, 16];
const WARM_CALLS: usize = 3;

/// What a rank found.
#[derive(Default)]
pub struct Timed {
    /// Milliseconds of each part in every repetition; of an exchange of many pairs at once, of one of them.
    pub ms: Vec<Vec<f64>>,
    /// Repetitions of batches that a host thread was late with, also when they were measured again.
    pub late: usize,
}

/// Which batches count.
struct Batches {
    hold: Duration,
    tries: u32,
}

impl Batches {
    fn new() -> Self {
        Self { hold: HOLD[0], tries: SECOND_TRIES }
    }

    /// Whether a batch is to be measured again, longer held: when a host thread was late with it, and too many were not given up before.
    fn again(&mut self, late: bool) -> bool {
        let again = late && self.tries > 0;
        if again {
            self.tries -= 1;
            self.hold = (self.hold * 2).min(HOLD[1]);
        }
        again
    }
}

/// Repetitions of a batch of an exchange that is so many entries.
fn batch_of(entries: usize, is_aligned: bool) -> usize {
    let fit = ((QUEUE - HELD) / entries).saturating_sub(WARM).max(1);
    if is_aligned { BATCH_ALIGNED } else { BATCH.min(fit) }
}

/// Times all parts on this rank; collective.
///
/// A batch counts if all of it was enqueued on every rank before the first one's stream went on, so that no host thread is in the
/// measurement; or else it is given up, and streams are held twice as long from there on. When too many were given up, a late one counts, and is
/// told of.
///
/// Behind an `align` ranks begin each part together.
///
/// # Errors
///
/// The library's.
pub fn parts(
    comm: &Comm,
    exchange: &mut dyn Exchange,
    mut align: Option<&mut Align<'_>>,
    y: &mut DeviceTensor<bf16>,
    repetitions: usize,
) -> Result<Timed> {
    let pairs = exchange.pairs();
    let repetitions = if pairs > 1 { repetitions.div_ceil(PAIRS_FOR_ONE) } else { repetitions };
    let mut timed = Timed::default();
    let mut batches = Batches::new();
    let mut done = 0;
    while done < repetitions {
        let batch = batch_of(exchange.entries(), align.is_some()).min(repetitions - done);
        comm.barrier()?;
        comm.delay(batches.hold)?;
        let held = comm.record()?;
        if let Some(align) = &mut align {
            align.meet()?;
        }
        let mut events: Vec<Vec<Event>> = Vec::with_capacity(WARM + batch);
        for _ in 0..WARM + batch {
            let mut marks = vec![comm.record()?];
            exchange.repeat(y, &mut || {
                marks.push(comm.record()?);
                // The next part begins where this one ended, or when all have met.
                if let Some(align) = &mut align {
                    align.meet()?;
                    marks.push(comm.record()?);
                }
                Ok(())
            })?;
            events.push(marks);
        }
        // Simulated time passes only while somebody waits.
        let late = comm.cuda_stream().is_some() && held.is_reached();
        exchange.synchronize()?;
        let late = comm.all_gather(&[u8::from(late)])?.iter().any(|late| *late == [1]);
        if batches.again(late) {
            continue;
        }
        timed.late += if late { batch } else { 0 };
        for marks in &events[WARM..] {
            let parts = if align.is_some() { marks.len() / 2 } else { marks.len() - 1 };
            let begins = marks.iter().zip(&marks[1..]).step_by(if align.is_some() { 2 } else { 1 });
            timed.ms.resize(parts, Vec::with_capacity(repetitions));
            for (ms, (begin, end)) in timed.ms.iter_mut().zip(begins) {
                ms.push(comm.elapsed_ms(begin, end)? / pairs as f64);
            }
        }
        done += batch;
    }
    Ok(timed)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations, those that pack, halves, and graphs of 75 pairs, each with an event before it and one behind each part.
    #[test]
    fn a_batch_is_as_long_as_a_queue_takes() {
        assert_eq!([5, 6, 9, 22, 200].map(|entries| batch_of(entries, false)), [15, 13, 8, 2, 1]);
        let whole = |entries: usize| HELD + (batch_of(entries, false) + WARM) * entries;
        assert!([5, 6, 9, 22].into_iter().all(|entries| whole(entries) <= QUEUE));
        assert_eq!(batch_of(5, true), BATCH_ALIGNED);
    }

    #[test]
    fn a_late_batch_is_measured_again_and_one_of_too_many_counts() {
        let mut batches = Batches::new();
        assert!(!batches.again(false) && batches.hold == HOLD[0]);
        let again = (0..20).filter(|_| batches.again(true)).count();
        assert_eq!((again, batches.hold), (12, HOLD[1]));
        assert!(!batches.again(false));
    }
}
