//! Ranks that live through a benchmark, each in a thread of its own, and run as many operations as they are told.
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use epoxide::quantize::{Quantizer, scale_stride};
use epoxide::{
    CombineInput, Comm, Config, DispatchInput, ElasticBuffer, ExpertOutputs, LocalGroup, Rows, WireFormat, bf16,
};

/// Operations that are timed before their events are read.
const EVENTS: usize = 1000;

/// What is dispatched before every combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sends {
    /// Rows in BF16, which an FP8 buffer quantises.
    Rows,
    /// Rows in FP8 that are quantised already.
    Brought,
    /// Rows in BF16, by the routing of the first dispatch.
    Again,
}

/// What every rank does.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub ranks: u32,
    pub tokens: u32,
    pub hidden: u32,
    pub experts: u32,
    pub top_k: u32,
    pub format: WireFormat,
    pub sends: Sends,
}

/// The threads.
pub struct Fleet {
    ranks: Vec<(Sender<u64>, Receiver<[f64; 2]>)>,
    threads: Vec<JoinHandle<()>>,
}

impl Fleet {
    /// Starts a thread for every rank, and waits until all can run.
    pub fn new(group: LocalGroup, work: &Work) -> Self {
        let work = *work;
        let (mut ranks, mut threads) = (Vec::new(), Vec::new());
        for comm in group.into_comms() {
            let (command, commands) = channel();
            let (answer, answers) = channel();
            threads.push(std::thread::spawn(move || live(&comm, &work, &commands, &answer).expect("the rank runs")));
            ranks.push((command, answers));
        }
        let fleet = Self { ranks, threads };
        fleet.run(1);
        fleet
    }

    /// Runs `iterations` dispatches with their combines: the time of all dispatches, and that of all combines, on the rank for which
    /// they took longest.
    pub fn run(&self, iterations: u64) -> [Duration; 2] {
        for (command, _) in &self.ranks {
            command.send(iterations).expect("the rank is alive");
        }
        let longest = self.ranks.iter().fold([0.0f64; 2], |longest, (_, answer)| {
            let times = answer.recv().expect("the rank is alive");
            [longest[0].max(times[0]), longest[1].max(times[1])]
        });
        longest.map(|ms| Duration::from_secs_f64(ms / 1e3))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.ranks.clear();
        for thread in self.threads.drain(..) {
            // A rank's own panic has been printed; the benchmark is over either way.
            let _ = thread.join();
        }
    }
}

fn live(comm: &Comm, work: &Work, commands: &Receiver<u64>, answer: &Sender<[f64; 2]>) -> epoxide::Result<()> {
    let config = Config::new(work.experts, work.top_k, work.hidden, work.tokens).with_format(work.format);
    let mut buffer = ElasticBuffer::new(comm, config)?;
    let elements = u64::from(work.tokens) * u64::from(work.hidden);
    let x: Vec<bf16> = (0..elements).map(|i| bf16::from_f32((i % 509) as f32 / 509.0)).collect();
    let x = comm.tensor(&x)?;
    // A stride that is prime to the number of experts spreads a token's selections.
    let picks: Vec<i32> = (0..work.tokens * work.top_k).map(|i| (i * 31 % work.experts) as i32).collect();
    let weights = comm.tensor(&vec![1.0 / work.top_k as f32; picks.len()])?;
    let picks = comm.tensor(&picks)?;
    let mut y = comm.empty::<bf16>(elements)?;
    let stride = scale_stride(work.hidden);
    let mut codes = comm.empty::<u8>(elements)?;
    let mut scales = comm.empty::<f32>(u64::from(work.tokens) * u64::from(stride))?;
    let mut rows = Rows::from(&x);
    if work.sends == Sends::Brought {
        Quantizer::new(comm)?.quantize(&x, work.tokens.into(), work.hidden, &mut codes, &mut scales)?;
        rows = Rows::fp8(&codes, &scales, stride);
    }
    let input = DispatchInput::new(work.tokens, rows, &picks, &weights);
    comm.barrier()?;
    let first = buffer.dispatch(&input)?;
    buffer.combine(&first, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
    while let Ok(iterations) = commands.recv() {
        let mut times = [0.0; 2];
        // Events are kept for a while only: a benchmark may have millions of iterations.
        for part in (0..iterations).step_by(EVENTS) {
            let mut events = Vec::new();
            for _ in part..iterations.min(part + EVENTS as u64) {
                let start = comm.record()?;
                let handle = match work.sends {
                    Sends::Again => buffer.dispatch_again(&first, rows)?,
                    Sends::Rows | Sends::Brought => buffer.dispatch(&input)?,
                };
                let middle = comm.record()?;
                buffer.combine(&handle, CombineInput::new(ExpertOutputs::InPlace, &mut y))?;
                events.push((start, middle, comm.record()?));
            }
            buffer.synchronize()?;
            for (start, middle, end) in &events {
                times[0] += comm.elapsed_ms(start, middle)?;
                times[1] += comm.elapsed_ms(middle, end)?;
            }
        }
        if answer.send(times).is_err() {
            break;
        }
    }
    buffer.close()
}
