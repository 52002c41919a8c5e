//! How long ranks that are processes take to start, part by part: what the driver needs for itself is measured apart, and first.
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cudarc::driver::CudaContext;
use epoxide::processes::World;
use epoxide::{Comm, ElasticBuffer, LocalGroup};

use crate::options::{Device, Options};

/// With it, on whichever rank, rank 0 says how long the slowest rank took for each part.
const ASKED: &str = "EPOXIDE_START_TIMES";

/// A part that is the driver's: nothing of it can be spared, whoever asks.
pub const DRIVERS: [&str; 2] = ["the driver's own start", "its contexts"];

/// The parts of a start that are over.
pub struct Start {
    last: Instant,
    parts: Vec<(&'static str, Duration)>,
}

impl Start {
    /// A start that begins now.
    pub fn begins() -> Self {
        Self { last: Instant::now(), parts: Vec::new() }
    }

    /// Ranks have met. It goes on on all of them if one wants to know, since all that follows is of all.
    ///
    /// # Errors
    ///
    /// When another rank is gone.
    pub fn met(mut self, world: &World) -> epoxide::Result<Option<Self>> {
        self.part("meeting");
        let all = world.all_gather(&[std::env::var_os(ASKED).is_some().into()])?;
        self.last = Instant::now();
        Ok(all.iter().any(|asked| asked[..] == [1]).then_some(self))
    }

    /// Ends a part.
    pub fn part(&mut self, name: &'static str) {
        let now = Instant::now();
        self.parts.push((name, now - self.last));
        self.last = now;
    }

    /// Has the driver start, and make its context on a GPU, which is there as long as what is returned.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub fn driver(&mut self, world: &World, gpu: u32) -> Result<Arc<CudaContext>> {
        LocalGroup::gpus()?;
        self.part(DRIVERS[0]);
        let context = CudaContext::new(gpu as usize).with_context(|| format!("a context on GPU {gpu}"))?;
        self.part(DRIVERS[1]);
        // Who was slower there is not waited for in a part of ours.
        world.barrier()?;
        self.last = Instant::now();
        Ok(context)
    }

    /// Makes the first case's buffer twice: the first one loads its kernels, which on a GPU the driver compiles or has kept. Then rank 0 says it all.
    ///
    /// # Errors
    ///
    /// The library's.
    pub fn end(mut self, comm: &Comm, options: &Options) -> Result<()> {
        let Some(case) = options.cases().next() else { return Ok(()) };
        for name in ["a buffer with the loading of its kernels", "another one"] {
            comm.barrier()?;
            self.last = Instant::now();
            let buffer = ElasticBuffer::new(comm, options.config(case))?;
            self.part(name);
            buffer.close()?;
        }
        let own: Vec<u8> = self.parts.iter().flat_map(|(_, time)| (time.as_nanos() as u64).to_le_bytes()).collect();
        let all = comm.all_gather(&own)?;
        let slowest = |part: usize| {
            let of = |bytes: &Vec<u8>| bytes.as_chunks::<8>().0.get(part).map(|time| u64::from_le_bytes(*time));
            all.iter().filter_map(of).max().unwrap_or_default()
        };
        let mut said = format!("start-up of {} ranks, the slowest of each part in s:", comm.size());
        let mut ours = 0;
        for (part, (name, _)) in self.parts.iter().enumerate() {
            let time = slowest(part);
            // Of the first buffer, what the second one takes too.
            let is_ours = !DRIVERS.contains(name) && !name.contains("loading");
            ours += if is_ours { time } else { 0 };
            write!(said, " {name} {:.3},", time as f64 * 1e-9)?;
        }
        if comm.rank() == 0 {
            let driver = if options.device == Device::Cuda { " besides the driver's" } else { "" };
            eprintln!("{said} in all{driver} {:.3}", ours as f64 * 1e-9);
        }
        Ok(())
    }
}
