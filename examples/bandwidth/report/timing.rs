//! Times of many repetitions, in batches that are enqueued while streams are held.
use std::time::Duration;

use epoxide::{Comm, DeviceTensor, Event, Result, bf16};

use super::exchange::Exchange;

/// Repetitions of a batch. With more, the calls would wait for the stream, which is held.
const BATCH: usize = 15;
/// Repetitions before them, in which ranks come into step.
const WARM: usize = 2;
/// How long a stream is held at first, and at most.
const HOLD: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(30)];
/// Batches that may be given up because a host thread was late.
const SECOND_TRIES: u32 = 12;

/// Milliseconds of each half in every repetition, on this rank; collective.
///
/// A batch counts if all of it was enqueued on every rank before the first one's stream went on, so that no host thread is in the
/// measurement; or else it is given up, and streams are held twice as long from there on.
///
/// # Errors
///
/// The library's.
pub fn halves(
    comm: &Comm,
    exchange: &mut dyn Exchange,
    y: &mut DeviceTensor<bf16>,
    repetitions: usize,
) -> Result<[Vec<f64>; 2]> {
    let mut times = [Vec::with_capacity(repetitions), Vec::with_capacity(repetitions)];
    let [mut hold, longest] = HOLD;
    let mut tries = SECOND_TRIES;
    while times[0].len() < repetitions {
        let batch = BATCH.min(repetitions - times[0].len());
        comm.barrier()?;
        comm.delay(hold)?;
        let held = comm.record()?;
        let mut events: Vec<[Event; 3]> = Vec::with_capacity(WARM + batch);
        for _ in 0..WARM + batch {
            let start = comm.record()?;
            exchange.send()?;
            let middle = comm.record()?;
            exchange.bring_back(y)?;
            events.push([start, middle, comm.record()?]);
        }
        // Simulated time passes only while somebody waits.
        let late = comm.cuda_stream().is_some() && held.is_reached();
        exchange.synchronize()?;
        let lates = comm.all_gather(&[u8::from(late)])?;
        if tries > 0 && lates.iter().any(|late| *late == [1]) {
            tries -= 1;
            hold = (hold * 2).min(longest);
            continue;
        }
        for [start, middle, end] in &events[WARM..] {
            times[0].push(comm.elapsed_ms(start, middle)?);
            times[1].push(comm.elapsed_ms(middle, end)?);
        }
    }
    Ok(times)
}
