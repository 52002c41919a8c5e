//! When the host knows what a dispatch brings.
use std::time::{Duration, Instant};

use epoxide::{CombineInput, Comm, DeviceTensor, DispatchInput, ElasticBuffer, ExpertOutputs, bf16};

/// Times of a dispatch as its host thread sees them, in ms from the call.
pub struct Times {
    /// Until the host has been told what it brings.
    pub told: Vec<f64>,
    /// Until it is done.
    pub done: Vec<f64>,
}

/// Dispatches and combines `repeat` times, after three that are not timed, all ranks together each time.
///
/// # Errors
///
/// The library's.
pub fn measure(
    comm: &Comm,
    buffer: &mut ElasticBuffer,
    input: &DispatchInput<'_, i32>,
    y: &mut DeviceTensor<bf16>,
    repeat: u32,
) -> epoxide::Result<Times> {
    let mut times = Times { told: Vec::new(), done: Vec::new() };
    for round in 0..repeat + 3 {
        comm.barrier()?;
        let start = Instant::now();
        let handle = buffer.dispatch(input)?;
        buffer.wait_counts(&handle, Duration::from_secs(20))?;
        let told = start.elapsed();
        buffer.synchronize()?;
        let done = start.elapsed();
        buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut *y))?;
        buffer.synchronize()?;
        if round >= 3 {
            times.told.push(told.as_secs_f64() * 1e3);
            times.done.push(done.as_secs_f64() * 1e3);
        }
    }
    Ok(times)
}
